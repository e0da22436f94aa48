package attest

import "context"

// CreateMachine adds a machine to the lab.
func (l *TestLab) CreateMachine(config MachineConfig) *TestMachine {
	l.t.Helper()
	m, err := l.Lab.CreateMachine(l.ctx, config)
	check(l.t, err)
	return &TestMachine{Machine: m, t: l.t, ctx: l.ctx}
}

// JoinAll waits until all machines that run have powered themselves off.
func (l *TestLab) JoinAll(opts ...WaitOption) {
	l.t.Helper()
	check(l.t, l.Lab.JoinAll(l.ctx, opts...))
}

// CopyFromHostViaShell copies one file into the guest by a command.
func (m *TestMachine) CopyFromHostViaShell(source, target string) {
	m.t.Helper()
	check(m.t, m.Machine.CopyFromHostViaShell(m.ctx, source, target))
}

// KernelPanic makes the guest's kernel panic and waits for the end of the machine.
func (m *TestMachine) KernelPanic(opts ...WaitOption) {
	m.t.Helper()
	check(m.t, m.Machine.KernelPanic(m.ctx, opts...))
}

// Pause stops the machine's processors.
func (m *TestMachine) Pause() {
	m.t.Helper()
	check(m.t, m.Machine.Pause(m.ctx))
}

// Resume lets a paused machine go on.
func (m *TestMachine) Resume() {
	m.t.Helper()
	check(m.t, m.Machine.Resume(m.ctx))
}

// SwitchRoot leaves the initrd.
func (m *TestMachine) SwitchRoot(opts ...WaitOption) {
	m.t.Helper()
	check(m.t, m.Machine.SwitchRoot(m.ctx, opts...))
}

// SendConsole types on the serial console.
func (m *TestMachine) SendConsole(text string) {
	m.t.Helper()
	check(m.t, m.Machine.SendConsole(m.ctx, text))
}

// TTYText is what a virtual terminal shows now.
func (m *TestMachine) TTYText(tty string) string {
	m.t.Helper()
	text, err := m.Machine.TTYText(m.ctx, tty)
	check(m.t, err)
	return text
}

// WaitUntilTTYMatches waits until a virtual terminal shows something.
func (m *TestMachine) WaitUntilTTYMatches(tty, pattern string, opts ...WaitOption) {
	m.t.Helper()
	check(m.t, m.Machine.WaitUntilTTYMatches(m.ctx, tty, pattern, opts...))
}

// DumpTTYContents writes what a virtual terminal shows to the test's log.
func (m *TestMachine) DumpTTYContents(tty string) {
	m.t.Helper()
	check(m.t, m.Machine.DumpTTYContents(m.ctx, tty))
}

// SendMonitorCommand runs a command of the VMM's own monitor.
func (m *TestMachine) SendMonitorCommand(command string) string {
	m.t.Helper()
	out, err := m.Machine.SendMonitorCommand(m.ctx, command)
	check(m.t, err)
	return out
}

// WaitForQMPEvent waits for an event of QEMU's.
func (m *TestMachine) WaitForQMPEvent(match func(QMPEvent) bool, opts ...WaitOption) QMPEvent {
	m.t.Helper()
	e, err := m.Machine.WaitForQMPEvent(m.ctx, match, opts...)
	check(m.t, err)
	return e
}

// WaitForQMPEventNamed waits for the next event of a name.
func (m *TestMachine) WaitForQMPEventNamed(name string, opts ...WaitOption) QMPEvent {
	m.t.Helper()
	e, err := m.Machine.WaitForQMPEventNamed(m.ctx, name, opts...)
	check(m.t, err)
	return e
}

// SendKey presses a key or a chord.
func (m *TestMachine) SendKey(key string, opts ...KeyOption) {
	m.t.Helper()
	check(m.t, m.Machine.SendKey(m.ctx, key, opts...))
}

// SendChars types a text on the keyboard.
func (m *TestMachine) SendChars(text string, opts ...KeyOption) {
	m.t.Helper()
	check(m.t, m.Machine.SendChars(m.ctx, text, opts...))
}

// Screenshot writes what is on the screen to a PNG file.
func (m *TestMachine) Screenshot(filename string) {
	m.t.Helper()
	check(m.t, m.Machine.Screenshot(m.ctx, filename))
}

// WaitForX waits until an X server takes connections.
func (m *TestMachine) WaitForX(opts ...WaitOption) {
	m.t.Helper()
	check(m.t, m.Machine.WaitForX(m.ctx, opts...))
}

// WaitForWindow waits until a window's title matches.
func (m *TestMachine) WaitForWindow(pattern string, opts ...WaitOption) {
	m.t.Helper()
	check(m.t, m.Machine.WaitForWindow(m.ctx, pattern, opts...))
}

// WindowNames are the titles of all windows.
func (m *TestMachine) WindowNames() []string {
	m.t.Helper()
	names, err := m.Machine.WindowNames(m.ctx)
	check(m.t, err)
	return names
}

// Nested runs fn as a step of its own in the log.
func (m *TestMachine) Nested(text string, fn func()) {
	m.t.Helper()
	check(m.t, m.Machine.Nested(m.ctx, text, func(context.Context) error { fn(); return nil }))
}
