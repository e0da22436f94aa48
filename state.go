package attest

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize/english"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/printable"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/wire"
)

// This file says what keeps an operation from its end: the state of the machine, units
// that have failed or are restarted again and again, and processes that hold the output
// of a command that has ended.

// A look is what was seen of a machine while an operation did not end.
type look struct {
	state string         // of the machine, if it is one in which nothing goes on as usual
	units []wire.Trouble // that have failed, or were restarted
	dark  string         // why there may be more of these units
	oom   int64          // how many processes the guest's kernel has killed for want of memory
	held  []wire.Process // that hold the output of the command
}

// String is the look in one line; empty if there is nothing to say.
func (l look) String() string {
	var parts []string
	if l.state != "" {
		parts = append(parts, l.state)
	}
	if len(l.held) > 0 {
		parts = append(parts, "the command has ended, and its standard output is held open by "+processes(l.held))
	}
	for i, u := range l.units {
		if i == maxUnits {
			parts = append(parts, fmt.Sprintf("%d more units failed or restarted", len(l.units)-i))
			break
		}
		parts = append(parts, trouble(u))
	}
	if l.dark != "" {
		parts = append(parts, "which units have failed is not known: "+l.dark)
	}
	return strings.Join(parts, "; ")
}

// maxUnits is how many units an error names.
const maxUnits = 5

// details are the units of the look, for a failure.
func (l look) details() []Detail {
	var failed, restarted []string
	for _, u := range l.units {
		if u.Restarts > 0 {
			restarted = append(restarted, trouble(u))
		} else {
			failed = append(failed, trouble(u))
		}
	}
	if l.dark != "" {
		failed = append(failed, "not known: "+l.dark)
	}
	var out []Detail
	if len(failed) > 0 {
		out = append(out, Detail{Title: "failed units", Text: strings.Join(failed, "\n")})
	}
	if len(restarted) > 0 {
		out = append(out, Detail{Title: "units that systemd restarts", Text: strings.Join(restarted, "\n")})
	}
	return out
}

// ofKilled is the state for a command whose shell was killed: a kernel that did so for want
// of memory has some again.
func (l look) ofKilled() string {
	if l.state != "" || l.oom <= 0 {
		return l.state
	}
	return "its guest has run out of memory: its kernel has killed " + english.Plural(int(l.oom), "process", "") + " since it started"
}

// trouble is a unit in words: "app.service was restarted 5 times, is activating
// (auto-restart), exit status 1".
func trouble(u wire.Trouble) string {
	text := printable.Line(u.Unit)
	if u.Restarts > 0 {
		text += " was restarted " + english.Plural(int(u.Restarts), "time", "") + ","
	}
	text += fmt.Sprintf(" is %s (%s)", printable.Line(u.ActiveState), printable.Line(u.SubState))
	if u.Result != "" && u.Result != "success" {
		text += ", result " + printable.Line(u.Result)
	}
	if u.Status != 0 {
		text += fmt.Sprintf(", exit status %d", u.Status)
	}
	return text
}

// processes are processes in words: "`sleep 100` (pid 77)".
func processes(list []wire.Process) string {
	var out []string
	for _, p := range list {
		out = append(out, fmt.Sprintf("`%s` (pid %d)", printable.Line(p.Name), p.Pid))
	}
	return strings.Join(out, ", ")
}

// statePatience is how long the VMM may take to say in what state it is.
const statePatience = time.Second

// inspect looks at the machine, for an operation that is about a command unless that is
// empty. It takes no longer than it has to on a machine whose guest does nothing.
func (r *run) inspect(ctx context.Context, command string) (l look) {
	m := r.machine
	if l.state = r.standing(ctx); l.state != "" {
		return l
	}
	select {
	case <-r.ready:
	default:
		return l // that it has not answered yet is said elsewhere
	}
	if !r.echoes(ctx) {
		if ctx.Err() == nil && r.vm.Exit().Reason == vmm.Running {
			l.state = "its guest does not respond" + r.lastHeard() + m.sign()
		}
		return l
	}
	patience := min(m.lab.host.scale(attachTimeout), maxAttach)
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	seen, err := r.guest.Look(limited)
	l.state, l.dark, l.oom = shortage(seen.Memory), printable.Line(seen.Unknown), seen.Memory.Killed
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		l.dark = fmt.Sprintf("the guest had not answered after %v", patience)
		if l.state == "" {
			l.state = "its guest is very slow"
		}
	}
	if l.state != "" {
		l.state += m.sign()
	}
	l.units = seen.Units
	for _, h := range seen.Held {
		if command != "" && h.Command == wire.Excerpt(command) {
			l.held = h.By
		}
	}
	return l
}

// lastHeard says when the root shell that stands in for the agent was heard last; empty if none does.
func (r *run) lastHeard() string {
	heard, ok := r.standIn()
	if !ok {
		return ""
	}
	return fmt.Sprintf(": its root shell was heard last %v ago", time.Since(heard).Round(time.Second))
}

// standing says why the guest cannot do anything, by what is known without it; empty if
// it can.
func (r *run) standing(ctx context.Context) string {
	if r.unpaused("") != nil {
		return "the machine is paused"
	}
	if o, ok := vmm.As[vmm.Observer](r.vm); ok {
		ctx, cancel := context.WithTimeout(ctx, statePatience)
		defer cancel()
		if state, err := o.State(ctx); err == nil && state != "" {
			return "the machine is " + state
		}
	}
	return ""
}

// doze is how long a machine has to look like one that sleeps before operations are refused, if
// nobody has asked for that: a guest that shuts down looks like that for a moment, too.
const doze = 2 * time.Second

// setSuspended notes that the guest sleeps, or does no longer.
func (r *run) setSuspended(on bool) {
	m := r.machine
	m.mu.Lock()
	changed := r.suspended != on
	r.suspended, r.unwoken = on, on || r.unwoken
	m.mu.Unlock()
	if !changed {
		return
	}
	r.guest.Hold(on) // its silence says nothing meanwhile
	m.announce(map[bool]string{true: vmm.Suspended, false: "running"}[on], "", time.Since(r.started))
}

// sleeps reports whether the guest sleeps. It asks the VMM only if there is reason to.
func (r *run) sleeps() bool {
	v, ok := vmm.As[vmm.Waker](r.vm)
	if !ok {
		return false
	}
	m := r.machine
	m.mu.Lock()
	suspended := r.suspended
	m.mu.Unlock()
	since := v.Dozing()
	if since.IsZero() || !suspended && time.Since(since) < m.lab.host.scale(doze) {
		r.setSuspended(false) // something in the guest may have woken it
		return false
	}
	ctx, cancel := context.WithTimeout(m.lab.ctx, statePatience)
	defer cancel()
	state, err := v.State(ctx)
	return err == nil && state == vmm.Suspended
}

// responds reports whether the guest is there.
func (r *run) responds(ctx context.Context) bool {
	return r.standing(ctx) == "" && r.echoes(ctx)
}

// echoes reports whether the guest says that it is there. One that has just not done so, and
// has said nothing since, is not asked again: each question costs an operation that is
// over its limit as much as the guest may take.
func (r *run) echoes(ctx context.Context) bool {
	patience := r.machine.echoPatience()
	if at := r.silentAt.Load(); at != nil && time.Since(*at) < patience && !r.guest.Heard().After(*at) {
		return false
	}
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := r.guest.Echo(limited)
	if err != nil && ctx.Err() == nil {
		r.noteSilence()
	}
	return err == nil
}

// noteSilence notes that the guest was asked whether it is there, and did not answer.
func (r *run) noteSilence() {
	now := time.Now()
	r.silentAt.Store(&now)
}

// maxAttach bounds how far the details of a failed operation can overrun its limit.
const maxAttach = 10 * time.Second

// echoPatience is how long a guest may take to say that it is there.
func (m *Machine) echoPatience() time.Duration {
	return min(m.lab.host.scale(time.Second), maxAttach/2)
}

// Less than this share of a guest's memory that is available, or more than this share
// of the time in which everything waited for memory (percent), is a shortage.
const (
	leastMemory = 0.05
	mostStalled = 20
)

// shortage is a guest's want of memory, in words; empty if it has enough.
func shortage(m wire.Memory) string {
	if m.Total <= 0 || float64(m.Available) > leastMemory*float64(m.Total) && m.Stalled < mostStalled {
		return ""
	}
	text := fmt.Sprintf("its guest is out of memory: %d of %d MiB are available", m.Available>>10, m.Total>>10)
	if m.Stalled >= 1 {
		text += fmt.Sprintf(", and all of it waited for memory in %.0f %% of the last 10 s", m.Stalled)
	}
	return text
}

// signs are lines with which a kernel says why its processes do not go on.
var signs = regexp.MustCompile(`Out of memory: Killed process \d+ \([^)]*\)|Out of memory and no killable processes|soft lockup - CPU#\d+ stuck for \S+|rcu\S*: INFO: \S+ (?:self-)?detected stalls?|INFO: task \S+ blocked for more than \d+ seconds|PM: suspend entry \([^)]*\)|hung_task: blocked tasks`)

// sign is the last of these lines that the guest's kernel has said lately.
func (m *Machine) sign() string {
	lines := m.console.Tail(consoleTail)
	for i := len(lines) - 1; i >= 0; i-- {
		if s := signs.FindString(lines[i]); s != "" {
			return "; its kernel said: " + s
		}
	}
	return ""
}

// firstLook is when a step that has not ended is looked at; it is again after twice
// that time, and so on.
var firstLook = 5 * time.Second

// A watch looks at a machine while a step is under way, and tells what keeps it from
// its end.
type watch struct {
	cancel context.CancelFunc

	mu   sync.Mutex
	last string
}

// watchStep begins a watch. The step of ctx is about a command unless that is empty.
func (r *run) watchStep(ctx context.Context, command string) *watch {
	m := r.machine
	looking, cancel := context.WithCancel(event.WithScope(m.lab.ctx, event.ScopeOf(ctx)))
	w := &watch{cancel: cancel}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current == r {
		r.aside.Go(func() { w.run(looking, ctx, r, command) })
	}
	return w
}

func (w *watch) run(ctx, outer context.Context, r *run, command string) {
	for pause := firstLook; ; pause *= 2 {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		case <-r.vm.Done(): // what waits for the end of the run waits for this, too
			timer.Stop()
			return
		}
		text := r.inspect(ctx, command).String()
		if ctx.Err() != nil {
			return
		}
		w.mu.Lock()
		news := text != w.last
		w.last = text
		w.mu.Unlock()
		if news {
			event.Publish(outer, event.StepWaiting{ID: event.ScopeOf(outer).Step, Machine: r.machine.Name(), Reason: text})
		}
	}
}

// stop ends the watch, and returns what it saw last.
func (w *watch) stop() string {
	w.cancel()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// An UnderWayError is an operation that somebody has ended: the person or the limit that
// ended the test. It says how far the operation was.
type UnderWayError struct {
	Machine   string
	Operation string        // "wait_for_open_port"
	Args      string        // "8080"
	Elapsed   time.Duration // how long it was under way
	LastSeen  string        // what kept it from its end, as far as it is known
	Err       error         // why it was ended
}

func (e *UnderWayError) Error() string {
	text := fmt.Sprintf("%v; under way was %s: %s(%s) for %v", e.Err, e.Machine, e.Operation, e.Args, roundDuration(e.Elapsed))
	if e.LastSeen != "" {
		text += "; last seen: " + e.LastSeen
	}
	return text
}

func (e *UnderWayError) Unwrap() error { return e.Err }

func (e *UnderWayError) describe(f *event.Failure) {
	f.Machine, f.Operation, f.Duration, f.LastSeen = e.Machine, e.Operation, e.Elapsed, e.LastSeen
}

// An UnresponsiveError is a guest that did not do what an operation asked of it: its
// agent is silent, or there and too late, or cannot say how a command ended.
type UnresponsiveError struct {
	Machine   string
	Operation string // "succeed"
	State     string // of the machine, as far as it is known: "the machine is suspended"
	Console   []string
	Err       error // what the agent did, or did not
}

func (e *UnresponsiveError) Error() string {
	text := e.Err.Error()
	if e.State != "" {
		text += "; " + e.State
	}
	return text
}

func (e *UnresponsiveError) Unwrap() error { return e.Err }

// Status is Failed: the test, or what it tests, has brought the guest there.
func (*UnresponsiveError) Status() Status { return Failed }

func (e *UnresponsiveError) describe(f *event.Failure) { f.LastSeen, f.Console = e.State, e.Console }
