package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/vmm"
)

// Format is the version of the directory's layout.
const Format = 1

const (
	metaName    = "meta.json"
	memoryName  = "memory"
	deviceName  = "device"
	consoleName = "console"
	usedName    = "used"     // its modification time is the last use
	checkedName = "verified" // holds the boot of the host in which all was read last
)

// Meta is what a saved machine is.
type Meta struct {
	Format  int       `json:"format"`
	Title   string    `json:"title"` // for people
	Created time.Time `json:"created"`
	// Fits is everything that must be the same for the machine to be restored, by name:
	// the VMM, the image, …
	Fits    map[string]string `json:"fits"`
	Formats []string          `json:"disks,omitempty"` // of the disks, uppermost first: "raw" or "qcow2"
	Extra   json.RawMessage   `json:"extra,omitempty"` // the caller's own
	Files   map[string]stamp  `json:"files"`
}

// stamp identifies the contents of a file.
type stamp struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // of what is not a hole, with its places
	Time   string `json:"time"`   // of the last modification
}

// A Saved is a saved machine that was opened.
type Saved struct {
	Meta
	Dir     string
	State   *vmm.State // nil: the machine was off
	Console []byte
	Disks   []vmm.Backing // uppermost first
}

// Close gives up the files. Machines that were restored keep what they need.
func (s *Saved) Close() error {
	if s.State == nil {
		return nil
	}
	return s.State.Memory.Close()
}

// A DamagedError is a saved machine whose files have changed since they were written.
type DamagedError struct{ Dir, Reason string }

func (e *DamagedError) Error() string {
	return fmt.Sprintf("the snapshot in %s is damaged: %s", e.Dir, e.Reason)
}

// Status is that of a fault of the host.
func (*DamagedError) Status() event.Status { return event.Infra }

// A MismatchError is a saved machine that differs from the machine to restore.
type MismatchError struct{ Dir, What, Saved, Now string }

func (e *MismatchError) Error() string {
	return fmt.Sprintf("the snapshot in %s does not fit: it was made with another %s (%s, now %s)", e.Dir, e.What, e.Saved, e.Now)
}

// Status is that of something that this host cannot do.
func (*MismatchError) Status() event.Status { return event.Unsupported }

// A Draft is a saved machine that is being written.
type Draft struct {
	Meta
	dir    string
	Memory *os.File // to be filled, if the machine runs; see Running
}

// NewDraft begins a saved machine in an empty directory.
func NewDraft(dir string, m Meta) (*Draft, error) {
	m.Format, m.Created, m.Files = Format, time.Now().UTC().Truncate(time.Second), map[string]stamp{}
	f, err := os.OpenFile(filepath.Join(dir, memoryName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &Draft{Meta: m, dir: dir, Memory: f}, nil
}

// DiskPath returns the path for disk i.
func (d *Draft) DiskPath(i int) string { return filepath.Join(d.dir, diskName(i)) }

func diskName(i int) string { return fmt.Sprintf("disk%d", i) }

// Finish writes the rest. device is nil if the machine is off.
func (d *Draft) Finish(device, console []byte) error {
	if err := d.Memory.Close(); err != nil {
		return err
	}
	if device == nil {
		if err := os.Remove(filepath.Join(d.dir, memoryName)); err != nil {
			return err
		}
	} else if err := os.WriteFile(filepath.Join(d.dir, deviceName), device, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(d.dir, consoleName), console, 0o600); err != nil {
		return err
	}
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if d.Files[e.Name()], err = stampOf(filepath.Join(d.dir, e.Name()), true); err != nil {
			return err
		}
	}
	data, err := json.MarshalIndent(d.Meta, "", "  ")
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	data = append(data, "\n"+hex.EncodeToString(sum[:])+"\n"...)
	if err := os.WriteFile(filepath.Join(d.dir, metaName), data, 0o600); err != nil {
		return err
	}
	for name, text := range map[string]string{usedName: "", checkedName: bootID()} {
		if err := os.WriteFile(filepath.Join(d.dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// stampOf returns the stamp of a file, with its checksum if sum is set.
func stampOf(path string, sum bool) (s stamp, err error) {
	f, err := os.Open(path)
	if err != nil {
		return s, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return s, err
	}
	s = stamp{Size: st.Size(), Time: st.ModTime().UTC().Format(time.RFC3339Nano)}
	if sum {
		h := sha256.New()
		if err := sumSparse(h, f); err != nil {
			return s, err
		}
		s.SHA256 = hex.EncodeToString(h.Sum(nil))
	}
	return s, nil
}

// sumSparse sums the pages that are not zero, each run of them after its place,
// so that the sum is the same wherever the file has its holes.
func sumSparse(h hash.Hash, f *os.File) error {
	next := int64(-1)
	return vmm.EachData(f, func(b []byte, at int64) error {
		if at != next {
			fmt.Fprintf(h, "@%d\n", at)
		}
		h.Write(b)
		next = at + int64(len(b))
		return nil
	})
}

// ReadMeta reads and checks meta.json.
func ReadMeta(dir string) (m Meta, err error) {
	damaged := func(format string, args ...any) error {
		return &DamagedError{dir, fmt.Sprintf(format, args...)}
	}
	data, err := os.ReadFile(filepath.Join(dir, metaName))
	if errors.Is(err, os.ErrNotExist) {
		return m, damaged("it has no %s", metaName)
	}
	if err != nil {
		return m, err
	}
	i := bytes.LastIndexByte(bytes.TrimRight(data, "\n"), '\n')
	if i < 0 {
		return m, damaged("%s is truncated", metaName)
	}
	sum := sha256.Sum256(data[:i])
	if strings.TrimSpace(string(data[i:])) != hex.EncodeToString(sum[:]) {
		return m, damaged("%s is not what was written", metaName)
	}
	if err := json.Unmarshal(data[:i], &m); err != nil {
		return m, damaged("%s: %v", metaName, err)
	}
	if m.Format != Format {
		return m, &MismatchError{dir, "version of attest", fmt.Sprintf("format %d", m.Format), fmt.Sprintf("format %d", Format)}
	}
	return m, nil
}

// Check returns a *MismatchError if the machine differs from what is there now.
func (s *Saved) Check(now map[string]string) error {
	for _, what := range slices.Sorted(maps.Keys(now)) {
		if s.Fits[what] != now[what] {
			was, is := vmm.Difference(s.Fits[what], now[what])
			return &MismatchError{s.Dir, what, was, is}
		}
	}
	return nil
}

// Open opens a saved machine. Its error is a *DamagedError if the files have changed.
func Open(dir string) (s *Saved, err error) {
	m, err := ReadMeta(dir)
	if err != nil {
		return nil, err
	}
	s = &Saved{Meta: m, Dir: dir}
	if err := s.verify(); err != nil {
		return nil, err
	}
	for i, format := range m.Formats {
		s.Disks = append(s.Disks, vmm.Backing{Path: filepath.Join(dir, diskName(i)), Format: format})
	}
	if s.Console, err = os.ReadFile(filepath.Join(dir, consoleName)); err != nil {
		return nil, err
	}
	if _, running := m.Files[deviceName]; !running {
		return s, nil
	}
	state := &vmm.State{}
	if state.Device, err = os.ReadFile(filepath.Join(dir, deviceName)); err != nil {
		return nil, err
	}
	if state.Memory, err = openMemory(filepath.Join(dir, memoryName)); err != nil {
		return nil, err
	}
	s.State = state
	return s, nil
}

// openMemory opens a memory. Some VMMs open the file for writing, although they
// do not write; of one that may not be, such as in the Nix store, they get a copy.
func openMemory(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if !errors.Is(err, os.ErrPermission) && !errors.Is(err, unix.EROFS) {
		return f, err
	}
	if f, err = os.Open(path); err != nil {
		return nil, err
	}
	defer f.Close()
	copied, err := vmm.MemoryFile("attest-memory")
	if err != nil {
		return nil, err
	}
	if err = vmm.CopySparse(copied, f); err == nil {
		err = vmm.Seal(copied)
	}
	if err != nil {
		copied.Close()
		return nil, err
	}
	return copied, nil
}

// verify compares the files with what was written; see the package documentation.
func (s *Saved) verify() error {
	all := s.unverified()
	for name, want := range s.Files {
		large := name == memoryName || strings.HasPrefix(name, "disk")
		path := filepath.Join(s.Dir, name)
		got, err := stampOf(path, all || !large)
		if err == nil && got.Size == want.Size && got.SHA256 == "" && got.Time != want.Time {
			got, err = stampOf(path, true) // changed, or copied
		}
		switch {
		case errors.Is(err, os.ErrNotExist):
			return &DamagedError{s.Dir, name + " is missing"}
		case err != nil:
			return err
		case got.Size != want.Size:
			return &DamagedError{s.Dir, fmt.Sprintf("%s has %d bytes instead of %d", name, got.Size, want.Size)}
		case got.SHA256 != "" && got.SHA256 != want.SHA256:
			return &DamagedError{s.Dir, name + " is not what was written: its checksum is wrong"}
		}
	}
	// A directory that may not be written to is read each time. For root, who may, that is
	// one like the Nix store's, whose files have checksums of their own.
	if st, err := os.Stat(s.Dir); all && err == nil && st.Mode()&0o200 != 0 {
		os.WriteFile(filepath.Join(s.Dir, checkedName), []byte(bootID()), 0o600)
	}
	return nil
}

// unverified reports whether the contents have not been read since the host was booted.
func (s *Saved) unverified() bool {
	boot, err := os.ReadFile(filepath.Join(s.Dir, checkedName))
	return err != nil || string(boot) != bootID()
}

func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}
