package image

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"regexp"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"
	"github.com/ulikunitz/xz/lzma"
)

// extractVmlinux returns the uncompressed kernel in a bzImage: the payload that
// the setup header points to (Documentation/arch/x86/boot.rst, "The Real-Mode
// Kernel Header", protocol 2.08 of Linux 2.6.24). An ELF file is returned as it is.
func extractVmlinux(image []byte) ([]byte, error) {
	if bytes.HasPrefix(image, []byte(elf.ELFMAG)) {
		return image, nil
	}
	payload, err := bzImagePayload(image)
	if err != nil {
		return nil, err
	}
	kernel, err := decompress(payload)
	if err != nil {
		return nil, fmt.Errorf("the kernel in the bzImage: %w", err)
	}
	if !bytes.HasPrefix(kernel, []byte(elf.ELFMAG)) {
		return nil, errors.New("the content of the bzImage is not an ELF file")
	}
	return kernel, nil
}

func bzImagePayload(image []byte) ([]byte, error) {
	if len(image) < 0x260 || string(image[0x202:0x206]) != "HdrS" {
		return nil, errors.New("neither a bzImage nor an ELF file")
	}
	le := binary.LittleEndian
	if version := le.Uint16(image[0x206:]); version < 0x208 {
		return nil, fmt.Errorf("boot protocol %d.%02d does not locate the kernel (want 2.08 or later)", version>>8, version&0xff)
	}
	sectors := int64(image[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + int64(le.Uint32(image[0x248:]))
	end := start + int64(le.Uint32(image[0x24c:]))
	if end > int64(len(image)) || start+6 > end {
		return nil, fmt.Errorf("truncated: the kernel is at %d to %d of %d bytes", start, end, len(image))
	}
	return image[start:end], nil
}

// maxKernel bounds what a payload can unpack to.
const maxKernel = 1 << 30

// maxXZDict bounds the memory that unpacking an .xz takes, in bytes: xz -9 asks
// for 64 MiB.
const maxXZDict = 1 << 30

// decompress unpacks a kernel's payload. But for gzip, which has it anyway, the
// kernel's build appends the unpacked size in four bytes.
func decompress(payload []byte) ([]byte, error) {
	var want int
	body := payload
	if n := len(payload) - 4; n > 0 && payload[0] != 0x1f {
		want = int(binary.LittleEndian.Uint32(payload[n:]))
		body = payload[:n]
	}
	r, err := decompressor(body)
	if err != nil {
		return nil, err
	}
	out := bytes.NewBuffer(make([]byte, 0, min(want, 128<<20)))
	_, err = io.Copy(out, io.LimitReader(r, maxKernel))
	// What follows the stream is no part of it, and some readers mind.
	if err != nil && (want == 0 || out.Len() != want) {
		return nil, err
	}
	if want != 0 && out.Len() != want {
		return nil, fmt.Errorf("unpacked to %d bytes instead of %d", out.Len(), want)
	}
	return out.Bytes(), nil
}

func decompressor(b []byte) (io.Reader, error) {
	is := func(magic string) bool { return bytes.HasPrefix(b, []byte(magic)) }
	r := bytes.NewReader(b)
	switch {
	case is("\x1f\x8b"):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, err
		}
		z.Multistream(false)
		return z, nil
	case is("\xfd7zXZ\x00"):
		z, err := xz.NewReader(r, maxXZDict)
		if err != nil {
			return nil, err
		}
		z.Multistream(false)
		return z, nil
	case is("\x28\xb5\x2f\xfd"):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(1<<30))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case is("\x02\x21\x4c\x18"):
		return lz4.NewReader(r), nil
	case is("BZh"):
		return bzip2.NewReader(r), nil
	case is("\x5d\x00\x00"):
		return lzma.NewReader(r)
	}
	return nil, fmt.Errorf("unknown compression (% x)", b[:min(len(b), 6)])
}

// hasPVH reports whether a vmlinux has the entry point of PVH boot: a note
// XEN_ELFNOTE_PHYS32_ENTRY (xen/interface/elfnote.h).
func hasPVH(vmlinux []byte) bool {
	f, err := elf.NewFile(bytes.NewReader(vmlinux))
	if err != nil {
		return false
	}
	const phys32Entry = 18
	le := binary.LittleEndian
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		b, err := io.ReadAll(p.Open())
		if err != nil {
			return false
		}
		for len(b) >= 12 {
			name, desc, kind := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])), le.Uint32(b[8:])
			size := 12 + (name+3)&^3 + (desc+3)&^3
			if size > uint64(len(b)) {
				break
			}
			if kind == phys32Entry && string(b[12:12+name]) == "Xen\x00" {
				return true
			}
			b = b[size:]
		}
	}
	return false
}

var linuxVersion = regexp.MustCompile(`Linux version (\S+) \(`)

// kernelRelease finds what uname -r will say. A bzImage says it in its header;
// every kernel has its banner.
func kernelRelease(image, vmlinux []byte) (string, error) {
	if len(image) >= 0x210 && string(image[0x202:0x206]) == "HdrS" {
		at := int(binary.LittleEndian.Uint16(image[0x20e:])) + 0x200
		if at > 0x200 && at < len(image) {
			text, _, _ := bytes.Cut(image[at:min(at+128, len(image))], []byte(" "))
			if len(text) > 0 && len(text) < 65 {
				return string(text), nil
			}
		}
	}
	if m := linuxVersion.FindSubmatch(vmlinux); m != nil {
		return string(m[1]), nil
	}
	return "", errors.New("the kernel contains no release")
}
