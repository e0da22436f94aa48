package test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attest-vm/attest"
)

// hostileModes are what testdata/hostile can do as an agent, and hostileArchives as one
// that is asked for a copy.
var (
	hostileModes = []string{
		"nobody", "announce", "garbage", "headers", "no welcome", "version", "large welcome", "implausible welcome", "unasked results", "opens",
		"unasked pongs", "acknowledges all", "endless output", "more than its credit", "endless credit", "restarts", "half a frame",
		"no result", "silent", "deep result", "wrong result", "implausible result", "escapes", "error with escapes", "wrong numbers",
	}
	hostileArchives = []string{
		"tar: dots", "tar: absolute", "tar: dots inside", "tar: through a link", "tar: the root is a link", "tar: a link is a file",
		"tar: hard link", "tar: hard link through a link", "tar: devices", "tar: names", "tar: a huge hole", "tar: many entries",
		"tar: deep", "tar: long name", "tar: cut off", "tar: endless", "tar: garbage",
	}
)

const (
	victimDir = "/tmp/attest-victim" // as in testdata/hostile
	// What a host may take for an operation with a limit of five seconds. An agent has
	// two minutes until it has greeted, or a copy goes on; on a host without hardware
	// virtualisation it is more. The rest is for a host that is busy.
	agentPatience = 2 * time.Minute
	agentGrace    = 3 * time.Minute
	maxGrowth     = 256 // MiB that this process may have more than before
)

// TestStressHostileAgent takes the agent's place in a guest, in every way that
// testdata/hostile knows, each in a fork of one machine. Whatever is asked then ends,
// with a result or with an error that names the machine; the files of the host stay as
// they are; and the lab can be closed.
func TestStressHostileAgent(t *testing.T) {
	agents, archives := newAttack(t, "hostile agent"), newAttack(t, "hostile archive of an agent")
	program := hostileProgram(t)
	if err := os.MkdirAll(victimDir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(victimDir) })
	writeFile(t, filepath.Join(victimDir, "file"), "unharmed")
	lab := attest.New(t, small("m"))
	lab.Machine("m").CopyFromHost(program, "/root/hostile")
	s, err := lab.Lab.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	before := residentMemory(t)
	var all sync.WaitGroup
	places := make(chan struct{}, 4)
	run := func(a *attack, mode string, ask func(context.Context, *attest.Machine) error) {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			start := time.Now()
			said, err := hostileAgent(t.Context(), s, mode, ask)
			a.try(mode, err)
			t.Logf("%s: %v after %v", mode, said, time.Since(start).Round(time.Second))
		})
	}
	for _, mode := range hostileModes {
		run(agents, mode, func(ctx context.Context, m *attest.Machine) error {
			_, err := m.Execute(ctx, "echo hello", attest.Timeout(5*time.Second))
			return err
		})
	}
	for _, mode := range hostileArchives {
		target := filepath.Join(t.TempDir(), "copy")
		run(archives, mode, func(ctx context.Context, m *attest.Machine) error {
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			err := m.CopyFromMachine(ctx, "/srv/x", target)
			return err
		})
	}
	all.Wait()
	names, _ := os.ReadDir(victimDir)
	if text, err := os.ReadFile(filepath.Join(victimDir, "file")); len(names) != 1 || string(text) != "unharmed" {
		t.Errorf("the victim's files: %v, %q, %v", names, text, err)
	}
	after := residentMemory(t)
	t.Logf("memory of this process: %d MiB before, %d MiB after", before, after)
	if after > before+maxGrowth {
		t.Errorf("it has grown from %d to %d MiB", before, after)
	}
	lab.Machine("m").Succeed("true")
}

// hostileAgent has a fork of the machine taken over, and asks something of it. It
// returns what was said to that, and an error if it is not as promised.
func hostileAgent(ctx context.Context, s *attest.Snapshot, mode string, ask func(context.Context, *attest.Machine) error) (said, err error) {
	lab, err := s.Fork(ctx)
	if err != nil {
		return nil, fmt.Errorf("fork: %w", err)
	}
	limit := lab.Scale(agentPatience) + agentGrace
	m := lab.Machine("m")
	if _, err := m.Succeed(ctx, "/root/hostile agent '"+mode+"'"); err != nil {
		lab.Close()
		return nil, fmt.Errorf("begin: %w", err)
	}
	if err := m.WaitForConsoleText(ctx, "serves this guest", attest.Timeout(5*time.Minute)); err != nil {
		lab.Close()
		return nil, fmt.Errorf("begin: %w", err)
	}
	answered := make(chan error, 1)
	go func() {
		err := ask(ctx, m)
		// The first may still have begun with the agent that was killed.
		for range 3 {
			if err == nil || !strings.Contains(err.Error(), "was killed; another one has taken over") {
				break
			}
			err = ask(ctx, m)
		}
		answered <- err
	}()
	select {
	case said = <-answered:
	case <-time.After(limit):
		err = fmt.Errorf("not ended after %v", limit)
	}
	// A copy has the caller's limit alone.
	if said != nil && !errors.Is(said, context.DeadlineExceeded) && !strings.HasPrefix(said.Error(), "m: ") {
		err = fmt.Errorf("the error does not name the machine: %w", said)
	}
	if said != nil && strings.ContainsAny(said.Error(), "\x1b\x07\x00\u202e") {
		err = fmt.Errorf("the error reaches for the terminal: %q", said)
	}
	closed := make(chan error, 1)
	go func() { closed <- lab.Close() }()
	select {
	case closeErr := <-closed:
		if err == nil {
			err = closeErr
		}
	case <-time.After(agentGrace):
		err = fmt.Errorf("the lab is not closed after %v", agentGrace)
	}
	return said, err
}
