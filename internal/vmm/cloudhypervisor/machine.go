package cloudhypervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/microvm"
)

// A machine is a microVM with what is particular to cloud-hypervisor.
type machine struct{ *microvm.Machine }

// bare is a machine whose guest offers a root shell instead of attest's agent.
type bare struct{ *machine }

// A design is a machine as cloud-hypervisor is told it.
type design struct {
	host    vmm.Host
	config  vmm.Config
	hw      *vmm.Hardware
	program microvm.Program
	options options
	rams    *microvm.RAM
}

// A hypervisor is one process.
type hypervisor struct {
	design
	api       *microvm.API
	dir       string
	ram       *os.File // the directory of its memory
	removeRAM func() error
	memory    *os.File // in there; nil: it goes on from a state
	ramFD     int
	from      *saved   // what it goes on from; nil: it boots
	restored  *os.File // the memory of that, if it only reads it

	eventsRead, eventsWrite *os.File
	eventsFD                int
	events                  events

	serialRead  *io.PipeReader
	serialWrite *io.PipeWriter

	mu     sync.Mutex
	serial net.Conn
	copied chan struct{} // closed when the serial line has been read; nil: it was not opened
}

var (
	_ vmm.VM          = (*machine)(nil)
	_ vmm.PowerButton = (*machine)(nil)
	_ vmm.Interrupter = (*machine)(nil)
	_ vmm.Backdoor    = (*bare)(nil)
	_ vmm.Doubtful    = (*bare)(nil)
	_ microvm.VMM     = (*hypervisor)(nil)

	_ microvm.DriverTeller = (*hypervisor)(nil)
)

// Names in its directory, and in that of its memory.
const (
	apiSocket    = "api.sock"
	serialSocket = "con.sock"
	fromDir      = "from"

	memoryFile = "memory"
	saveDir    = "save"
)

// vsockID is the name of the vsock among the devices.
const vsockID = "vsock"

// Start starts a cloud-hypervisor and lets its guest run.
func (b *backend) Start(ctx context.Context, host vmm.Host, config vmm.Config) (_ vmm.VM, err error) {
	if err := b.Check(config); err != nil {
		return nil, err
	}
	d := design{host: host, rams: &b.ram}
	if d.program, d.options, err = b.look(config); err != nil {
		return nil, err
	}
	config = d.options.WithStore(config)
	d.config, d.hw = config, config.Boot.(*vmm.Hardware)
	if microvm.Kernel(d.hw) == "" {
		return nil, b.unsupported(config, "a machine without a kernel", "attest gives it no firmware that could boot a disk")
	}
	if n := len(cmdline(d.hw)); n >= maxCmdline {
		return nil, b.unsupported(config, fmt.Sprintf("a kernel command line of %d bytes", n), fmt.Sprintf("the limit is %d; shorten cmdline", maxCmdline))
	}
	m, err := microvm.New(ctx, b.Name(), host, config, d.options.GuestOptions, d)
	if err != nil {
		return nil, err
	}
	if d.hw.Bare {
		return &bare{&machine{m}}, nil
	}
	return &machine{m}, nil
}

// Prepare returns a process that boots, or goes on from a state.
func (d design) Prepare(ctx context.Context, dir string, from *vmm.State) (spec microvm.Spec, _ microvm.VMM, err error) {
	p := &hypervisor{design: d, dir: dir, events: events{up: make(chan struct{})}}
	p.serialRead, p.serialWrite = io.Pipe()
	p.api = microvm.NewAPI(filepath.Join(dir, apiSocket), apiBase, chain)
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if p.ram, p.removeRAM, err = d.rams.Directory(ctx, d.host.Supervisor, d.config.Dir); err != nil {
		return spec, nil, err
	}
	p.ramFD = spec.Inherit(p.ram)
	if from == nil {
		p.memory, err = p.makeMemory()
	} else if err = microvm.CheckMemory(from, microvm.Megabytes(d.hw)); err == nil {
		memory := from.Memory
		if !d.program.Version.Before(readsSince) {
			if p.restored, err = vmm.ReadOnly(memory); err != nil {
				return spec, nil, err
			}
			memory = p.restored
		}
		p.from, err = cloned(from.Device, microvm.Inherited(spec.Inherit(memory)))
	}
	if err != nil {
		return spec, nil, err
	}
	if p.eventsRead, p.eventsWrite, err = os.Pipe(); err != nil {
		return spec, nil, err
	}
	p.eventsFD = spec.Inherit(p.eventsWrite)
	spec.Path, spec.Links, spec.View = d.program.Path, map[string]string{}, microvm.View(d.program, d.config)
	spec.Args = []string{"--api-socket", "path=" + apiSocket, "--event-monitor", fmt.Sprintf("fd=%d", p.eventsFD)}
	for i, disk := range d.hw.Disks {
		spec.Links[diskName(i)] = disk.Path
	}
	return spec, p, nil
}

func diskName(i int) string { return fmt.Sprintf("d%d", i) }

// inRAM is the path of a file beside its memory, for this process.
func (p *hypervisor) inRAM(name string) string {
	return filepath.Join(microvm.Inherited(int(p.ram.Fd())), name)
}

// theirs is the same for cloud-hypervisor.
func (p *hypervisor) theirs(name string) string {
	return filepath.Join(microvm.Inherited(p.ramFD), name)
}

func (p *hypervisor) makeMemory() (*os.File, error) {
	f, err := os.OpenFile(p.inRAM(memoryFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return f, f.Truncate(p.bytes())
}

func (p *hypervisor) bytes() int64 { return int64(microvm.Megabytes(p.hw)) << 20 }

// Close releases what belongs to a process that has ended.
func (p *hypervisor) Close() error {
	p.api.Close()
	var errs []error
	for _, f := range []*os.File{p.eventsWrite, p.memory, p.restored, p.ram} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	p.events.happened()
	if p.eventsRead != nil {
		errs = append(errs, p.eventsRead.Close())
	}
	p.endSerial()
	if p.removeRAM != nil {
		errs = append(errs, p.removeRAM())
	}
	return errors.Join(errs...)
}

// Begin boots or restores the machine.
func (p *hypervisor) Begin(ctx context.Context, process *microvm.Process, paused bool) error {
	go func() {
		<-process.Done()
		p.endSerial()
	}()
	// The process has a copy: without ours, its end is that of the events.
	p.eventsWrite.Close()
	p.eventsWrite = nil
	p.events.watch(p.eventsRead, func() { process.Signal(syscall.SIGKILL) })
	if err := p.api.Await(ctx, process.Done()); err != nil {
		return err
	}
	if p.from != nil {
		return p.restore(ctx, paused)
	}
	return p.boot(ctx, paused)
}

// DriverUp is told by an event, when the guest boots.
func (p *hypervisor) DriverUp() <-chan struct{} {
	if p.from != nil {
		return nil
	}
	return p.events.up
}

func (p *hypervisor) put(ctx context.Context, path string, body any) error {
	return p.api.Do(ctx, "PUT", path, body, nil)
}

// boot lays out the machine and starts it.
func (p *hypervisor) boot(ctx context.Context, paused bool) error {
	cpus := microvm.CPUs(p.hw)
	c := vmConfig{
		CPUs:    cpusConfig{Boot: cpus, Max: cpus},
		Memory:  memoryConfig{Zones: []zoneConfig{{ID: "mem0", Size: p.bytes(), File: p.theirs(memoryFile), Shared: true}}},
		Payload: payloadConfig{Kernel: microvm.Kernel(p.hw), Cmdline: cmdline(p.hw), Initramfs: p.hw.Initrd},
		RNG:     rngConfig{"/dev/urandom"},
		Serial:  consoleConfig{Mode: "Socket", Socket: serialSocket},
		Console: consoleConfig{Mode: "Off"},
		Vsock:   vsockConfig{ID: vsockID, CID: p.options.GuestCID(), Socket: microvm.VsockSocket},
		PVPanic: true,
	}
	for i, d := range p.hw.Disks {
		c.Disks = append(c.Disks, diskConfig{Path: diskName(i), Type: "Raw", ReadOnly: d.ReadOnly, Serial: d.Serial, Limiter: p.options.DiskLimiter()})
	}
	for i, n := range p.config.NICs {
		c.Nets = append(c.Nets, netConfig{ID: fmt.Sprintf("net%d", i), TAP: microvm.TAPName(i), MAC: n.MAC.String()})
	}
	err := p.put(ctx, "/vm.create", c)
	if err == nil {
		// Before the guest says anything: older versions lose what nobody listens to.
		err = p.openSerial(ctx)
	}
	if err == nil {
		err = microvm.Unanswered(p.put(ctx, "/vm.boot", nil))
	}
	if err == nil && paused {
		err = microvm.Unanswered(p.Pause(ctx))
	}
	return err
}

// restore restores the machine. Sockets, disks and TAPs have the names that are in the
// state, in the directory and the namespace of this process.
func (p *hypervisor) restore(ctx context.Context, paused bool) error {
	dir := filepath.Join(p.dir, fromDir)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for name, content := range map[string][]byte{configFile: p.from.Config, stateFile: p.from.State} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	err := p.put(ctx, "/vm.restore", restoreConfig{"file://" + fromDir})
	if err == nil {
		err = p.openSerial(ctx)
	}
	if err == nil && !paused {
		err = microvm.Unanswered(p.Resume(ctx))
	}
	return err
}

// openSerial connects with the serial line. What the guest says is passed on from here on.
func (p *hypervisor) openSerial(ctx context.Context) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(p.dir, serialSocket))
	if err != nil {
		return fmt.Errorf("its serial line: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serial, p.copied = conn, make(chan struct{})
	go func() {
		defer close(p.copied)
		io.Copy(p.serialWrite, conn)
		p.serialWrite.Close()
	}()
	return nil
}

// endSerial waits for the end of what the serial line of a process has said that has ended.
func (p *hypervisor) endSerial() {
	p.mu.Lock()
	conn, copied := p.serial, p.copied
	p.mu.Unlock()
	if conn == nil {
		p.serialWrite.Close()
		return
	}
	<-copied
	conn.Close()
}

// Serial is what came over the socket.
func (p *hypervisor) Serial(*microvm.Process) io.Reader { return p.serialRead }

// Type writes to the socket.
func (p *hypervisor) Type(ctx context.Context, _ *microvm.Process, text []byte) error {
	p.mu.Lock()
	conn := p.serial
	p.mu.Unlock()
	if conn == nil {
		return microvm.ErrGone
	}
	return microvm.Write(ctx, conn, text)
}

// stateIs reports whether the machine is in a state of cloud-hypervisor's.
func (p *hypervisor) stateIs(ctx context.Context, want string) bool {
	var info struct {
		State string `json:"state"`
	}
	return p.api.Do(ctx, "GET", "/vm.info", nil, &info) == nil && info.State == want
}

// Pause stops the vCPUs. cloud-hypervisor refuses it where they stand still already.
func (p *hypervisor) Pause(ctx context.Context) error {
	return p.unless(ctx, "Paused", p.put(ctx, "/vm.pause", nil))
}

// Resume lets them go on.
func (p *hypervisor) Resume(ctx context.Context) error {
	return p.unless(ctx, "Running", p.put(ctx, "/vm.resume", nil))
}

// unless forgives a refused transition into a state in which the machine is.
func (p *hypervisor) unless(ctx context.Context, state string, err error) error {
	if refused := (*microvm.RefusedError)(nil); errors.As(err, &refused) && p.stateIs(ctx, state) {
		return nil
	}
	return err
}

// Ended: only a power-off ends a process without an error, and a reset by way of us.
func (p *hypervisor) Ended(status supervise.Status) vmm.ExitReason {
	panicked, reset := p.events.happened()
	switch {
	case panicked:
		return vmm.Panicked
	case reset:
		return vmm.Reset
	case status.Success():
		return vmm.PoweredOff
	}
	return vmm.Running
}

// Save saves the paused machine. Of one that has booted here, cloud-hypervisor leaves out
// the memory, which is a file. Of one that has gone on from a state it writes all of it.
func (p *hypervisor) Save(ctx context.Context, memory *os.File) (device []byte, err error) {
	dir := p.inRAM(saveDir)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := p.put(ctx, "/vm.snapshot", snapshotConfig{"file://" + p.theirs(saveDir)}); err != nil {
		return nil, err
	}
	var s saved
	if s.Config, err = microvm.ReadWritten(p.inRAM("."), filepath.Join(saveDir, configFile)); err != nil {
		return nil, err
	}
	if s.State, err = microvm.ReadWritten(p.inRAM("."), filepath.Join(saveDir, stateFile)); err != nil {
		return nil, err
	}
	from, err := microvm.OpenWritten(p.inRAM("."), filepath.Join(saveDir, rangesFile))
	switch {
	case err == nil:
		defer from.Close()
		// The ranges of the memory follow each other there as in the file of the zone.
		if st, err := from.Stat(); err != nil || st.Size() != p.bytes() {
			return nil, fmt.Errorf("it has written %d bytes of memory, and the machine has %d (%w)", st.Size(), p.bytes(), err)
		}
		if s.State, err = withoutRanges(s.State); err != nil {
			return nil, err
		}
	case errors.Is(err, os.ErrNotExist) && p.memory != nil:
		from = p.memory
	default:
		return nil, fmt.Errorf("it has not written the memory: %w", err)
	}
	if err := vmm.CopySparse(memory, from); err != nil {
		return nil, err
	}
	return json.Marshal(s)
}

// Backdoor is the guest's root shell.
func (m *bare) Backdoor() (shell, upload net.Conn) { return m.Shell() }

// CanSave refuses a guest that is reached by that shell alone.
func (m *bare) CanSave(context.Context) error { return m.Reaches() }

// WillSave: whether the agent will run there, nobody knows yet.
func (m *bare) WillSave() error { return nil }

// PressPower presses the power button.
func (m *machine) PressPower(ctx context.Context) error {
	return m.Do(ctx, func(v microvm.VMM) error { return v.(*hypervisor).put(ctx, "/vm.power-button", nil) })
}

// InjectNMI interrupts all vCPUs.
func (m *machine) InjectNMI(ctx context.Context) error {
	return m.Do(ctx, func(v microvm.VMM) error { return v.(*hypervisor).put(ctx, "/vm.nmi", nil) })
}
