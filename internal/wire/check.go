package wire

import (
	"encoding/json"
	"fmt"
	"reflect"
	"time"

	"golang.org/x/sys/unix"
)

// DecodeReply decodes the payload of a Result. result, unless it is nil, gets the
// outcome, and is zero on error. failure is what the agent says went wrong, and can
// come with an outcome. A payload that no agent of this version sends, numbers out of their
// range included, is an error.
func DecodeReply(payload []byte, result any) (failure *Error, err error) {
	var reply struct {
		Result json.RawMessage `json:"result"`
		Error  *Error          `json:"error"`
	}
	if err := json.Unmarshal(payload, &reply); err != nil {
		return nil, err
	}
	if result == nil || len(reply.Result) == 0 {
		return reply.Error, nil
	}
	err = json.Unmarshal(reply.Result, result)
	if r, ok := result.(interface{ Check() error }); ok && err == nil {
		err = r.Check()
	}
	if err != nil {
		reflect.ValueOf(result).Elem().SetZero()
		return nil, err
	}
	return reply.Error, nil
}

// What an agent says is checked before anybody computes with it: Check reports the
// first number that no honest agent sends.

const (
	maxExitCode = 255
	maxPid      = 1 << 22 // PID_MAX_LIMIT of Linux
	maxSkipped  = 100
	maxTime     = 7_258_118_400 // Unix time of the year 2200
)

// within reports a number that is out of its range.
func within[N int | int64 | time.Duration](what string, n, low, high N) error {
	if n < low || n > high {
		return fmt.Errorf("%s of %d", what, int64(n))
	}
	return nil
}

func notNegative[N int | int64 | time.Duration](what string, n N) error {
	return within(what, n, 0, max(n, 0))
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Check reports an Info that no agent of this version sends.
func (i Info) Check() error {
	if i.Instance == "" {
		return fmt.Errorf("an agent without an instance")
	}
	return notNegative("an uptime", i.Uptime)
}

// Check reports an outcome that no command has.
func (r ExecResult) Check() error {
	if r.Signal != "" && unix.SignalNum(r.Signal) == 0 {
		return fmt.Errorf("a signal called %.40q", r.Signal)
	}
	return first(within("an exit code", r.ExitCode, 0, maxExitCode), notNegative("a duration", r.Duration), within("a process id", r.Pid, 0, maxPid),
		checkProcesses(r.Held))
}

// Limits of what an agent says of processes and units, which is shown to people.
const (
	MaxProcesses = 5
	MaxTroubles  = 20
	maxName      = 4 * maxExcerpt // in JSON a byte that is no text is three
)

func checkProcesses(list []Process) error {
	if len(list) > MaxProcesses {
		return fmt.Errorf("%d processes", len(list))
	}
	for _, p := range list {
		if err := first(within("a process id", p.Pid, 0, maxPid), within("a name's length", len(p.Name), 0, maxName)); err != nil {
			return err
		}
	}
	return nil
}

// Check reports a look that no agent of this version has.
func (r LookResult) Check() error {
	if len(r.Units) > MaxTroubles {
		return fmt.Errorf("%d units", len(r.Units))
	}
	for _, u := range r.Units {
		if n := len(u.Unit) + len(u.ActiveState) + len(u.SubState) + len(u.Result); n > maxName {
			return fmt.Errorf("a unit of %d bytes", n)
		}
	}
	if n := len(r.Unknown); n > maxName {
		return fmt.Errorf("a reason of %d bytes", n)
	}
	for _, h := range r.Held {
		if err := checkProcesses(h.By); err != nil {
			return err
		}
	}
	if m := r.Memory; !(m.Stalled >= 0 && m.Stalled <= 100) {
		return fmt.Errorf("a share of %v %%", m.Stalled)
	}
	return first(notNegative("an amount of memory", r.Memory.Total), notNegative("an amount of memory", r.Memory.Available))
}

// Check reports an outcome that no repeated command has.
func (r UntilResult) Check() error {
	err := first(r.ExecResult.Check(), notNegative("a number of tries", r.Tries))
	if err == nil && r.Ended != nil {
		err = within("an exit code", *r.Ended, 0, maxExitCode)
	}
	return err
}

// Check reports an impossible number of looks.
func (o Observation) Check() error { return notNegative("a number of tries", o.Tries) }

// Check reports a job that cannot be.
func (r JobsResult) Check() error {
	for _, j := range r.Jobs {
		if err := first(within("a process id", j.Pid, 0, maxPid), notNegative("a number of bytes", j.Stdout), notNegative("a number of bytes", j.Stderr)); err != nil {
			return err
		}
	}
	return nil
}

// Check reports an impossible number of looks.
func (s WindowState) Check() error { return notNegative("a number of tries", s.Tries) }

// Check reports a copy that cannot be.
func (r CopyResult) Check() error {
	return first(notNegative("a number of files", r.Files), notNegative("a number of bytes", r.Bytes),
		within("a number of skipped files", len(r.Skipped), 0, maxSkipped))
}

// Check reports a time that no clock shows.
func (r ClockResult) Check() error { return within("a Unix time", r.Time.Unix(), 0, maxTime) }
