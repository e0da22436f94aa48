package attest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/vmm"
)

// qmpEventTimeout is the NixOS driver's limit of wait_for_qmp_event.
const qmpEventTimeout = 10 * time.Minute

// SendMonitorCommand runs a command of the VMM's own monitor (QEMU: HMP) and
// returns what it says. A command that the monitor does not know, or refuses, is
// an error. The guest need not have booted, and the machine can be paused.
func (m *Machine) SendMonitorCommand(ctx context.Context, command string) (string, error) {
	var out string
	args := strconv.Quote(command)
	err := step(ctx, m.Name(), "send_monitor_command", args, func(ctx context.Context) error {
		if strings.ContainsAny(command, "\r\n") {
			return &ConfigError{m.Name(), fmt.Sprintf("send_monitor_command(%s): want one command on one line", args)}
		}
		return withVMM(ctx, m, "send_monitor_command", vmm.CanInteract, func(r *run, v vmm.Monitor) (err error) {
			if out, err = v.MonitorCommand(ctx, command); err != nil && ctx.Err() == nil && r.vm.Exit().Reason == vmm.Running {
				return fmt.Errorf("%s: send_monitor_command(%s): %w", m.Name(), args, err)
			}
			return r.whenGone(err)
		})
	})
	return out, err
}

// QMPCommand runs a command of QEMU's monitor for programs (QEMU docs/interop/qmp-ref), and returns
// what it returns: numbers are int64 or float64. An error of QEMU's is an error. The guest need not
// have booted, and the machine can be paused. What the command changes goes unnoticed.
func (m *Machine) QMPCommand(ctx context.Context, command string, arguments map[string]any) (any, error) {
	var result any
	args := strconv.Quote(command)
	err := step(ctx, m.Name(), "qmp_command", args, func(ctx context.Context) error {
		return withVMM(ctx, m, "qmp_command", vmm.CanInteract, func(r *run, v vmm.Monitor) error {
			out, err := v.Ask(ctx, command, arguments)
			if err != nil && ctx.Err() == nil && r.vm.Exit().Reason == vmm.Running {
				return fmt.Errorf("%s: qmp_command(%s): %w", m.Name(), args, err)
			}
			if err != nil {
				return r.whenGone(err)
			}
			result, err = jsonValue(out)
			return err
		})
	})
	return result, err
}

// jsonValue is JSON with its numbers as numbers makes them.
func jsonValue(text []byte) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	err = d.Decode(&v)
	return numbers(v), err
}

// A QMPEvent is something that QEMU has said unasked (QEMU
// docs/interop/qmp-spec), such as "STOP" or "POWERDOWN".
type QMPEvent struct {
	Name string
	Data map[string]any // nil if it has none; numbers are int64 or float64
	Time time.Time
}

// WaitForQMPEvent waits for an event of QEMU's that match likes, and returns it.
// It looks at what came since the machine was started or since the last event
// that was returned; of those the last 1000 are kept. The limit is 10 minutes
// unless given.
func (m *Machine) WaitForQMPEvent(ctx context.Context, match func(QMPEvent) bool, opts ...WaitOption) (QMPEvent, error) {
	return m.waitForQMPEvent(ctx, "", match, collect(opts))
}

// WaitForQMPEventNamed is WaitForQMPEvent for the next event of a name.
func (m *Machine) WaitForQMPEventNamed(ctx context.Context, name string, opts ...WaitOption) (QMPEvent, error) {
	return m.waitForQMPEvent(ctx, strconv.Quote(name), func(e QMPEvent) bool { return e.Name == name }, collect(opts))
}

func (m *Machine) waitForQMPEvent(ctx context.Context, args string, match func(QMPEvent) bool, o options) (QMPEvent, error) {
	var found QMPEvent
	w := m.newWait("wait_for_qmp_event", args, o, qmpEventTimeout)
	err := w.do(ctx, func(ctx context.Context) (on *run, err error) {
		err = withVMM(ctx, m, w.operation, vmm.CanTell, func(r *run, v vmm.EventSource) (err error) {
			on = r
			found, err = r.awaitEvent(ctx, v.Events(), match)
			return err
		})
		return on, err
	})
	return found, err
}

func (r *run) awaitEvent(ctx context.Context, log *vmm.EventLog, match func(QMPEvent) bool) (QMPEvent, error) {
	r.eventMu.Lock()
	next := r.nextEvent
	r.eventMu.Unlock()
	last := "no event"
	for {
		e, after, err := log.Next(ctx, next)
		switch {
		case errors.Is(err, vmm.ErrNoMoreEvents):
			<-r.over
			return QMPEvent{}, r.down
		case err != nil:
			return QMPEvent{}, &WaitError{LastSeen: last}
		}
		next, last = after, "event "+e.Name
		if q := qmpEvent(e); match(q) {
			r.eventMu.Lock()
			r.nextEvent = max(r.nextEvent, next)
			r.eventMu.Unlock()
			return q, nil
		}
	}
}

func qmpEvent(e vmm.Event) QMPEvent {
	q := QMPEvent{Name: e.Name, Time: e.Time}
	if e.Data != nil {
		v, _ := jsonValue(e.Data)
		q.Data, _ = v.(map[string]any)
	}
	return q
}

// numbers makes each json.Number in v an int64 or a float64.
func numbers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			v[k] = numbers(x)
		}
	case []any:
		for i, x := range v {
			v[i] = numbers(x)
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	}
	return v
}
