package firecracker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/microvm"
)

// A machine is a microVM with what is known of this Firecracker.
type machine struct {
	*microvm.Machine
	design design
}

// bare is a machine whose guest offers a root shell instead of attest's agent.
type bare struct{ *machine }

// A design is a machine as Firecracker is told it.
type design struct {
	backend *backend
	host    vmm.Host
	config  vmm.Config
	hw      *vmm.Hardware
	program microvm.Program
	options options
}

// A firecracker is one process.
type firecracker struct {
	design
	api      *microvm.API
	dir      string
	memory   *os.File // what it saves to
	from     *vmm.State
	restored *os.File // the memory of that, which it only reads
	paths    paths
}

// paths are those by which it opens what it is told.
type paths struct{ kernel, initrd, save, restore string }

var (
	_ vmm.VM          = (*machine)(nil)
	_ vmm.Doubtful    = (*machine)(nil)
	_ vmm.CtrlAltDel  = (*machine)(nil)
	_ vmm.MemoryMaker = (*machine)(nil)
	_ vmm.Backdoor    = (*bare)(nil)
	_ microvm.VMM     = (*firecracker)(nil)
)

// Names in its directory.
const (
	apiSocket = "api.sock"
	stateFile = "state"
)

// Start starts a Firecracker and lets its guest run.
func (b *backend) Start(ctx context.Context, host vmm.Host, config vmm.Config) (_ vmm.VM, err error) {
	if err := b.Check(config); err != nil {
		return nil, err
	}
	d := design{backend: b, host: host}
	if d.program, d.options, err = b.look(config); err != nil {
		return nil, err
	}
	config = d.options.WithStore(config)
	d.config, d.hw = config, config.Boot.(*vmm.Hardware)
	if microvm.Kernel(d.hw) == "" {
		return nil, b.unsupported(config, "a machine without a kernel", "it has no firmware that could boot a disk")
	}
	if n := len(cmdline(d.hw, d.options)) + cmdlineOfDevice*(len(d.hw.Disks)+len(d.options.Pmem)+len(config.NICs)+2); n > maxCmdline {
		return nil, b.unsupported(config, fmt.Sprintf("a kernel command line of %d bytes, with what each device adds to it,", n), fmt.Sprintf("the limit is %d; shorten cmdline", maxCmdline))
	}
	m, err := microvm.New(ctx, b.Name(), host, config, d.options.GuestOptions, d)
	if err != nil {
		return nil, err
	}
	if d.hw.Bare {
		return &bare{&machine{m, d}}, nil
	}
	return &machine{m, d}, nil
}

// Prepare returns a process that boots, or goes on from a state.
func (d design) Prepare(ctx context.Context, dir string, from *vmm.State) (spec microvm.Spec, _ microvm.VMM, err error) {
	p := &firecracker{design: d, dir: dir, from: from, api: microvm.NewAPI(filepath.Join(dir, apiSocket), "", faultMessage)}
	if from != nil {
		if err := microvm.CheckMemory(from, microvm.Megabytes(d.hw)); err != nil {
			return spec, nil, err
		}
	}
	args := []string{"--api-sock", apiSocket, "--level", "Warning"}
	if d.options.PCI {
		args = append(args, "--enable-pci")
	}
	if d.options.Jailer != "" {
		spec, err = p.jailed(ctx, args)
	} else {
		spec, err = p.free(args)
	}
	if err != nil {
		return spec, nil, errors.Join(err, p.Close())
	}
	return spec, p, nil
}

// free is a process that attest confines.
func (p *firecracker) free(args []string) (spec microvm.Spec, err error) {
	spec = microvm.Spec{Path: p.program.Path, Links: map[string]string{}, View: microvm.View(p.program, p.config)}
	if p.memory, err = vmm.MemoryFile("attest-save"); err != nil {
		return spec, err
	}
	p.paths = paths{kernel: microvm.Kernel(p.hw), initrd: p.hw.Initrd, save: microvm.Inherited(spec.Inherit(p.memory))}
	if p.from != nil {
		if p.restored, err = vmm.ReadOnly(p.from.Memory); err != nil {
			return spec, err
		}
		p.paths.restore = microvm.Inherited(spec.Inherit(p.restored))
	}
	for i, disk := range p.hw.Disks {
		spec.Links[driveID(i)] = disk.Path
	}
	for i, path := range p.options.Pmem {
		if path, err = filepath.Abs(path); err != nil {
			return spec, err
		}
		spec.Links[pmemID(i)] = path
		if spec.View != nil {
			spec.View.Read = append(spec.View.Read, path)
		}
	}
	// What it says of itself goes to its standard error: the guest's console is on the
	// other.
	spec.Args = append(args, "--log-path", "/proc/self/fd/2")
	return spec, nil
}

// Close releases what belongs to a process that has ended.
func (p *firecracker) Close() error {
	p.api.Close()
	var errs []error
	for _, f := range []*os.File{p.memory, p.restored} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	p.backend.ram.Sweep()
	return errors.Join(errs...)
}

// Begin boots or restores the machine.
func (p *firecracker) Begin(ctx context.Context, process *microvm.Process, paused bool) error {
	if err := p.api.Await(ctx, process.Done()); err != nil {
		return err
	}
	if p.from != nil {
		return p.load(ctx, paused)
	}
	return p.boot(ctx, paused)
}

// Serial is its standard output.
func (p *firecracker) Serial(process *microvm.Process) io.Reader { return process.Stdout() }

// Type writes to its standard input.
func (p *firecracker) Type(ctx context.Context, process *microvm.Process, text []byte) error {
	return process.Type(ctx, text)
}

func driveID(i int) string { return fmt.Sprintf("d%d", i) }
func pmemID(i int) string  { return fmt.Sprintf("pmem%d", i) }

// boot configures the machine and starts it.
func (p *firecracker) boot(ctx context.Context, still bool) error {
	put := func(path string, body any) error { return p.api.Do(ctx, "PUT", path, body, nil) }
	err := put("/machine-config", machineConfig{VCPUs: microvm.CPUs(p.hw), Memory: microvm.Megabytes(p.hw), HugePages: p.options.HugePages})
	if err == nil {
		err = put("/boot-source", bootSource{Kernel: p.paths.kernel, Initrd: p.paths.initrd, Cmdline: cmdline(p.hw, p.options)})
	}
	for i, d := range p.hw.Disks { // the guest numbers them in this order
		if err == nil {
			err = put("/drives/"+driveID(i), drive{ID: driveID(i), Path: driveID(i), ReadOnly: d.ReadOnly, CacheType: p.options.CacheType, IOEngine: p.options.IOEngine, Limiter: p.options.DiskLimiter()})
		}
	}
	for i := range p.options.Pmem {
		if err == nil {
			err = put("/pmem/"+pmemID(i), pmem{ID: pmemID(i), Path: pmemID(i), ReadOnly: true})
		}
	}
	for i, n := range p.config.NICs {
		if err == nil {
			id := fmt.Sprintf("net%d", i)
			err = put("/network-interfaces/"+id, networkInterface{ID: id, TAP: microvm.TAPName(i), MAC: n.MAC.String()})
		}
	}
	if err == nil {
		err = put("/vsock", vsock{CID: p.options.GuestCID(), Path: microvm.VsockSocket})
	}
	if err == nil && p.options.entropy() {
		err = put("/entropy", struct{}{})
	}
	if err == nil {
		err = microvm.Unanswered(put("/actions", action{Type: "InstanceStart"}))
	}
	if err == nil && still {
		err = microvm.Unanswered(p.setState(ctx, paused))
	}
	return err
}

// load restores the machine. Sockets, disks and TAPs have the names that are in the
// state, in the directory and the namespace of this process.
func (p *firecracker) load(ctx context.Context, still bool) error {
	path := filepath.Join(p.dir, stateFile)
	if err := p.writeState(path); err != nil {
		return err
	}
	err := p.api.Do(ctx, "PUT", "/snapshot/load", snapshotLoad{
		State:  stateFile,
		Memory: memoryBackend{Type: "File", Path: p.paths.restore},
		Resume: !still,
	}, nil)
	if !still {
		err = microvm.Unanswered(err)
	}
	return errors.Join(err, os.Remove(path))
}

func (p *firecracker) setState(ctx context.Context, state string) error {
	return p.api.Do(ctx, "PATCH", "/vm", vmState{state}, nil)
}

// Pause stops the vCPUs.
func (p *firecracker) Pause(ctx context.Context) error { return p.setState(ctx, paused) }

// Resume lets them go on.
func (p *firecracker) Resume(ctx context.Context) error { return p.setState(ctx, resumed) }

// Ended: a process ends without an error by a reset only.
func (p *firecracker) Ended(status supervise.Status) vmm.ExitReason {
	switch {
	case status.Success():
		return vmm.Reset
	case p.options.Jailer != "" && killed(status) != 0:
		return vmm.Killed
	}
	return vmm.Running
}

// PressCtrlAltDel presses these keys on the one keyboard that Firecracker has.
func (m *machine) PressCtrlAltDel(ctx context.Context) error {
	return m.Do(ctx, func(v microvm.VMM) error {
		return v.(*firecracker).api.Do(ctx, "PUT", "/actions", action{Type: "SendCtrlAltDel"}, nil)
	})
}

// CanSave and WillSave refuse what unsavable says.
func (m *machine) CanSave(context.Context) error { return m.WillSave() }

func (m *machine) WillSave() error {
	d := m.design
	if why := unsavable(d.program, d.options); why != "" {
		return d.backend.unsupported(d.config, "snapshot", why)
	}
	return nil
}

// unsavable is why a machine cannot go on from what would be saved of it: for its version, or
// for huge pages, which Firecracker restores by userfaultfd alone, and so without anything that
// clones share. Empty: it can.
func unsavable(p microvm.Program, o options) string {
	switch {
	case within(p.Version, lostSince, lostBefore):
		return "with Firecracker " + p.Full + " nobody reaches a guest that was restored; 1.16.1 does not have that bug"
	case o.HugePages == "2M":
		return `Firecracker cannot map a saved memory with huge_pages "2M"; "Transparent" can be saved`
	}
	return ""
}

// Backdoor is the guest's root shell.
func (m *bare) Backdoor() (shell, upload net.Conn) { return m.Shell() }

// CanSave also refuses a guest that is reached by that shell alone.
func (m *bare) CanSave(ctx context.Context) error {
	return cmp.Or(m.machine.CanSave(ctx), m.Reaches())
}

// Save saves the paused machine: Firecracker writes all memory to a file that it has had
// from the beginning, of which the copy leaves out what is zero.
func (p *firecracker) Save(ctx context.Context, memory *os.File) (device []byte, err error) {
	defer p.memory.Truncate(0)
	path := filepath.Join(p.dir, stateFile)
	defer os.Remove(path)
	err = p.api.Do(ctx, "PUT", "/snapshot/create", snapshotCreate{Type: "Full", State: stateFile, Memory: p.paths.save}, nil)
	if err == nil {
		device, err = microvm.ReadWritten(p.config.Dir, filepath.Join(filepath.Base(p.dir), stateFile))
	}
	if err == nil {
		err = vmm.CopySparse(memory, p.memory)
	}
	return device, err
}
