package image

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/cache"
	"github.com/attest-vm/attest/internal/vmm"
)

// sparse makes a file of size bytes with a little data in it.
func sparse(t *testing.T, name string, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, size / 2, size - 100} {
		if _, err := f.WriteAt([]byte("data at some place"), at); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func qemuImg(t *testing.T, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Fatal("no qemu-img to check the images with; scripts/setup test installs it")
	}
	cmd := exec.Command("qemu-img", args...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = errors.New(string(exit.Stderr))
		}
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func TestCreateOverlay(t *testing.T) {
	for _, size := range []int64{512, 1<<20 + 1, 16 << 30, 5 << 40} {
		base := sparse(t, "base disk.raw", size+200)
		first := filepath.Join(t.TempDir(), "first.qcow2")
		if err := CreateOverlay(first, base, "raw"); err != nil {
			t.Fatal(err)
		}
		second := filepath.Join(t.TempDir(), "second.qcow2")
		if err := CreateOverlay(second, first, "qcow2"); err != nil {
			t.Fatal(err)
		}
		for _, img := range []string{first, second} {
			qemuImg(t, "check", img)
		}
		var info struct {
			Format  string `json:"format"`
			Size    int64  `json:"virtual-size"`
			Backing string `json:"full-backing-filename"`
			Of      string `json:"backing-filename-format"`
			Actual  int64  `json:"actual-size"`
		}
		if err := json.Unmarshal(qemuImg(t, "info", "--output=json", second), &info); err != nil {
			t.Fatal(err)
		}
		if info.Format != "qcow2" || info.Backing != first || info.Of != "qcow2" || info.Actual > 64<<10 {
			t.Errorf("%d bytes: %+v", size, info)
		}
		if want := (size + 200 + 511) / 512 * 512; info.Size != want {
			t.Errorf("the disk has %d bytes, want %d", info.Size, want)
		}
	}
}

// What is read through the overlay is the base, and what is written is not in it.
func TestOverlayReadsAndWrites(t *testing.T) {
	base := sparse(t, "base.raw", 3<<20)
	before, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(t.TempDir(), "o.qcow2")
	if err := CreateOverlay(overlay, base, "raw"); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, "compare", overlay, base)
	if _, err := exec.LookPath("qemu-io"); err == nil {
		if out, err := exec.Command("qemu-io", "-c", "write -P 7 1M 64k", "-c", "read -P 7 1M 64k", overlay).CombinedOutput(); err != nil {
			t.Errorf("qemu-io: %v\n%s", err, out)
		}
		qemuImg(t, "check", overlay)
	}
	after, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Error("the base was modified")
	}
}

func TestCreateOverlayRefusals(t *testing.T) {
	base := sparse(t, "base.raw", 1<<20)
	dir := t.TempDir()
	exists := filepath.Join(dir, "exists")
	if err := os.WriteFile(exists, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	deep := filepath.Join(dir, strings.Repeat(strings.Repeat("d", 200)+"/", 6))
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	far := filepath.Join(deep, "base")
	if err := os.WriteFile(far, make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"no base":          CreateOverlay(filepath.Join(dir, "a"), base+"-missing", "raw"),
		"other format":     CreateOverlay(filepath.Join(dir, "b"), base, "qcow2"),
		"file is there":    CreateOverlay(exists, base, "raw"),
		"path is too long": CreateOverlay(filepath.Join(dir, "c"), far, "raw"),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if data, _ := os.ReadFile(exists); string(data) != "mine" {
		t.Error("an existing file was overwritten")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("left behind: %v", entries)
	}
}

// An image that names files of the host, or is of another format, is refused by name
// before anything is made of it.
func TestForeignDisks(t *testing.T) {
	s := openTest(t)
	secret := sparse(t, "secret", 1<<20)
	overlay := filepath.Join(t.TempDir(), "overlay.qcow2")
	if err := CreateOverlay(overlay, secret, "raw"); err != nil {
		t.Fatal(err)
	}
	vmdk := filepath.Join(t.TempDir(), "disk.vmdk")
	if err := os.WriteFile(vmdk, append([]byte("KDMV"), make([]byte, 1020)...), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		disk Disk
		want []string // of the error; none: it is taken
	}{
		{Disk{Path: overlay}, []string{overlay, secret, "backing file", "qemu-img convert"}},
		{Disk{Path: overlay, Format: "qcow2"}, []string{overlay, secret, "backing file"}},
		{Disk{Path: overlay, Format: "raw"}, nil},
		{Disk{Path: vmdk}, []string{vmdk, "vmdk", "qemu-img convert"}},
		{Disk{Path: vmdk, Format: "raw"}, nil},
		{Disk{Path: secret, Format: "qcow2"}, []string{secret, "raw, not qcow2"}},
	} {
		img, err := s.Build(t.Context(), test.disk)
		var refused *SpecError
		if len(test.want) == 0 {
			if err != nil || img.Disk.Format != "raw" {
				t.Errorf("%+v: %+v, %v", test.disk, img, err)
			}
			continue
		}
		if !errors.As(err, &refused) {
			t.Errorf("%+v: %v", test.disk, err)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q does not say %q", err, want)
			}
		}
	}
}

func FuzzProbeDisk(f *testing.F) {
	good, err := encodeOverlay("/base", "raw", 1<<30)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good.pieces[0].data)
	f.Add([]byte(vmm.Qcow2Magic))
	f.Add([]byte("x"))
	f.Add(binary.BigEndian.AppendUint32([]byte(vmm.Qcow2Magic), 9))
	name := filepath.Join(f.TempDir(), "disk")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if format, size, err := probeDisk(name); err == nil && (size <= 0 || format == "") {
			t.Errorf("%q: %s disk of %d bytes", data, format, size)
		}
	})
}

func TestOverlayDisk(t *testing.T) {
	s := openTest(t)
	path := filepath.Join(t.TempDir(), "rw.ext4")
	if err := s.OverlayDisk(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() != OverlaySize || cache.DiskUsage(filepath.Dir(path)) > 4<<20 {
		t.Errorf("%d bytes that occupy %d", st.Size(), cache.DiskUsage(filepath.Dir(path)))
	}
	fsck, err := lookTool("e2fsck")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(fsck, "-fn", path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	if err := s.OverlayDisk(t.Context(), path); !errors.Is(err, os.ErrExist) {
		t.Errorf("a disk that is there: %v", err)
	}
}

func TestCopySparse(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	f, err := os.Create(from)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.NewChaCha8([32]byte{})
	block := make([]byte, 4096)
	for _, at := range []int64{0, 4096, 1 << 20, 5<<20 + 512} {
		random.Read(block)
		if _, err := f.WriteAt(block, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(64<<20), f.Close(), copySparse(to, from)); err != nil {
		t.Fatal(err)
	}
	a, _ := os.ReadFile(from)
	b, _ := os.ReadFile(to)
	if !bytes.Equal(a, b) {
		t.Error("the copy differs")
	}
	var st unix.Stat_t
	if err := unix.Stat(to, &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("the copy occupies %d bytes (%v)", st.Blocks*512, err)
	}
}
