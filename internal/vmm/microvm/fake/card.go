package fake

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Plug opens a TAP, and answers every frame that comes with another that has the addresses
// exchanged.
func Plug(tap string) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("open the TAP device", err)
	}
	req, err := unix.NewIfreq(tap)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	f := os.NewFile(uintptr(fd), tap) // which is a TAP by now, as the runtime's poller wants it
	go func() {
		const header = 10 // of virtio-net
		for buf := make([]byte, 64<<10); ; {
			got, err := f.Read(buf)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return
			}
			frame := buf[header:got]
			if len(frame) >= 14 {
				for i := range 6 {
					frame[i], frame[6+i] = frame[6+i], frame[i]
				}
				f.Write(buf[:got])
			}
		}
	}()
	return nil
}
