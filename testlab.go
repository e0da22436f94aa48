package attest

import (
	"context"
	"fmt"
	"strings"
)

//go:generate go test ./internal/testapi -update

// A TestLab is a Lab whose operations end the test when they fail.
type TestLab struct {
	// Lab has the same operations with a context and an error, for goroutines of the
	// test and for operations that may fail.
	Lab *Lab
	scope
}

// A TestMachine is a Machine whose operations end the test when they fail.
type TestMachine struct {
	// Machine has the same operations with a context and an error.
	Machine *Machine
	scope
}

// A TestJob is a Job whose operations end the test when they fail.
type TestJob struct {
	Job *Job
	scope
}

// A TestNetwork is a Network whose operations end the test when they fail.
// Faults that are still in force when the test ends are healed.
type TestNetwork struct {
	Network *Network
	scope
}

// A TestFault is a Fault whose operations end the test when they fail.
type TestFault struct {
	Fault *Fault
	scope
}

// A TestCapture is a Capture whose operations end the test when they fail.
type TestCapture struct {
	Capture *Capture
	scope
}

// A TestProgram is a RunningProgram whose operations end the test when they fail.
type TestProgram struct {
	RunningProgram *RunningProgram
	scope
}

// A TestSnapshot is a Snapshot whose operations end the test when they fail. It is
// closed when the test ends.
type TestSnapshot struct {
	Snapshot *Snapshot
	scope
}

func (m *TestMachine) machineNames() []string { return m.Machine.machineNames() }

// Machine finds a machine by its name. Without one the test ends.
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
	return &TestMachine{m, l.scope}
}

// Machines are all machines, in the order in which they were declared.
func (l *TestLab) Machines() []*TestMachine {
	return forms(l.Lab.Machines(), func(m *Machine) *TestMachine { return &TestMachine{m, l.scope} })
}

// Context carries the lab's events and ends with the test.
func (l *TestLab) Context() context.Context { return l.ctx }

// Fork makes a lab of its own in the state that l has now, and closes it when t
// ends. l stays as it is; see [Lab.Fork].
func (l *TestLab) Fork(t TB) *TestLab {
	t.Helper()
	return testLab(t, func(ctx context.Context, _ *Host) (*Lab, error) { return l.Lab.Fork(ctx) })
}

// Snapshot takes a snapshot of the lab, for any number of forks. See [Lab.Snapshot].
func (l *TestLab) Snapshot() *TestSnapshot {
	l.t.Helper()
	_, err := shared.open(l.ctx) // the host stays as long as the snapshot
	l.check(err)
	l.t.Cleanup(func() { shared.close() })
	s, err := l.Lab.Snapshot(l.at())
	l.check(err)
	l.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			l.t.Logf("attest: closing the snapshot: %v", err)
		}
	})
	return &TestSnapshot{s, l.scope}
}

// Fork makes a lab that goes on from the snapshot, and closes it when t ends. Any
// number of forks can be made, also at once. See [Snapshot.Fork].
func (s *TestSnapshot) Fork(t TB) *TestLab {
	t.Helper()
	return testLab(t, func(ctx context.Context, _ *Host) (*Lab, error) { return s.Snapshot.Fork(ctx) })
}

// Eventually waits until check returns nil, as [Condition.Wait] does. check has its
// context for operations that return an error, such as those of the field Machine.
func (l *TestLab) Eventually(what string, check func(context.Context) error, opts ...WaitOption) {
	l.t.Helper()
	l.check(Condition{Description: what, Check: check}.Wait(l.at(), opts...))
}

// Nested runs fn as a step of its own in the log and in reports.
func (m *TestMachine) Nested(text string, fn func()) {
	m.t.Helper()
	m.check(m.Machine.Nested(m.at(), text, func(context.Context) error { fn(); return nil }))
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

// forms are the forms for tests of a list.
func forms[T, U any](list []T, form func(T) U) []U {
	out := make([]U, len(list))
	for i, x := range list {
		out[i] = form(x)
	}
	return out
}
