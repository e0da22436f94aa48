package agent

import (
	"bytes"
	"cmp"
	"context"
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
		r.Memory, r.Units = memory("/proc"), troubledUnits(ctx)
	}
	return r
}

// memory reads meminfo and pressure/memory of proc(5).
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
	return m
}

const (
	// unitsPatience bounds the look at systemd, which may hang, too. What is known by then
	// is better than nothing.
	unitsPatience = 8 * time.Second
)

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
// systemd has restarted because they ended.
func troubledUnits(ctx context.Context) []wire.Trouble {
	ctx, cancel := context.WithTimeout(ctx, unitsPatience)
	defer cancel()
	conn, err := connectManager(ctx, "/run/systemd/private")
	if err != nil {
		return nil
	}
	defer conn.Close()
	manager := conn.Object(systemdName, managerPath)
	var units, services []listedUnit
	if err := manager.CallWithContext(ctx, managerType+".ListUnitsFiltered", 0, []string{"failed"}).Store(&units); err != nil {
		return nil
	}
	manager.CallWithContext(ctx, managerType+".ListUnitsByPatterns", 0, serviceStates, []string{"*.service"}).Store(&services)
	units = append(units, services...)
	// Those in trouble for certain come first: to ask takes a busy guest a while.
	certain := func(active, sub string) bool { return active == "failed" || sub == "auto-restart" }
	slices.SortStableFunc(units, func(a, b listedUnit) int {
		if certain(a.Active, a.Sub) == certain(b.Active, b.Sub) {
			return 0
		}
		if certain(a.Active, a.Sub) {
			return -1
		}
		return 1
	})
	var out []wire.Trouble
	for _, u := range units {
		t := wire.Trouble{Unit: u.Name, ActiveState: u.Active, SubState: u.Sub}
		if strings.HasSuffix(u.Name, ".service") {
			object := conn.Object(systemdName, u.Path)
			property(ctx, object, systemdName+".Service.NRestarts", &t.Restarts)
			if t.Restarts > 0 || u.Active == "failed" {
				property(ctx, object, systemdName+".Service.Result", &t.Result)
				property(ctx, object, systemdName+".Service.ExecMainStatus", &t.Status)
			}
		}
		if certain(u.Active, u.Sub) || t.Restarts > 0 {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b wire.Trouble) int { return cmp.Compare(a.Unit, b.Unit) })
	return out[:min(len(out), wire.MaxTroubles)]
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
