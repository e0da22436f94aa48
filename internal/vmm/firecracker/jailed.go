package firecracker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/firecracker/jail"
	"github.com/attest-vm/attest/internal/vmm/microvm"
)

// Names in its directory, in a jail.
const (
	kernelFile  = "kernel"
	initrdFile  = "initrd"
	savedFile   = "memory"
	restoreFile = "from"
)

// jailed is a process that Firecracker's jailer confines. What it opens is in its directory, by
// the same names as without a jail: a state has them.
func (p *firecracker) jailed(ctx context.Context, args []string) (spec microvm.Spec, err error) {
	jailer, err := p.backend.jailer(p.program, p.options)
	if err != nil {
		return spec, err
	}
	uid, gid := p.options.jailed()
	order := jail.Order{
		Jailer: jailer.Path, Firecracker: p.program.Path, Dir: p.dir, ID: jail.ID(p.config.Name), UID: uid, GID: gid,
		Args: append(args, "--log-path", jail.Log), Files: []jail.File{{Name: kernelFile, Path: microvm.Kernel(p.hw)}},
	}
	p.paths = paths{kernel: kernelFile, save: savedFile}
	if p.hw.Initrd != "" {
		order.Files, p.paths.initrd = append(order.Files, jail.File{Name: initrdFile, Path: p.hw.Initrd}), initrdFile
	}
	for i, disk := range p.hw.Disks {
		order.Files = append(order.Files, jail.File{Name: driveID(i), Path: disk.Path, Write: !disk.ReadOnly})
		if !disk.ReadOnly {
			if err := give(disk.Path, uid, gid); err != nil {
				return spec, err
			}
		}
	}
	for i, path := range p.options.Pmem {
		order.Files = append(order.Files, jail.File{Name: pmemID(i), Path: path})
	}
	memories, err := p.memories(ctx, &order, &spec)
	if err != nil {
		return spec, err
	}
	order.Memories = spec.Inherit(memories)
	for i, f := range order.Files {
		if f.Path == "" {
			continue
		}
		if order.Files[i].Path, err = filepath.Abs(f.Path); err != nil {
			return spec, err
		}
	}
	spec.Path, spec.First = "/proc/self/exe", true
	spec.Argv, err = order.Argv()
	return spec, err
}

// memories are the file that it saves to, and that which it goes on from. Both belong to a
// file system that attest has for them, or have a path of the host: no other can be shown in a
// jail. The namespace of that file system is returned.
func (p *firecracker) memories(ctx context.Context, order *jail.Order, spec *microvm.Spec) (namespace *os.File, err error) {
	ram := &p.backend.ram
	if p.memory, namespace, err = ram.File(ctx, p.host.Supervisor); err != nil {
		return nil, err
	}
	order.Files = append(order.Files, jail.File{Name: savedFile, FD: spec.Inherit(p.memory), Write: true})
	if p.from == nil {
		return namespace, nil
	}
	p.paths.restore = restoreFile
	if path := pathOf(p.from.Memory); path != "" {
		order.Files = append(order.Files, jail.File{Name: restoreFile, Path: path})
		return namespace, nil
	}
	if ram.Has(p.from.Memory) {
		p.restored, err = vmm.ReadOnly(p.from.Memory)
	} else if p.restored, _, err = ram.File(ctx, p.host.Supervisor); err == nil {
		// Saved without a jail in this process, or where nobody can write: a copy of its own.
		err = vmm.CopySparse(p.restored, p.from.Memory)
	}
	if err != nil {
		return nil, err
	}
	order.Files = append(order.Files, jail.File{Name: restoreFile, FD: spec.Inherit(p.restored)})
	return namespace, nil
}

// pathOf is the path of an open file; empty: it has none.
func pathOf(f *os.File) string {
	path, err := os.Readlink(microvm.Inherited(int(f.Fd())))
	if err != nil {
		return ""
	}
	its, err := f.Stat()
	if err != nil {
		return ""
	}
	if there, err := os.Stat(path); err != nil || !os.SameFile(its, there) {
		return ""
	}
	return path
}

// give makes a file that its machine writes to the jailed user's. A file of several names would be
// somebody else's as well.
func give(path string, uid, gid int) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if n := st.Sys().(*syscall.Stat_t).Nlink; n != 1 {
		return fmt.Errorf("the disk %s has %d names, and is not the machine's alone", path, n)
	}
	return os.Chown(path, uid, gid)
}

// writeState writes the state that it goes on from.
func (p *firecracker) writeState(path string) error {
	err := os.WriteFile(path, p.from.Device, 0o600)
	if err == nil && p.options.Jailer != "" {
		uid, gid := p.options.jailed()
		err = os.Chown(path, uid, gid)
	}
	return err
}

// MemoryFile makes a file that another jail can show, for a machine in a jail.
func (m *machine) MemoryFile(ctx context.Context) (*os.File, error) {
	if m.design.options.Jailer == "" {
		return nil, nil
	}
	f, _, err := m.design.backend.ram.File(ctx, m.design.host.Supervisor)
	return f, err
}

// killed is the signal that has killed a Firecracker in a jail, by the exit code of the helper
// that is its parent; 0: it has ended by itself.
func killed(status supervise.Status) syscall.Signal {
	// Firecracker's own codes begin at 148.
	if s := syscall.Signal(status.ExitCode - 128); s > 0 && s <= syscall.SIGTERM {
		return s
	}
	return 0
}
