package attest

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/boot"
	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/printable"
	"github.com/attest-vm/attest/internal/vmm"
)

// A root of its own is one file system on one disk, as most machines have it: it
// can be exported by NFS, frozen and trimmed, have quotas and swap files, and hold
// the layers of containers. The image's files are copied to it once, by a guest that
// does nothing else: so every file system that the kernel can write can be had, with
// all owners and attributes, and without root on the host. Machines write to an overlay
// of their own.

func (m *Machine) plainRoot() bool { return m.config.plainRoot() }

type rootKey struct {
	image, filesystem string
	size              int64
}

// root makes the root of a machine's image once for the lab.
func (l *Lab) root(ctx context.Context, img *image.Image, m *Machine) (*image.Root, error) {
	kernel, err := l.fillKernel(ctx, img, m)
	if err != nil {
		return nil, err
	}
	l.imagesMu.Lock()
	defer l.imagesMu.Unlock()
	key := rootKey{img.ID, m.config.Root, m.config.RootSize}
	if made := l.roots[key]; made != nil {
		return made, nil
	}
	made, err := l.host.images.MakeRoot(ctx, img, key.filesystem, key.size, func(ctx context.Context, path string) error {
		return m.fillRoot(ctx, img, kernel, path)
	})
	if err == nil {
		l.roots[key] = made
	}
	return made, err
}

// fillKernel is the kernel of the guest that copies a root: the image's. One that comes with
// an initrd has its drivers there, and none for attest's initramfs, so it is attest's own.
func (l *Lab) fillKernel(ctx context.Context, img *image.Image, m *Machine) (*image.Kernel, error) {
	if m.config.initrd() == "" || img.Kernel.Modules.Path != "" {
		return img.Kernel, nil
	}
	base, err := l.image(ctx, Debian{})
	if err != nil {
		return nil, err
	}
	return base.Kernel, nil
}

// fillLimit is how long a guest may take to copy a root: seconds for most.
const fillLimit = 10 * time.Minute

// fillRoot copies the files of an image into the empty file system in a file.
func (m *Machine) fillRoot(ctx context.Context, img *image.Image, kernel *image.Kernel, path string) error {
	h := m.lab.host
	limit := h.scale(fillLimit)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("its guest did not end within %v", limit))
	defer cancel()
	binary, err := h.guestBinary(ctx)
	if err != nil {
		return err
	}
	hw := &vmm.Hardware{Memory: 512, Type: m.config.Type}
	guest, initramfs := boot.Guest{Fill: rand.Text()}, boot.Initramfs{Binary: binary, Modules: kernel.Modules.Path}
	if m.config.Root != "ext4" {
		initramfs.Filesystems = append(initramfs.Filesystems, m.config.Root)
	}
	guest.Root, guest.Layers = layersOf(img, &initramfs, hw)
	hw.Disks = append(hw.Disks, vmm.Disk{Serial: boot.SerialDisk, Path: path, Format: "raw"})
	if err := m.kernel(ctx, hw, kernel, guest, initramfs); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(h.supervisor.Dir(), "r")
	if err != nil {
		return &InfraError{m.Name(), "create a directory", err}
	}
	defer os.RemoveAll(dir)
	said, err := m.runOnce(ctx, vmm.Config{Name: m.Name() + "-root", Dir: dir, Boot: hw})
	if err != nil {
		return err
	}
	if strings.Contains(said, boot.FilledPrefix+guest.Fill+" ") {
		return nil
	}
	reason := "its guest ended early"
	if fatal := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(boot.FatalPrefix) + `(.*)$`).FindStringSubmatch(said); fatal != nil {
		reason = printable.Line(fatal[1])
	}
	if strings.Contains(reason, "no space left on device") {
		return &ConfigError{fmt.Sprintf("machine %q", m.Name()), fmt.Sprintf("root_size: the image does not fit into %d MiB of %s; give it more", m.config.RootSize>>20, m.config.Root)}
	}
	return &image.BuildError{Image: img.Title, Phase: "copying it to a root of " + m.config.Root, Reason: reason, Output: printable.Text(said[max(0, len(said)-2000):])}
}

// maxSaid is how much is kept of what a guest says that runs once.
const maxSaid = 64 << 10

// runOnce runs a guest to its end, and returns the end of its console.
func (m *Machine) runOnce(ctx context.Context, config vmm.Config) (string, error) {
	vm, err := m.backend.Start(ctx, m.lab.host.vmmHost(), config)
	if err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { vm.Kill() })
	defer stop()
	console := vm.Console()
	defer console.Close()
	var said []byte
	for buf := make([]byte, 4096); ; {
		n, err := console.Read(buf)
		said = append(said, buf[:n]...)
		if extra := len(said) - maxSaid; extra > 0 {
			said = said[extra:]
		}
		if err != nil {
			break
		}
	}
	<-vm.Done() // by itself, or by the end of ctx
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	return strings.ReplaceAll(string(said), "\r", ""), nil
}
