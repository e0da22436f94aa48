package attest

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"
)

// A TestLab is a Lab whose operations end the test when they fail.
type TestLab struct {
	*Lab
	t   TB
	ctx context.Context
}

// Machine finds a machine by its name.
func (l *TestLab) Machine(name string) *TestMachine {
	l.t.Helper()
	m := l.Lab.Machine(name)
	if m == nil {
		var names []string
		for _, m := range l.Lab.Machines() {
			names = append(names, m.Name())
		}
		l.t.Fatalf("attest: there is no machine %q in this lab, only %s", name, strings.Join(names, ", "))
	}
	return &TestMachine{Machine: m, t: l.t, ctx: l.ctx}
}

// Context carries the lab's events and ends with the test.
func (l *TestLab) Context() context.Context { return l.ctx }

// StartAll starts every machine, all at once.
func (l *TestLab) StartAll() {
	l.t.Helper()
	check(l.t, l.Lab.StartAll(l.ctx))
}

// Fork makes a lab of its own in the state that l has now, and closes it when t
// ends. l stays as it is; see Lab.Fork.
func (l *TestLab) Fork(t TB) *TestLab {
	t.Helper()
	ctx, cancel := testContext(t)
	if _, err := shared.open(ctx); err != nil { // it is l's, and stays as long as one of the two
		cancel()
		t.Fatalf("attest: %v", err)
	}
	lab, err := l.Lab.Fork(ctx)
	return newTestLab(t, ctx, cancel, lab, err)
}

// Checkpoint keeps the state of the whole lab under a name.
func (l *TestLab) Checkpoint(name string) {
	l.t.Helper()
	check(l.t, l.Lab.Checkpoint(l.ctx, name))
}

// Restore takes the whole lab back to a checkpoint.
func (l *TestLab) Restore(name string) {
	l.t.Helper()
	check(l.t, l.Lab.Restore(l.ctx, name))
}

// A TestMachine is a Machine whose operations end the test when they fail. The
// embedded Machine has the same operations with a context and an error.
type TestMachine struct {
	*Machine
	t   TB
	ctx context.Context
}

func check(t TB, err error) {
	if err != nil {
		t.Helper()
		t.Fatalf("%s", explainError(err))
	}
}

// explainError is an error with all that belongs to it, for a test's log.
func explainError(err error) string {
	f := failureOf(err, "", "")
	var b strings.Builder
	switch Status(f.Status) {
	case BootFailed:
		b.WriteString("guest did not boot: ")
	case Infra:
		b.WriteString("the host is broken, not the test: ")
	case Unsupported:
		b.WriteString("not supported here: ")
	}
	b.WriteString(f.Message)
	block := func(title, text string) {
		if text = strings.TrimRight(text, "\n"); text != "" {
			fmt.Fprintf(&b, "\n%s:\n    %s", title, strings.ReplaceAll(text, "\n", "\n    "))
		}
	}
	block("stdout", f.Stdout)
	block("stderr", f.Stderr)
	for _, d := range f.Details {
		block(d.Title, d.Text)
	}
	block("last console lines", strings.Join(f.Console, "\n"))
	return b.String()
}

// Start starts the machine without waiting for its guest.
func (m *TestMachine) Start(opts ...StartOption) {
	m.t.Helper()
	check(m.t, m.Machine.Start(m.ctx, opts...))
}

// Execute runs a command; that it fails does not end the test.
func (m *TestMachine) Execute(command string, opts ...CommandOption) Result {
	m.t.Helper()
	r, err := m.Machine.Execute(m.ctx, command, opts...)
	check(m.t, err)
	return r
}

// Detach starts a command and returns as soon as it runs.
func (m *TestMachine) Detach(command string, opts ...CommandOption) {
	m.t.Helper()
	check(m.t, m.Machine.Detach(m.ctx, command, opts...))
}

// Succeed runs a command that must succeed, and returns its standard output.
func (m *TestMachine) Succeed(command string, opts ...CommandOption) string {
	m.t.Helper()
	out, err := m.Machine.Succeed(m.ctx, command, opts...)
	check(m.t, err)
	return out
}

// SucceedAll runs commands that must all succeed, one after the other.
func (m *TestMachine) SucceedAll(commands []string, opts ...CommandOption) string {
	m.t.Helper()
	out, err := m.Machine.SucceedAll(m.ctx, commands, opts...)
	check(m.t, err)
	return out
}

// FailAll runs commands that must all fail, one after the other.
func (m *TestMachine) FailAll(commands []string, opts ...CommandOption) string {
	m.t.Helper()
	out, err := m.Machine.FailAll(m.ctx, commands, opts...)
	check(m.t, err)
	return out
}

// Spawn starts a command and returns while it runs.
func (m *TestMachine) Spawn(command string, opts ...CommandOption) *TestJob {
	m.t.Helper()
	j, err := m.Machine.Spawn(m.ctx, command, opts...)
	check(m.t, err)
	return &TestJob{Job: j, t: m.t, ctx: m.ctx}
}

// Fail runs a command that must fail, and returns its standard output.
func (m *TestMachine) Fail(command string, opts ...CommandOption) string {
	m.t.Helper()
	out, err := m.Machine.Fail(m.ctx, command, opts...)
	check(m.t, err)
	return out
}

// WaitUntilSucceeds repeats a command until it succeeds.
func (m *TestMachine) WaitUntilSucceeds(command string, opts ...CommandOption) string {
	m.t.Helper()
	out, err := m.Machine.WaitUntilSucceeds(m.ctx, command, opts...)
	check(m.t, err)
	return out
}

// WaitUntilFails repeats a command until it fails.
func (m *TestMachine) WaitUntilFails(command string, opts ...CommandOption) string {
	m.t.Helper()
	out, err := m.Machine.WaitUntilFails(m.ctx, command, opts...)
	check(m.t, err)
	return out
}

// WaitForUnit waits until a systemd unit is active.
func (m *TestMachine) WaitForUnit(unit string, opts ...UnitOption) {
	m.t.Helper()
	check(m.t, m.Machine.WaitForUnit(m.ctx, unit, opts...))
}

// WaitForOpenPort waits until a TCP port accepts connections.
func (m *TestMachine) WaitForOpenPort(port int, opts ...PortOption) {
	m.t.Helper()
	check(m.t, m.Machine.WaitForOpenPort(m.ctx, port, opts...))
}

// WaitForClosedPort waits until a TCP port accepts no connections.
func (m *TestMachine) WaitForClosedPort(port int, opts ...PortOption) {
	m.t.Helper()
	check(m.t, m.Machine.WaitForClosedPort(m.ctx, port, opts...))
}

// WaitForOpenUnixSocket waits until a unix socket accepts connections.
func (m *TestMachine) WaitForOpenUnixSocket(path string, opts ...SocketOption) {
	m.t.Helper()
	check(m.t, m.Machine.WaitForOpenUnixSocket(m.ctx, path, opts...))
}

// WaitForFile waits until a path exists.
func (m *TestMachine) WaitForFile(path string, opts ...WaitOption) {
	m.t.Helper()
	check(m.t, m.Machine.WaitForFile(m.ctx, path, opts...))
}

// WaitForConsoleText waits until the serial console says something.
func (m *TestMachine) WaitForConsoleText(pattern string, opts ...WaitOption) {
	m.t.Helper()
	check(m.t, m.Machine.WaitForConsoleText(m.ctx, pattern, opts...))
}

// Systemctl runs systemctl; that it fails does not end the test.
func (m *TestMachine) Systemctl(args string, opts ...UnitOption) Result {
	m.t.Helper()
	r, err := m.Machine.Systemctl(m.ctx, args, opts...)
	check(m.t, err)
	return r
}

// UnitInfo is every property of a unit.
func (m *TestMachine) UnitInfo(unit string, opts ...UnitOption) map[string]string {
	m.t.Helper()
	info, err := m.Machine.UnitInfo(m.ctx, unit, opts...)
	check(m.t, err)
	return info
}

// UnitProperty is one property of a unit.
func (m *TestMachine) UnitProperty(unit, property string, opts ...UnitOption) string {
	m.t.Helper()
	value, err := m.Machine.UnitProperty(m.ctx, unit, property, opts...)
	check(m.t, err)
	return value
}

// RequireUnitState ends the test unless a unit is in a state now.
func (m *TestMachine) RequireUnitState(unit, state string, opts ...UnitOption) {
	m.t.Helper()
	check(m.t, m.Machine.RequireUnitState(m.ctx, unit, state, opts...))
}

// StartJob starts a unit; that it fails does not end the test.
func (m *TestMachine) StartJob(unit string, opts ...UnitOption) Result {
	m.t.Helper()
	r, err := m.Machine.StartJob(m.ctx, unit, opts...)
	check(m.t, err)
	return r
}

// StopJob stops a unit; that it fails does not end the test.
func (m *TestMachine) StopJob(unit string, opts ...UnitOption) Result {
	m.t.Helper()
	r, err := m.Machine.StopJob(m.ctx, unit, opts...)
	check(m.t, err)
	return r
}

// Journal is what the journal has of a unit.
func (m *TestMachine) Journal(unit string, opts ...JournalOption) string {
	m.t.Helper()
	text, err := m.Machine.Journal(m.ctx, unit, opts...)
	check(m.t, err)
	return text
}

// CopyFromHost copies a file or a tree into the guest.
func (m *TestMachine) CopyFromHost(source, target string) {
	m.t.Helper()
	check(m.t, m.Machine.CopyFromHost(m.ctx, source, target))
}

// CopyFromMachine copies a file or a tree out of the guest.
func (m *TestMachine) CopyFromMachine(source, targetDir string) {
	m.t.Helper()
	check(m.t, m.Machine.CopyFromMachine(m.ctx, source, targetDir))
}

// Shutdown powers the guest off and waits for that.
func (m *TestMachine) Shutdown(opts ...WaitOption) {
	m.t.Helper()
	check(m.t, m.Machine.Shutdown(m.ctx, opts...))
}

// WaitForShutdown waits until the guest powers itself off.
func (m *TestMachine) WaitForShutdown(opts ...WaitOption) {
	m.t.Helper()
	check(m.t, m.Machine.WaitForShutdown(m.ctx, opts...))
}

// Crash pulls the plug.
func (m *TestMachine) Crash() {
	m.t.Helper()
	check(m.t, m.Machine.Crash(m.ctx))
}

// Reboot restarts the guest and waits until it answers again.
func (m *TestMachine) Reboot(opts ...WaitOption) {
	m.t.Helper()
	check(m.t, m.Machine.Reboot(m.ctx, opts...))
}

// Sleep waits for d of the guest's time.
func (m *TestMachine) Sleep(d time.Duration) {
	m.t.Helper()
	check(m.t, m.Machine.Sleep(m.ctx, d))
}

// Log writes a line to the test's log.
func (m *TestMachine) Log(text string) { m.Machine.Log(m.ctx, text) }

// ForwardPort carries connections to a port of this host's loopback address, 0
// for any, to a port in the guest, and returns the host's.
func (m *TestMachine) ForwardPort(hostPort, guestPort int) int {
	m.t.Helper()
	port, err := m.Machine.ForwardPort(m.ctx, hostPort, guestPort)
	check(m.t, err)
	return port
}

// SnapshotCreate keeps the machine's state under a name.
func (m *TestMachine) SnapshotCreate(name string) {
	m.t.Helper()
	check(m.t, m.Machine.SnapshotCreate(m.ctx, name))
}

// SnapshotRestore takes the machine back to where SnapshotCreate was.
func (m *TestMachine) SnapshotRestore(name string) {
	m.t.Helper()
	check(m.t, m.Machine.SnapshotRestore(m.ctx, name))
}

// A TestJob is a Job whose operations end the test when they fail.
type TestJob struct {
	*Job
	t   TB
	ctx context.Context
}

// Wait waits until the job has ended; that it failed does not end the test.
func (j *TestJob) Wait(opts ...WaitOption) Result {
	j.t.Helper()
	r, err := j.Job.Wait(j.ctx, opts...)
	check(j.t, err)
	return r
}

// WaitForOutput waits until the job writes something that matches.
func (j *TestJob) WaitForOutput(pattern string, opts ...WaitOption) string {
	j.t.Helper()
	match, err := j.Job.WaitForOutput(j.ctx, pattern, opts...)
	check(j.t, err)
	return match
}

// Kill sends a signal to the job's process group, SIGTERM unless another is given.
func (j *TestJob) Kill(signals ...syscall.Signal) {
	j.t.Helper()
	check(j.t, j.Job.Kill(j.ctx, signals...))
}
