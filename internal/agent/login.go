package agent

import (
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// logins are the restarts of gettys that the agent has caused.
type logins struct {
	mu      sync.Mutex
	renewed map[string]uint32 // by unit
}

// renew has the login prompts of a guest that got another name written again: a getty
// that hangs up is started anew. proc is where proc(5) is mounted.
func (l *logins) renew(proc string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	names, _ := filepath.Glob(filepath.Join(proc, "[0-9]*/comm"))
	for _, file := range names {
		name, _ := os.ReadFile(file)
		if !strings.HasSuffix(strings.TrimSpace(string(name)), "getty") { // agetty, getty, mingetty
			continue
		}
		dir := filepath.Dir(file)
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		unit := unitOf(dir)
		if unix.Kill(pid, unix.SIGHUP) == nil && unit != "" {
			if l.renewed == nil {
				l.renewed = map[string]uint32{}
			}
			l.renewed[unit]++
		}
	}
}

// unitOf is the service of the process of a directory of proc(5), by its control group;
// empty if it is in none.
func unitOf(dir string) string {
	groups, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
	for line := range strings.Lines(string(groups)) {
		if unit := path.Base(strings.TrimSpace(line)); strings.HasSuffix(unit, ".service") {
			return unit
		}
	}
	return ""
}

// without returns the units that are in trouble by more than what the agent has done.
func (l *logins) without(units []wire.Trouble) []wire.Trouble {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []wire.Trouble
	for _, u := range units {
		own, begun := l.renewed[u.Unit], u.Restarts
		if strings.HasPrefix(u.SubState, "auto-restart") {
			begun++ // systemd counts it when it is over
		}
		if own > 0 && u.ActiveState != "failed" && begun <= own {
			continue
		}
		u.Restarts -= min(own, u.Restarts)
		out = append(out, u)
	}
	return out
}
