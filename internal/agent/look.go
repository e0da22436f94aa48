package agent

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// look is the operation wire.OpLook: what in the guest may keep others from their end.
func (s *Server) look(ctx context.Context) wire.LookResult {
	r := wire.LookResult{Held: s.shell.lingering.list()}
	if s.Stage == nil { // otherwise they are the host's
		r.Memory = memory("/proc")
		r.Units, r.Unknown = troubledUnits(ctx, "/run/systemd/private", unitsPatience)
		r.Units = s.logins.without(r.Units)
	}
	return r
}

// memory reads meminfo, pressure/memory and vmstat of proc(5).
func memory(proc string) (m wire.Memory) {
	info, _ := os.ReadFile(filepath.Join(proc, "meminfo"))
	for line := range strings.Lines(string(info)) {
		name, rest, _ := strings.Cut(line, ":")
		kib, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		n, err := strconv.ParseInt(kib, 10, 64)
		switch {
		case err != nil:
		case name == "MemTotal":
			m.Total = n
		case name == "MemAvailable":
			m.Available = n
		}
	}
	pressure, _ := os.ReadFile(filepath.Join(proc, "pressure/memory")) // a kernel may lack it
	for line := range strings.Lines(string(pressure)) {
		if rest, ok := strings.CutPrefix(line, "full avg10="); ok {
			share, _, _ := strings.Cut(rest, " ")
			m.Stalled, _ = strconv.ParseFloat(share, 64)
		}
	}
	counters, _ := os.ReadFile(filepath.Join(proc, "vmstat"))
	for line := range strings.Lines(string(counters)) {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
			m.Killed, _ = strconv.ParseInt(strings.TrimSpace(n), 10, 64)
		}
	}
	return m
}

// unitsPatience bounds the look at systemd, which may be slow, or hang. What is known by
// then is better than nothing.
const unitsPatience = 8 * time.Second

// serviceStates are those of services that systemd may have restarted.
var serviceStates = []string{"auto-restart", "auto-restart-queued", "condition", "start-pre", "start", "start-post", "running", "stop-post", "final-sigterm"}

// A listedUnit is what ListUnitsFiltered of org.freedesktop.systemd1(5) says of one.
type listedUnit struct {
	Name, Description, Load, Active, Sub, Following string
	Path                                            dbus.ObjectPath
	Job                                             uint32
	JobType                                         string
	JobPath                                         dbus.ObjectPath
}

// troubledUnits are the units of the system that have failed, and services that
// systemd has restarted because they ended. unknown says why there may be more; empty if
// systemd has answered, and where there is no systemd.
func troubledUnits(ctx context.Context, socket string, patience time.Duration) (units []wire.Trouble, unknown string) {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := connectManager(limited, socket)
	if err == nil {
		units, err = askForTroubled(limited, conn)
		conn.Close()
	}
	switch {
	case err == nil || errors.Is(err, os.ErrNotExist):
	case limited.Err() != nil:
		unknown = fmt.Sprintf("systemd had not answered after %v", patience)
	default:
		unknown = wire.Excerpt("systemd: " + err.Error())
	}
	slices.SortFunc(units, func(a, b wire.Trouble) int { return cmp.Compare(a.Unit, b.Unit) })
	return units[:min(len(units), wire.MaxTroubles)], unknown
}

// askForTroubled asks everything of a kind at once: each answer that is waited for costs a
// busy guest a turn of its processor. On errors it returns what it knows.
func askForTroubled(ctx context.Context, conn *dbus.Conn) ([]wire.Trouble, error) {
	var failed, services []listedUnit
	manager := conn.Object(systemdName, managerPath)
	err := askAll(ctx, []question{
		{manager, managerType + ".ListUnitsFiltered", []any{[]string{"failed"}}, &failed},
		{manager, managerType + ".ListUnitsByPatterns", []any{serviceStates, []string{"*.service"}}, &services},
	})
	listed := append(failed, services...)
	troubles := make([]wire.Trouble, len(listed))
	var restarts []question
	for i, u := range listed {
		troubles[i] = wire.Trouble{Unit: u.Name, ActiveState: u.Active, SubState: u.Sub}
		if strings.HasSuffix(u.Name, ".service") {
			restarts = append(restarts, get(conn.Object(systemdName, u.Path), systemdName+".Service.NRestarts", &troubles[i].Restarts))
		}
	}
	if err == nil {
		err = askAll(ctx, restarts)
	}
	var out []wire.Trouble
	var objects []dbus.BusObject
	for i, t := range troubles {
		if t.ActiveState == "failed" || t.SubState == "auto-restart" || t.Restarts > 0 {
			out, objects = append(out, t), append(objects, conn.Object(systemdName, listed[i].Path))
		}
	}
	var results []question
	for i := range out {
		if strings.HasSuffix(out[i].Unit, ".service") {
			results = append(results, get(objects[i], systemdName+".Service.Result", &out[i].Result), get(objects[i], systemdName+".Service.ExecMainStatus", &out[i].Status))
		}
	}
	if err == nil {
		err = askAll(ctx, results)
	}
	return out, err
}

// A question is a call of a method, and where its answer goes.
type question struct {
	object dbus.BusObject
	method string
	args   []any
	answer any
}

const getProperty = "org.freedesktop.DBus.Properties.Get"

// get is the question for a property.
func get(object dbus.BusObject, name string, value any) question {
	i := strings.LastIndexByte(name, '.')
	return question{object, getProperty, []any{name[:i], name[i+1:]}, value}
}

// askAll asks all questions before it waits for an answer. A property that is refused keeps
// its value: the unit may be gone meanwhile.
func askAll(ctx context.Context, questions []question) error {
	calls := make([]*dbus.Call, len(questions))
	for i, q := range questions {
		calls[i] = q.object.GoWithContext(ctx, q.method, 0, make(chan *dbus.Call, 1), q.args...)
	}
	for i, q := range questions {
		c := <-calls[i].Done // which the end of ctx fills, too
		err := c.Err
		if err == nil && q.method == getProperty {
			var v dbus.Variant
			if err = c.Store(&v); err == nil {
				err = dbus.Store([]any{v.Value()}, q.answer)
			}
		} else if err == nil {
			err = c.Store(q.answer)
		}
		if err != nil && !(q.method == getProperty && isDBusError(err)) {
			return err
		}
	}
	return nil
}

// lingering are the commands that have ended and whose standard output has not.
type lingering struct {
	mu  sync.Mutex
	all []*child
}

func (l *lingering) add(c *child) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, c)
}

func (l *lingering) remove(c *child) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = slices.DeleteFunc(l.all, func(o *child) bool { return o == c })
}

// list says who holds the output of which command. The lock is held all the while, so
// that no output is closed, and its number another's.
func (l *lingering) list() []wire.Held {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []wire.Held
	for _, c := range l.all {
		out = append(out, wire.Held{Command: c.name, By: c.holders()})
	}
	return out
}

// holders are the processes that have the command's standard output open.
func (c *child) holders() []wire.Process {
	if c.stdout == nil {
		return nil
	}
	raw, err := c.stdout.SyscallConn()
	if err != nil {
		return nil
	}
	var st unix.Stat_t
	if raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }) != nil || err != nil {
		return nil
	}
	return holdersOf(fmt.Sprintf("pipe:[%d]", st.Ino))
}

// holdersOf are the processes that have a file open, by what the link in their
// /proc/PID/fd says, but for this one.
func holdersOf(link string) []wire.Process {
	pids, _ := os.ReadDir("/proc")
	var out []wire.Process
	for _, p := range pids {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		dir := filepath.Join("/proc", p.Name())
		fds, _ := os.ReadDir(filepath.Join(dir, "fd"))
		if !slices.ContainsFunc(fds, func(fd os.DirEntry) bool {
			to, _ := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
			return to == link
		}) {
			continue
		}
		if out = append(out, wire.Process{Pid: pid, Name: nameOf(dir)}); len(out) == wire.MaxProcesses {
			break
		}
	}
	return out
}

// nameOf is a process's command line, or its name if it has none.
func nameOf(dir string) string {
	line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
	line = bytes.TrimSpace(bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
	if len(line) == 0 {
		line, _ = os.ReadFile(filepath.Join(dir, "comm"))
		line = bytes.TrimSpace(line)
	}
	return wire.Excerpt(string(line))
}
