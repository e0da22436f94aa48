package contract

import (
	"bufio"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/microvm/fake"
)

// A guest without attest's agent offers a root shell on its vsock, at each boot a new one.
// Once an agent runs there, it is saved and restored as any other, and nobody asks for a
// shell any more.
func (s Subject) hasRootShell(t *testing.T) {
	r := s.rig(t, Options{Manners: fake.Manners{Shell: true, Unheard: 2}})
	bare := func(name string) vmm.Config {
		c := r.Config(name)
		c.Boot.(*vmm.Hardware).Bare, c.AllowReboot = true, true
		return c
	}
	b := r.Start(bare("m"))
	shell, upload := b.VM.(vmm.Backdoor).Backdoor()
	defer shell.Close()
	if upload != nil {
		t.Error("there is a second stream")
	}
	lines := bufio.NewReader(shell)
	hears := func(want string) {
		t.Helper()
		shell.SetReadDeadline(time.Now().Add(patience))
		if line, err := lines.ReadString('\n'); strings.TrimSpace(line) != want {
			t.Fatalf("heard %q (%v), want %q", line, err, want)
		}
	}
	starts := func() {
		t.Helper()
		hears("Spawning backdoor root shell...")
		fmt.Fprintln(shell, fake.StartAgent)
		hears("told: " + fake.StartAgent)
		// The first command may be what finds out that the agent is another one.
		var restarted *guest.RestartedError
		if _, err := b.Run(r.Ctx, guest.Command{Script: "true"}); err != nil && !errors.As(err, &restarted) {
			t.Fatal(err)
		}
		b.Runs(r.Ctx)
	}
	hears("Spawning backdoor root shell...")
	fmt.Fprintln(shell, "hello")
	hears("told: hello")
	var unsupported *vmm.UnsupportedError
	if err := b.VM.(vmm.Doubtful).CanSave(r.Ctx); !errors.As(err, &unsupported) || !strings.Contains(err.Error(), "a root shell on its vsock") {
		t.Errorf("it could be saved: %v", err)
	}
	if err := b.VM.(vmm.Rebooter).Reset(r.Ctx); err != nil {
		t.Fatal(err)
	}
	starts()
	if err := b.VM.(vmm.Doubtful).CanSave(r.Ctx); err != nil {
		t.Error(err)
	}
	restored := bare("restored")
	restored.Restore = r.Save(b)
	clone := r.Start(restored)
	clone.Runs(r.Ctx)
	silent, _ := clone.VM.(vmm.Backdoor).Backdoor()
	defer silent.Close()
	if err := b.VM.(vmm.Rebooter).Reset(r.Ctx); err != nil {
		t.Fatal(err)
	}
	starts()
	if err := clone.Kill(); err != nil {
		t.Fatal(err)
	}
	if n, err := silent.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Error("the clone's shell said something")
	}
}
