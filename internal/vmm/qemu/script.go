package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/qemu/qmp"
	"github.com/attest-vm/attest/internal/wire"
)

// A scripted machine is started by a foreign command, such as
// the run-<name>-vm of NixOS. The command ends in exec qemu… "$@". The arguments in "$@" are the
// monitor, the console and the channels, over descriptors as usual: a shell
// passes on what it has inherited.
//
// attest does not know the configuration of such a machine and asks its QEMU. The
// answer also tells whether it can be saved, see examination. If it can, it is
// started a second time, with a file of the memory's size as its memory.
type scripted struct {
	*machine
	door
	config vmm.Config
	env    []string // of its start command
	seen   examination
}

var (
	_ vmm.VM          = (*scripted)(nil)
	_ vmm.Snapshotter = (*scripted)(nil)
	_ vmm.Backdoor    = (*scripted)(nil)
	_ vmm.Doubtful    = (*scripted)(nil)
	_ vmm.LinkSetter  = (*scripted)(nil)
)

// scriptTimeout is how long a start command may take until its QEMU answers. It
// may have to make disks first.
const scriptTimeout = 10 * time.Minute

// startScript is Start for a start command.
func (b *backend) startScript(ctx context.Context, host vmm.Host, config vmm.Config, command *vmm.Command) (vmm.VM, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, scriptTimeout, fmt.Errorf("its QEMU did not answer within %v", scriptTimeout))
	defer cancel()
	s := script{b, host, config, command}
	start := s.boot
	if config.Restore != nil {
		start = s.restore
	}
	m, err := start(ctx)
	if err != nil {
		return nil, err
	}
	go m.watch()
	return m, nil
}

// A script is one start of a scripted machine.
type script struct {
	backend *backend
	host    vmm.Host
	config  vmm.Config
	command *vmm.Command // that of config
}

// boot starts the machine so that it can be saved, if that can be had.
func (s script) boot(ctx context.Context) (*scripted, error) {
	key := s.config.Name + "\x00" + s.command.Line
	known, ok := s.backend.recall(key)
	if !ok {
		m, err := s.launch(ctx, memory{})
		if err != nil {
			return nil, err
		}
		if known = m.seen; known.hopeless() {
			s.backend.remember(key, known)
			return m, s.proceed(ctx, m)
		}
		m.discard()
	}
	m, reason, err := s.bootSavable(ctx, known, !ok)
	if err != nil {
		return nil, err
	}
	if m == nil {
		if m, err = s.launch(ctx, memory{}); err != nil {
			return nil, err
		}
	}
	if reason != "" {
		known.reason, known.doubt = reason, false
		m.seen.reason, m.seen.doubt = reason, false
	}
	if ok && m.seen.Print != known.Print {
		s.backend.forget(key) // it is not what it was when it was examined
	} else {
		s.backend.remember(key, known)
	}
	return m, s.proceed(ctx, m)
}

// bootSavable launches a machine with a file as its memory. If it cannot be saved,
// reason is not empty, and m may be nil. try is for a machine that was never
// saved.
func (s script) bootSavable(ctx context.Context, known examination, try bool) (m *scripted, reason string, err error) {
	if known.hopeless() {
		return nil, known.reason, nil
	}
	m, err = s.launch(ctx, memory{size: known.Memory})
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, "", err
	case err != nil:
		return nil, "its QEMU rejects a file as its memory: " + lastLine(err), nil
	case m.seen.Print != known.Print:
		was, is := vmm.Difference(known.Print, m.seen.Print)
		return m, fmt.Sprintf("it starts something else each time: %s, then %s", was, is), nil
	}
	if try {
		if _, err := m.migrateOut(ctx); err != nil {
			if m.monitor.Err() != nil {
				m.discard()
				m = nil
			}
			return m, fmt.Sprintf("QEMU cannot save it: %v", err), nil
		}
	}
	return m, "", nil
}

// restore goes on from a state, if the command still starts what was saved.
func (s script) restore(ctx context.Context) (*scripted, error) {
	saved, device, err := splitScript(s.config.Restore.Device)
	if err != nil {
		return nil, s.failed(time.Now(), fmt.Errorf("the saved state does not come from a start command: %w", err), nil)
	}
	s.config.Restore = &vmm.State{Memory: s.config.Restore.Memory, Device: device}
	start := time.Now()
	m, err := s.launch(ctx, memory{size: saved.Memory, shared: saved.Shared})
	if err != nil {
		return nil, err
	}
	if m.seen.Print != saved.Print {
		was, is := vmm.Difference(saved.Print, m.seen.Print)
		m.discard()
		return nil, s.failed(start, fmt.Errorf("the start command has changed since the machine was saved: %s, now %s", was, is), nil)
	}
	m.seen.scriptState, m.seen.reason = saved, ""
	return m, s.proceed(ctx, m)
}

// proceed lets the vCPUs go. What has come so far ends if that fails.
func (s script) proceed(ctx context.Context, m *scripted) error {
	start := time.Now()
	err := m.machine.proceed(ctx, s.config)
	if err != nil {
		err = m.ended(ctx, err)
		m.discard()
		return s.failed(start, err, m.output)
	}
	return nil
}

func (s script) failed(start time.Time, err error, output *vmm.Tail) error {
	return &vmm.StartError{Machine: s.config.Name, Backend: s.backend.Name(), After: time.Since(start),
		Err: fmt.Errorf("start command `%s`: %w", s.command.Line, err), Output: output.Text()}
}

// scriptFDs is how many descriptors from 3 on are left to scripts, which like to
// open their own there (exec 9>lock). Shells take other ones than they inherit.
const scriptFDs = 7

// memory is what a machine has as its memory: of no size, what QEMU makes itself.
type memory struct {
	size     int64
	shared   bool // with the state that it goes on from
	readOnly bool // then it opens that for reading alone
}

// launch runs the start command up to where the vCPUs would start, and looks at
// what it has started.
func (s script) launch(ctx context.Context, mem memory) (_ *scripted, err error) {
	start := time.Now()
	var cleanup closers
	defer func() { cleanup.close(err != nil) }()
	ours, theirs, err := socketpairs(len(scriptSockets), &cleanup)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.config.Name, err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.config.Name, err)
	}
	cleanup.always(null)
	c := command{files: slices.Repeat([]*os.File{null}, scriptFDs)}
	c.script(theirs, s.config.AllowReboot)
	if mem.size > 0 {
		h := invocation{config: s.config}
		if h.saved, err = newSaved(s.config, mem); err != nil {
			return nil, s.failed(start, err, nil)
		}
		cleanup.onError(h.saved)
		c.memory(h, "attest-ram", mem)
		c.add("-machine", "memory-backend=attest-ram,suppress-vmdesc=on")
	}
	m := &scripted{config: s.config, env: s.command.Env, door: door{ours[3], ours[4]}}
	m.machine = newMachine(s.config.Name, ours[1], ours[2], c.saved)
	line := shellLine(s.command.Line)
	err = m.run(ctx, s.host, supervise.Command{
		Path: "/bin/sh", Args: append([]string{"/bin/sh", "-c", line, s.config.Name}, c.args...),
		Dir: s.config.Dir, Env: environment(s.command.Env), ExtraFiles: c.files, Whole: true,
	})
	for _, f := range theirs {
		f.Close()
	}
	if err == nil {
		err = m.connect(ctx, ours[0])
	}
	if err == nil {
		m.seen, err = m.examine(ctx, c.args)
	}
	if err != nil {
		if m.monitor != nil {
			m.monitor.Close()
		}
		m.abandon()
		return nil, s.failed(start, err, m.output)
	}
	return m, nil
}

// scriptSockets are the character devices that the arguments make, in the order of
// their descriptors.
var scriptSockets = [...]string{"attest-qmp", "attest-console", "attest-agent", "attest-shell", "attest-upload"}

// script adds the arguments that a start command gets. The shell's console and the
// agent's ports are on a bus of their own, so that they are not in the way of others.
func (c *command) script(sockets []*os.File, allowReboot bool) {
	for i, id := range scriptSockets {
		c.socket(id, sockets[i])
	}
	c.add("-mon", "chardev=attest-qmp,mode=control")
	c.add("-serial", "chardev:attest-console")
	c.add("-device", "virtio-serial,id="+serialBus)
	c.add("-device", "virtconsole,id="+shellPort+",bus="+serialBus+".0,chardev=attest-shell")
	c.add("-device", "virtserialport,id="+agentPort+",bus="+serialBus+".0,chardev=attest-agent,name="+wire.AgentPort)
	c.add("-device", "virtserialport,bus="+serialBus+".0,chardev=attest-upload,name="+wire.UploadPort)
	c.add("-device", "virtio-rng-pci")
	// Not -nographic: its firmware clears the serial console.
	c.add("-display", "none")
	c.add("-action", "reboot="+onReset(allowReboot))
	c.add("-S") // until it was looked at
}

// simple is a command line that exec can be put in front of.
var simple = regexp.MustCompile(`^[^\s=!;&|<>(){}]+( [^;&|<>(){}\n` + "`" + `]*)?$`)

// shellLine is a start command with its arguments. Not every shell becomes the last
// command of its line by itself.
func shellLine(command string) string {
	command = strings.TrimSpace(command)
	if simple.MatchString(command) && !strings.HasPrefix(command, "exec ") {
		command = "exec " + command
	}
	return command + ` "$@"`
}

// environment is this process's with some variables set.
func environment(set []string) []string {
	var env []string
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if !hasVariable(set, name) {
			env = append(env, v)
		}
	}
	return append(env, set...)
}

func hasVariable(env []string, name string) bool {
	for _, v := range env {
		if strings.HasPrefix(v, name+"=") {
			return true
		}
	}
	return false
}

// connect connects to the monitor, or returns why that is impossible.
func (m *scripted) connect(ctx context.Context, conn net.Conn) (err error) {
	watching, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		m.watchScript(watching, cancel)
	}()
	m.monitor, err = qmp.Connect(watching, conn, m.event)
	cause := context.Cause(watching)
	cancel(nil)
	<-watched
	switch {
	case err == nil:
		return nil
	case cause != nil:
		return cause
	}
	select {
	case <-m.process.Done():
		return m.endedEarly()
	case <-time.After(endGrace):
		return errHungUp
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// endGrace is how long a process may take to end when its connections have.
const endGrace = 5 * time.Second

var errHungUp = errors.New("it closed the inherited descriptors through which attest talks to its QEMU; a wrapper must pass them on (in Python: close_fds=False)")

func (m *scripted) endedEarly() error {
	return fmt.Errorf("it ended (%v) before a QEMU with its arguments (\"$@\") answered", m.process.Status())
}

var errNoArguments = errors.New(`it does not pass its arguments on to QEMU; it must end in exec qemu… "$@"`)

// watchScript gives up when the command ends, or has started a QEMU to which
// nobody will be connected.
func (m *scripted) watchScript(ctx context.Context, giveUp context.CancelCauseFunc) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.process.Done():
			giveUp(m.endedEarly())
			return
		case <-tick.C:
		}
		// In this order: the arguments of a shell that becomes QEMU in between are no QEMU's.
		if isQEMU(m.process.Pid()) && !strings.Contains(strings.Join(arguments(m.process.Pid()), "\n"), scriptSockets[0]) {
			giveUp(errNoArguments)
			return
		}
	}
}

// arguments are those of a process; none if it is gone.
func arguments(pid int) []string {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
}

// isQEMU reports whether a process is a QEMU, and not a script of that name.
func isQEMU(pid int) bool {
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	base := filepath.Base(program)
	return err == nil && (strings.Contains(base, "qemu-system") || strings.Contains(base, "qemu-kvm"))
}

// discard ends a machine that was launched, and everything that belongs to it.
func (m *scripted) discard() {
	m.abandon()
	m.monitor.Close()
	m.console.Close()
	m.agent.Close()
	m.door.close()
	m.saved.Close()
}

// watch is that of every machine; the backdoor ends with it.
func (m *scripted) watch() {
	m.machine.watch()
	m.door.close()
}

// SetLink finds the card by its address, since the start command gives it its name.
// One that is not there has no cable to show.
func (m *scripted) SetLink(ctx context.Context, nic string, up bool) error {
	var cards []struct {
		Name string `json:"name"`
		MAC  string `json:"main-mac"`
	}
	if err := m.ask(ctx, "query-rx-filter", nil, &cards); err != nil {
		return err
	}
	for _, n := range m.config.NICs {
		for _, c := range cards {
			if n.ID == nic && strings.EqualFold(c.MAC, n.MAC.String()) {
				return m.machine.SetLink(ctx, c.Name, up)
			}
		}
	}
	return nil
}

// WillSave is what is known from the command line.
func (m *scripted) WillSave() error { return m.unsavable(m.seen.reason) }

// CanSave also asks what the guest has done since.
func (m *scripted) CanSave(ctx context.Context) error {
	if m.seen.hopeless() {
		return m.unsavable(m.seen.reason)
	}
	var state struct {
		Reasons []string `json:"blocked-reasons"`
	}
	if err := m.monitor.Do(ctx, "query-migrate", nil, &state); err != nil {
		return fmt.Errorf("%s: %w", m.name, err)
	}
	return m.unsavable(strings.Join(state.Reasons, "; "))
}

func (m *scripted) unsavable(reason string) error {
	if reason == "" {
		return nil
	}
	return &vmm.UnsupportedError{Machine: m.name, Operation: "snapshot", Backend: "qemu", Reason: "the machine of its start command cannot be saved: " + reason}
}

// Save saves the machine with what must be the same to restore it.
func (m *scripted) Save(ctx context.Context, memory *os.File) ([]byte, error) {
	device, err := m.machine.Save(ctx, memory)
	if err != nil {
		return nil, err
	}
	head, err := json.Marshal(m.seen.scriptState)
	if err != nil {
		return nil, err
	}
	return joinState(head, device), nil
}

// splitScript takes apart what Save returned.
func splitScript(state []byte) (saved scriptState, device []byte, err error) {
	head, device, err := splitState(state)
	if err == nil {
		err = json.Unmarshal(head, &saved)
	}
	if err == nil && saved.Memory <= 0 {
		err = fmt.Errorf("it has a memory of %d bytes", saved.Memory)
	}
	return saved, device, err
}
