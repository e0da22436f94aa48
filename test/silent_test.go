package test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attest-vm/attest"
)

// TestShellFallsSilent stops the root shell that stands in for the agent: the one that a guest
// offers, and the one that attest's login on the serial console has started. Everything ends by its limit, and
// says what was heard last.
func TestShellFallsSilent(t *testing.T) {
	if !*bothWays {
		t.Skip("-args -shell runs it; TestShellThatHangs of internal/backdoor is a short form")
	}
	t.Setenv(attest.UpgradeEnv, "never")
	grub, err := filepath.Abs("../out/boot/grub.img")
	if err != nil {
		t.Fatal(err)
	}
	lab := openLab(t.Context(), t, attest.HostConfig{}, attest.LabConfig{Machines: []attest.MachineConfig{
		{Name: "backdoor", StartCommand: newForeignGuest(t).script(t, "backdoor", "-vga none"), Networks: []int{}},
		{Name: "login", Image: attest.Disk{Path: grub, Boot: "bios", User: "root", Password: "attest"}, Memory: 384, Networks: []int{}},
	}})
	for _, m := range lab.Machines() {
		t.Run(m.Name(), func(t *testing.T) { testSilentShell(t, tried{m, t}) })
	}
}

func testSilentShell(t *testing.T, m tried) {
	ctx := t.Context()
	must(t, m.SnapshotCreate(ctx, "speaks"))
	// A command's parent is what the shell has forked for it.
	m.succeed("read -r _ _ _ shell _ < /proc/$PPID/stat; kill -STOP $shell")
	const limit = 5 * time.Second
	const silent = "; its guest does not respond: its root shell was heard last "
	late := fmt.Sprintf("%s: exec: the root shell in the guest has not answered within ", m.Name())
	var all sync.WaitGroup
	for _, op := range []struct {
		do   func() error
		want []string
	}{
		{func() error { _, err := m.Succeed(ctx, "true", attest.Timeout(limit)); return err }, []string{late, silent}},
		{func() error { _, err := m.Execute(ctx, "true", attest.Timeout(limit)); return err }, []string{late, silent}},
		{func() error { _, err := m.Succeed(ctx, "true"); return err }, []string{m.Name() + ": the guest does not respond: its root shell sent nothing for ", silent}},
		{func() error { return m.CopyFromHost(ctx, "silent_test.go", "/root/copied") }, []string{m.Name() + ": the guest does not respond: its root shell sent nothing for ", silent}},
		{func() error { return m.WaitForFile(ctx, "/root/file", attest.Timeout(limit)) }, []string{m.Name() + `: wait_for_file("/root/file") timed out after `, "(limit 5s)", silent}},
		{func() error { return m.WaitForUnit(ctx, "a.service", attest.Timeout(limit)) }, []string{m.Name() + `: wait_for_unit("a.service") timed out after `, "(limit 5s)", silent}},
		{func() error { _, err := m.WaitUntilSucceeds(ctx, "false", attest.Timeout(limit)); return err },
			[]string{m.Name() + `: wait_until_succeeds("false") timed out after `, "(limit 5s, 1 try); last seen: the last attempt had not ended", silent}},
		{func() error {
			ctx, cancel := context.WithTimeout(ctx, 4*limit)
			defer cancel()
			_, err := m.Succeed(ctx, "true")
			return err
		}, []string{"; under way was " + m.Name() + `: succeed("true") for `, "; last seen: its guest does not respond: its root shell was heard last "}},
	} {
		all.Go(func() {
			begun := time.Now()
			err := op.do()
			t.Logf("after %v: %v", time.Since(begun).Round(time.Second), err)
			if attest.StatusOf(err) != attest.Failed {
				t.Errorf("%v: %v", attest.StatusOf(err), err)
			}
			for _, want := range op.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("not said: %q", want)
				}
			}
		})
	}
	all.Wait()
	_, err := m.Succeed(ctx, "true", attest.Timeout(limit))
	if err == nil || !strings.Contains(err.Error(), late) || !strings.Contains(err.Error(), silent) {
		t.Errorf("later: %v", err)
	}
	must(t, m.SnapshotRestore(ctx, "speaks"))
	if got := m.succeed("echo again"); got != "again\n" {
		t.Errorf("got %q", got)
	}
}
