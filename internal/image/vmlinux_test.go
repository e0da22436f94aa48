package image

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"os/exec"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"
)

// fakeVmlinux is an ELF file with a PVH note, a banner and real code: the test
// binary's own, for filters that look at instructions.
func fakeVmlinux(t testing.TB) []byte {
	t.Helper()
	code := make([]byte, 256<<10)
	self, err := elf.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	if _, err := self.Section(".text").ReadAt(code, 0); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	le := binary.LittleEndian
	note := []byte("\x04\x00\x00\x00\x04\x00\x00\x00\x12\x00\x00\x00Xen\x00\x00\x00\x00\x01")
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1}
	copy(h.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	binary.Write(&b, le, h)
	binary.Write(&b, le, elf.Prog64{Type: uint32(elf.PT_NOTE), Off: 120, Filesz: uint64(len(note))})
	b.Write(note)
	b.WriteString("Linux version 6.1.0-test (builder@host) #1 SMP\x00")
	b.Write(code)
	return b.Bytes()
}

// fakeBzImage puts a payload where the setup header says.
func fakeBzImage(payload []byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, 3*512+64)
	b[0x1f1] = 2
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	le.PutUint16(b[0x20e:], 0x300-0x200)
	copy(b[0x300:], "6.1.0-test (builder@host) #1\x00")
	le.PutUint32(b[0x248:], 64)
	le.PutUint32(b[0x24c:], uint32(len(payload)))
	b = append(b, payload...)
	return append(b, make([]byte, 100)...)
}

func lz4Legacy(data []byte) []byte {
	out := []byte("\x02\x21\x4c\x18")
	for len(data) > 0 {
		n := min(len(data), 8<<20)
		block := make([]byte, lz4.CompressBlockBound(n))
		var c lz4.Compressor
		size, _ := c.CompressBlock(data[:n], block)
		out = binary.LittleEndian.AppendUint32(out, uint32(size))
		out = append(out, block[:size]...)
		data = data[n:]
	}
	return out
}

func TestExtractVmlinux(t *testing.T) {
	kernel := fakeVmlinux(t)
	packed := map[string][]byte{"lz4": lz4Legacy(kernel)}
	var b bytes.Buffer
	g := gzip.NewWriter(&b)
	g.Write(kernel)
	g.Close()
	packed["gzip"] = bytes.Clone(b.Bytes())
	z, _ := zstd.NewWriter(nil)
	packed["zstd"] = z.EncodeAll(kernel, nil)
	b.Reset()
	l, _ := lzma.NewWriter(&b)
	l.Write(kernel)
	l.Close()
	packed["lzma"] = bytes.Clone(b.Bytes())
	for name, payload := range packed {
		if name != "gzip" {
			payload = binary.LittleEndian.AppendUint32(payload, uint32(len(kernel)))
		}
		checkExtract(t, name, payload, kernel)
	}
}

func checkExtract(t *testing.T, name string, payload, kernel []byte) {
	t.Helper()
	image := fakeBzImage(payload)
	got, err := extractVmlinux(image)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if !bytes.Equal(got, kernel) {
		t.Errorf("%s: another kernel came out", name)
	}
	for _, image := range [][]byte{image, got} {
		if release, err := kernelRelease(image, got); err != nil || release != "6.1.0-test" {
			t.Errorf("%s: release %q, %v", name, release, err)
		}
	}
	if !hasPVH(got) {
		t.Errorf("%s: no PVH note found", name)
	}
}

// As scripts/xz_wrap.sh of the kernel does it. xz is essential for dpkg and so
// on every Debian.
func TestExtractXZ(t *testing.T) {
	if _, err := exec.LookPath("xz"); err != nil {
		t.Fatal("no xz to pack a kernel with; scripts/setup test installs it")
	}
	kernel := fakeVmlinux(t)
	for _, filters := range [][]string{{"--x86", "--lzma2=dict=8MiB"}, {"--lzma2=dict=1MiB"}, {"--block-size=64MiB", "--x86", "--lzma2=preset=1"}} {
		cmd := exec.Command("xz", append([]string{"--check=crc32", "--stdout"}, filters...)...)
		cmd.Stdin = bytes.NewReader(kernel)
		packed, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		payload := binary.LittleEndian.AppendUint32(packed, uint32(len(kernel)))
		checkExtract(t, strings.Join(filters, " "), payload, kernel)
	}
}

func TestExtractNothing(t *testing.T) {
	for what, image := range map[string][]byte{
		"empty":               nil,
		"a text":              []byte(strings.Repeat("not a kernel\n", 100)),
		"unknown compression": fakeBzImage([]byte("????????????")),
		"no ELF inside":       fakeBzImage(binary.LittleEndian.AppendUint32(lz4Legacy([]byte(strings.Repeat("text", 100))), 400)),
		"truncated":           fakeBzImage(make([]byte, 1000))[:1700],
	} {
		if _, err := extractVmlinux(image); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

func FuzzExtractVmlinux(f *testing.F) {
	f.Add(fakeBzImage(lz4Legacy([]byte("x"))))
	f.Add(fakeBzImage([]byte("\xfd7zXZ\x00\x00\x01\x69\x22\xde\x36\x03\xc0\x1f\x0a\x04\x00\x21\x01\x16\x00\x00\x00\x00\x00\x00\x00")))
	f.Add([]byte(elf.ELFMAG))
	f.Fuzz(func(t *testing.T, image []byte) {
		kernel, err := extractVmlinux(image)
		if err == nil {
			hasPVH(kernel)
			kernelRelease(image, kernel)
		}
	})
}
