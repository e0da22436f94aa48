package qemu

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/socketpair"
	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/qemu/qmp"
)

// A machine is one running QEMU.
type machine struct {
	name    string
	process *supervise.Process
	monitor *qmp.Client
	console net.Conn
	agent   *vmm.Channel
	output  *vmm.Tail // what QEMU itself says
	events  vmm.EventLog
	done    chan struct{}
	saved   saved
	slots   slotState // its disks are guarded by mu

	typing sync.Mutex // one writer to the console at a time

	mu     sync.Mutex
	reason string // of the last SHUTDOWN event
	ports  ports
	stuck  string // why QEMU stopped the vCPUs by itself; the machine was ended then
	exit   vmm.Exit
}

var (
	_ vmm.VM          = (*machine)(nil)
	_ vmm.PowerButton = (*machine)(nil)
	_ vmm.Rebooter    = (*machine)(nil)
	_ vmm.Pauser      = (*machine)(nil)
	_ vmm.Snapshotter = (*machine)(nil)
	_ vmm.Crasher     = (*machine)(nil)
	_ vmm.LinkSetter  = (*machine)(nil)
	_ vmm.Monitor     = (*machine)(nil)
	_ vmm.SlotOwner   = (*machine)(nil)
	_ vmm.Doubtful    = (*machine)(nil)
)

// greetTimeout is how long QEMU may take until it speaks QMP: 50 ms as a rule,
// seconds on a host under load.
const greetTimeout = time.Minute

// Start starts a QEMU and lets its guest run.
func (b *backend) Start(ctx context.Context, host vmm.Host, config vmm.Config) (_ vmm.VM, err error) {
	if err := b.Check(config); err != nil {
		return nil, err
	}
	hw, ok := config.Boot.(*vmm.Hardware)
	if !ok {
		return b.startScript(ctx, host, config, config.Boot.(*vmm.Command))
	}
	if hw.Type == "microvm" && hw.Kernel == "" {
		return nil, &vmm.UnsupportedError{
			Machine: config.Name, Operation: "machine type microvm without a kernel", Backend: b.Name(),
			Reason: "its firmware cannot boot a disk",
		}
	}
	qemu, err := b.find()
	if err != nil {
		return nil, err
	}
	disks := slices.Clone(hw.Disks)
	for _, d := range hw.SlotDisks {
		disks = append(disks, d.Disk)
	}
	if err := checkDisks(config.Name, disks); err != nil {
		return nil, err
	}
	began := time.Now()
	var cleanup closers
	defer func() { cleanup.close(err != nil) }()
	sockets := 3
	if hw.Bare {
		sockets = 5
	}
	ours, theirs, err := socketpairs(sockets, &cleanup)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", config.Name, err)
	}
	h := invocation{config: config, hw: hw, readsMemory: qemu.mapsReadOnly(), accel: host.Accel, qmp: theirs[0], console: theirs[1], agent: theirs[2], door: theirs[3:]}
	if h.nics, err = plugIn(config, host.Packets, &cleanup); err != nil {
		return nil, err
	}
	if h.srat, err = newSRAT(hw); err != nil {
		return nil, &vmm.StartError{Machine: config.Name, Backend: b.Name(), After: time.Since(began), Err: err}
	}
	cleanup.always(h.srat)
	if h.saved, err = newSaved(config, h.ram()); err != nil {
		return nil, &vmm.StartError{Machine: config.Name, Backend: b.Name(), After: time.Since(began), Err: err}
	}
	cleanup.onError(h.saved)
	c := h.command()
	if qemu.sandbox {
		c.add("-sandbox", sandboxOptions)
	}
	start := supervise.Command{Path: qemu.path, Args: append([]string{qemu.path}, c.args...), Dir: config.Dir, ExtraFiles: c.files}
	if qemu.visible == "" && len(options(hw).Args) == 0 { // what arguments of the user's open, nobody knows
		start.View = vmm.View(qemu.path, config, hw)
	}
	m := newMachine(config.Name, ours[1], ours[2], c.saved)
	m.slots.fill(hw.SlotDisks)
	err = m.run(ctx, host, start)
	for _, f := range append(theirs, h.nics...) {
		f.Close() // so that only QEMU's end keeps the sockets open
	}
	if err == nil {
		err = m.begin(ctx, ours[0], config)
	}
	if err != nil {
		m.abandon()
		return nil, &vmm.StartError{Machine: config.Name, Backend: b.Name(), After: time.Since(began), Err: err, Output: m.output.Text()}
	}
	if hw.Bare {
		b := &bare{m, door{ours[3], ours[4]}}
		go b.watch()
		return b, nil
	}
	go m.watch()
	return m, nil
}

// plugIn takes the connections of all network cards that have a cable, as files
// that QEMU inherits.
func plugIn(config vmm.Config, packets bool, cleanup *closers) ([]*os.File, error) {
	files := make([]*os.File, len(config.NICs))
	for i, n := range config.NICs {
		if n.Link == nil {
			continue
		}
		take := n.Link.Stream
		if packets {
			take = n.Link.Packets
		}
		conn, err := take()
		if err != nil {
			return nil, err
		}
		files[i], err = conn.File()
		conn.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", config.Name, n.ID, err)
		}
		cleanup.always(files[i])
	}
	return files, nil
}

// checkDisks looks once more at the images, which may be others by now: for an
// external data file QEMU has no option that says that there is none.
func checkDisks(machine string, disks []vmm.Disk) error {
	for _, d := range disks {
		err := vmm.CheckDisk(d.Path, d.Format, true)
		for _, b := range d.Backing {
			err = cmp.Or(err, vmm.CheckDisk(b.Path, b.Format, true))
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) { // QEMU says it, too
			return fmt.Errorf("%s: %w", machine, err)
		}
	}
	return nil
}

func newMachine(name string, console, agent net.Conn, s saved) *machine {
	m := &machine{name: name, console: console, done: make(chan struct{}), saved: s}
	m.agent = vmm.NewChannel(agent, m.done)
	return m
}

// run starts the process, whose output is kept.
func (m *machine) run(ctx context.Context, host vmm.Host, c supervise.Command) error {
	out, stderr, err := os.Pipe()
	if err != nil {
		return err
	}
	defer stderr.Close()
	m.output = vmm.NewTail(out)
	c.Stdout, c.Stderr = stderr, stderr
	m.process, err = host.Supervisor.Start(ctx, c)
	return err
}

// abandon ends a machine that has not come to run.
func (m *machine) abandon() {
	if m.process != nil {
		m.process.Kill()
		<-m.process.Done()
	}
	m.output.Finish()
}

// begin connects to the monitor, restores the machine if it is to be restored,
// and starts the vCPUs.
func (m *machine) begin(ctx context.Context, monitor net.Conn, config vmm.Config) error {
	ctx, cancel := context.WithTimeoutCause(ctx, greetTimeout, fmt.Errorf("QEMU did not answer within %v", greetTimeout))
	defer cancel()
	var err error
	if m.monitor, err = qmp.Connect(ctx, monitor, m.event); err == nil {
		if err = m.proceed(ctx, config); err == nil {
			return nil
		}
		m.monitor.Close()
	}
	return m.ended(ctx, err)
}

// proceed restores the machine if it is to be restored, and starts the vCPUs.
func (m *machine) proceed(ctx context.Context, config vmm.Config) error {
	if config.Restore != nil {
		if err := m.load(ctx); err != nil {
			return err
		}
	}
	if config.Paused {
		return nil
	}
	return m.monitor.Do(ctx, "cont", nil, nil)
}

// ended says that QEMU has ended where an error is a consequence of that.
func (m *machine) ended(ctx context.Context, err error) error {
	if endOfQEMU(err) {
		select {
		case <-m.process.Done():
			return fmt.Errorf("QEMU ended: %v", m.process.Status())
		case <-ctx.Done():
		}
	}
	return err
}

// endOfQEMU reports whether the connection to the monitor ended because QEMU did.
func endOfQEMU(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// event keeps all of them for a while, and what decides how the exit is called.
func (m *machine) event(e qmp.Event) {
	m.events.Add(vmm.Event{Name: e.Name, Data: e.Data, Time: e.Time})
	var data struct { // QEMU qapi/run-state.json, qapi/block-core.json
		Reason  string `json:"reason"`
		Action  string `json:"action"`
		Node    string `json:"node-name"`
		NoSpace bool   `json:"nospace"`
	}
	m.notePort(e)
	if e.Name != "SHUTDOWN" && e.Name != "BLOCK_IO_ERROR" || json.Unmarshal(e.Data, &data) != nil {
		return
	}
	if e.Name == "SHUTDOWN" {
		m.mu.Lock()
		m.reason = data.Reason
		m.mu.Unlock()
	} else if data.Action == "stop" || m.hostIsFull(data.Node, data.NoSpace) {
		// QEMU has stopped the vCPUs until somebody makes room and resumes them. The
		// guest would only seem to hang.
		m.mu.Lock()
		m.stuck = "this host cannot write its disk: " + data.Reason
		m.mu.Unlock()
		m.process.Signal(syscall.SIGKILL)
	}
}

// watch waits for the end of the process.
func (m *machine) watch() {
	<-m.process.Done()
	<-m.monitor.Done() // it read the last events first
	m.events.End()
	m.output.Finish()
	m.monitor.Close()
	m.mu.Lock()
	m.exit = m.classify(m.process.Status())
	m.mu.Unlock()
	close(m.done)
	m.agent.Close()
	m.saved.Close()
}

// classify is called with mu held.
func (m *machine) classify(status supervise.Status) vmm.Exit {
	detail := status.String()
	if text := m.output.Text(); text != "" {
		detail += ": " + text
	}
	reasons := map[string]vmm.ExitReason{ // QAPI ShutdownCause
		"guest-shutdown":        vmm.PoweredOff,
		"guest-reset":           vmm.Reset,
		"host-qmp-system-reset": vmm.Reset,
		"guest-panic":           vmm.Panicked,
		"host-qmp-quit":         vmm.Quit,
		"host-signal":           vmm.Killed,
	}
	switch reason, ok := reasons[m.reason]; {
	case m.stuck != "":
		return vmm.Exit{Reason: vmm.Broken, Detail: m.stuck}
	case status.Signal == syscall.SIGKILL: // others QEMU handles, or they are a crash of its own
		return vmm.Exit{Reason: vmm.Killed, Detail: detail}
	case ok && status.Success():
		return vmm.Exit{Reason: reason, Detail: detail}
	}
	return vmm.Exit{Reason: vmm.Broken, Detail: "QEMU ended by itself: " + detail}
}

func (m *machine) Console() io.ReadCloser { return m.console }
func (m *machine) Done() <-chan struct{}  { return m.done }

func (m *machine) Exit() vmm.Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.exit
}

func (m *machine) Dial(ctx context.Context) (net.Conn, error) { return m.agent.Dial(ctx) }

func (m *machine) Kill() error {
	err := m.process.Kill()
	<-m.done
	return err
}

// Crash lets QEMU close its images in order.
func (m *machine) Crash(ctx context.Context) error {
	err := m.do(ctx, "quit", nil)
	if err != nil && m.monitor.Err() == nil {
		return err
	}
	select { // the reply may be lost in the end that was asked for
	case <-m.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (m *machine) PressPower(ctx context.Context) error { return m.do(ctx, "system_powerdown", nil) }
func (m *machine) Pause(ctx context.Context) error      { return m.do(ctx, "stop", nil) }
func (m *machine) Resume(ctx context.Context) error     { return m.do(ctx, "cont", nil) }

// Reset ends the VMM unless AllowReboot is on. It does not turn it on for a
// moment: the firmware of q35 answers a reset with one of its own.
func (m *machine) Reset(ctx context.Context) error { return m.do(ctx, "system_reset", nil) }

func (m *machine) AllowReboot(ctx context.Context, allow bool) error {
	return m.do(ctx, "set-action", map[string]string{"reboot": onReset(allow)})
}

func (m *machine) SetLink(ctx context.Context, nic string, up bool) error {
	return m.do(ctx, "set_link", map[string]any{"name": nic, "up": up})
}

func (m *machine) MonitorCommand(ctx context.Context, line string) (string, error) {
	var out string
	if err := m.ask(ctx, "human-monitor-command", map[string]string{"command-line": line}, &out); err != nil {
		return out, err
	}
	out = strings.ReplaceAll(out, "\r\n", "\n")
	if refusal.MatchString(out) {
		return out, fmt.Errorf("QEMU's monitor: %s", strings.TrimSpace(out))
	}
	return out, nil
}

// Ask runs a command of QMP.
func (m *machine) Ask(ctx context.Context, command string, arguments map[string]any) (json.RawMessage, error) {
	if arguments == nil {
		arguments = map[string]any{}
	}
	var out json.RawMessage
	err := m.ask(ctx, command, arguments, &out)
	return out, err
}

// refusal is how the monitor for humans says that it did not do what it was
// asked; it has nothing but text for that (QEMU monitor/hmp.c).
var refusal = regexp.MustCompile(`^(Error: |unknown command: '|Command '.*' not available|[\w-]+: (extraneous|string expected|filename expected|unsupported|invalid|unexpected))|(?m)^Try "help .*" for more information$`)

func (m *machine) do(ctx context.Context, command string, arguments any) error {
	return m.ask(ctx, command, arguments, nil)
}

// ask runs a command of a machine that runs, for its result. When QEMU ends under
// it, it returns after Done, so that the caller can ask for the reason.
func (m *machine) ask(ctx context.Context, command string, arguments, result any) error {
	err := m.monitor.Do(ctx, command, arguments, result)
	if err == nil {
		return nil
	}
	if endOfQEMU(err) {
		select {
		case <-m.done:
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("%s: %w", m.name, err)
}

// socketpairs makes n of them, closed as the function that made them ends.
func socketpairs(n int, cleanup *closers) (ours []net.Conn, theirs []*os.File, err error) {
	for range n {
		conn, f, err := socketpair.New(unix.SOCK_STREAM)
		if err != nil {
			return nil, nil, err
		}
		cleanup.onError(conn)
		cleanup.always(f)
		ours, theirs = append(ours, conn), append(theirs, f)
	}
	return ours, theirs, nil
}

// closers are closed at the end of a function: some always, some on error.
type closers struct{ each, failed []io.Closer }

func (c *closers) always(x io.Closer)  { c.each = append(c.each, x) }
func (c *closers) onError(x io.Closer) { c.failed = append(c.failed, x) }

func (c *closers) close(failed bool) {
	for _, x := range c.each {
		x.Close() // closing a second time is an error that does not matter
	}
	if failed {
		for _, x := range c.failed {
			x.Close()
		}
	}
}
