package boot

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const vsockDevice = "/dev/vsock"

// openVsock loads the drivers of vsock. A kernel without them is an error now: the host
// would wait for an answer to the end of its patience.
func openVsock() error {
	if err := loadModules(vsockSet); err != nil {
		return err
	}
	const need = "the VMM of this machine reaches its guest by vsock only; the kernel needs CONFIG_VSOCKETS and CONFIG_VIRTIO_VSOCKETS, built in or as modules"
	f, err := os.Open(vsockDevice)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("this kernel has no vsock (%s is missing); %s", vsockDevice, need)
	}
	if err != nil {
		return fmt.Errorf("vsock: %w", err)
	}
	defer f.Close()
	cid, err := unix.IoctlGetUint32(int(f.Fd()), unix.IOCTL_VM_SOCKETS_GET_LOCAL_CID)
	if err != nil {
		return fmt.Errorf("vsock: %w", os.NewSyscallError("IOCTL_VM_SOCKETS_GET_LOCAL_CID", err))
	}
	if cid == unix.VMADDR_CID_ANY {
		return fmt.Errorf("this kernel has no driver for the machine's virtio vsock device; %s", need)
	}
	return nil
}
