package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The requests of linux/fb.h for what a framebuffer is.
const (
	fbioGetVScreenInfo = 0x4600
	fbioGetFScreenInfo = 0x4602
)

// fbVariable is the beginning of struct fb_var_screeninfo of linux/fb.h, and as large as it.
type fbVariable struct {
	Width, Height               uint32
	VirtualWidth, VirtualHeight uint32
	X, Y                        uint32 // where on the virtual screen the visible one begins
	Bits, Grayscale             uint32
	Red, Green, Blue, Alpha     fbBits
	_                           [20]uint32
}

// fbBits is struct fb_bitfield.
type fbBits struct{ Offset, Length, Right uint32 }

// fbFixed is struct fb_fix_screeninfo of linux/fb.h on machines of 64 bits.
type fbFixed struct {
	_          [24]byte
	Size       uint32 // of its memory, bytes
	Type       uint32
	_          [3]uint32
	_          [2]uint16
	LineLength uint32 // bytes
	_          [28]byte
}

var framebufferName = regexp.MustCompile(`^(/dev/)?(fb[0-9]{1,2})$`)

// showFramebuffer writes what a framebuffer has: /dev/fb0, or another by its name.
func showFramebuffer(_ context.Context, display string, w io.Writer) error {
	name := "fb0"
	if display != "" {
		found := framebufferName.FindStringSubmatch(display)
		if found == nil {
			return fmt.Errorf("%q is not a framebuffer; want fb0 or another number", display)
		}
		name = found[2]
	}
	f, err := os.Open(filepath.Join("/dev", name))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return absent("there is no /dev/%s: the kernel has no driver for a screen (Debian: install linux-image-amd64, the cloud kernel has none)", name)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var v fbVariable
	var x fbFixed
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	failed := unix.Errno(0)
	err = raw.Control(func(fd uintptr) {
		if _, _, failed = unix.Syscall(unix.SYS_IOCTL, fd, fbioGetVScreenInfo, uintptr(unsafe.Pointer(&v))); failed == 0 {
			_, _, failed = unix.Syscall(unix.SYS_IOCTL, fd, fbioGetFScreenInfo, uintptr(unsafe.Pointer(&x)))
		}
	})
	if err == nil && failed != 0 {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("ask /dev/%s what it is: %w", name, err)
	}
	if err := readFramebuffer(f, v, x, w); err != nil {
		return fmt.Errorf("/dev/%s: %w", name, err)
	}
	return nil
}

// readFramebuffer writes the visible part of a framebuffer's memory as PPM.
func readFramebuffer(memory io.ReaderAt, v fbVariable, x fbFixed, w io.Writer) error {
	ch := func(b fbBits) channel { return channel{uint(b.Offset) & 31, uint(b.Length)} }
	format := pixelFormat{
		size: int(v.Bits / 8), bigEndian: binary.NativeEndian.Uint16([]byte{0, 1}) == 1,
		red: ch(v.Red), green: ch(v.Green), blue: ch(v.Blue),
	}
	if err := format.check(); err != nil || v.Bits%8 != 0 {
		return fmt.Errorf("a picture of %d bits a pixel cannot be read; want 16, 24 or 32", v.Bits)
	}
	if x.Type != 0 { // FB_TYPE_PACKED_PIXELS
		return fmt.Errorf("its memory has planes, or text (type %d of linux/fb.h); want pixels", x.Type)
	}
	width, height := int(v.Width), int(v.Height)
	if int(x.LineLength) < (int(v.X)+width)*format.size {
		return fmt.Errorf("its lines of %d bytes are shorter than %d pixels", x.LineLength, v.X+v.Width)
	}
	if err := writeHeader(w, width, height); err != nil {
		return err
	}
	line, rgb := make([]byte, width*format.size), make([]byte, 3*width)
	for y := range height {
		at := (int64(v.Y)+int64(y))*int64(x.LineLength) + int64(v.X)*int64(format.size)
		if n, err := memory.ReadAt(line, at); n < len(line) {
			return fmt.Errorf("read line %d of %d: %w", y, height, err)
		}
		format.line(rgb, line)
		if _, err := w.Write(rgb); err != nil {
			return err
		}
	}
	return nil
}
