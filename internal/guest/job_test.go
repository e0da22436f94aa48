package guest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/wire"
)

// await waits until something is so in the guest's file system.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); {
		if time.Now().After(end) {
			t.Fatalf("not so: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// chatter is a job that says a part of 1 to 5 whenever there is a file of that name, and
// that it has said it by another.
const chatter = `for i in 1 2 3 4 5; do
	until test -e $i; do sleep 0.01; done
	seq -f "part $i, line %%g" 1 %d; echo "part $i" >&2
	touch said-$i
done; exit 7`

// A job goes on from one client to the next: each gets what was said since the one
// before, also while there was none, and the last one its end. A plain command ends.
func TestJobsAreAdopted(t *testing.T) {
	c, ctx, dir := newCable(t), testContext(t), t.TempDir()
	const lines = 3000 // some 60 KiB
	first := c.client(guest.Options{})
	var out, stderr screen
	p, err := first.Start(ctx, guest.Command{Job: "chatter", Script: fmt.Sprintf(chatter, lines), Dir: dir, Stdout: &out, Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Start(ctx, guest.Command{Script: "echo $BASHPID >pid; exec sleep 1000", Dir: dir}); err != nil {
		t.Fatal(err)
	}
	var plain int
	await(t, "the plain command runs", func() bool {
		b, _ := os.ReadFile(filepath.Join(dir, "pid"))
		n, _ := fmt.Sscan(string(b), &plain)
		return n == 1
	})
	var want, wantErr strings.Builder
	say := func(i int) {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		for n := range lines {
			fmt.Fprintf(&want, "part %d, line %d\n", i, n+1)
		}
		fmt.Fprintf(&wantErr, "part %d\n", i)
	}
	heard := func(p *guest.Process) guest.Received {
		for _, s := range []struct {
			screen *screen
			all    string
		}{{&out, want.String()}, {&stderr, wantErr.String()}} {
			s.screen.await(t, ctx, s.all)
		}
		if r := p.Received(); r != (guest.Received{Stdout: int64(want.Len()), Stderr: int64(wantErr.Len())}) {
			t.Errorf("received %+v, there is %d and %d", r, want.Len(), wantErr.Len())
		}
		return p.Received()
	}
	say(1)
	received := heard(p)
	first.Close(nil)
	for i := 2; i <= 4; i++ {
		m := c.client(guest.Options{})
		known, err := m.Jobs(ctx)
		if err != nil || len(known) != 1 || known[0].ID != "chatter" || known[0].Ended || !alive(known[0].Pid) {
			t.Fatalf("jobs %+v, %v", known, err)
		}
		say(i) // nobody listens
		await(t, "it is said", func() bool { _, err := os.Stat(filepath.Join(dir, fmt.Sprint("said-", i))); return err == nil })
		if i == 2 {
			await(t, "the plain command has ended", func() bool { return !alive(plain) })
		}
		p, err := m.Adopt(ctx, "chatter", guest.Adoption{Stdout: &out, Stderr: &stderr, Received: received})
		if err != nil {
			t.Fatal(err)
		}
		received = heard(p)
		m.Close(nil)
	}
	last := c.client(guest.Options{})
	defer last.Close(nil)
	p, err = last.Adopt(ctx, "chatter", guest.Adoption{Stdout: &out, Stderr: &stderr, Received: received})
	if err != nil {
		t.Fatal(err)
	}
	say(5)
	r, err := p.Wait()
	heard(p)
	if err != nil || r.ExitCode != 7 || r.Duration <= 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if out.String() != want.String() || stderr.String() != wantErr.String() {
		t.Errorf("%d and %d bytes, want %d and %d", len(out.String()), len(stderr.String()), want.Len(), wantErr.Len())
	}
	// Its result stays.
	p, err = last.Adopt(ctx, "chatter", guest.Adoption{Received: p.Received()})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := p.Wait(); err != nil || r.ExitCode != 7 || len(r.Stdout) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// An adopted job has signals and ends with the context of its adoption, and what nobody
// hears does not stop it.
func TestAdoptedJobs(t *testing.T) {
	c, ctx, dir := newCable(t), testContext(t), t.TempDir()
	first := c.client(guest.Options{})
	never, typist := io.Pipe()
	defer typist.Close()
	for _, job := range []guest.Command{
		{Job: "signal", Script: "echo ready; exec sleep 1000"},
		{Job: "context", Argv: []string{"sleep", "1000"}},
		{Job: "flood", Script: "echo ready; until test -e alone; do sleep 0.01; done; head -c 3M /dev/zero; echo end; exit 2", Dir: dir},
		{Job: "stdin", Script: "echo ready; cat; echo its input has ended", Stdin: never},
	} {
		var out screen
		job.Stdout = &out
		if _, err := first.Start(ctx, job); err != nil {
			t.Fatal(err)
		}
		if job.Script != "" {
			out.await(t, ctx, "ready")
		}
	}
	if _, err := first.Run(ctx, guest.Command{Job: "signal", Script: "true"}); !isOp(err, wire.KindInvalid) {
		t.Errorf("a second job of that name: %v", err)
	}
	if p, err := first.Adopt(ctx, "signal", guest.Adoption{}); err != nil {
		t.Error(err)
	} else if _, err := p.Wait(); !isOp(err, wire.KindInvalid) {
		t.Errorf("a job that is in use: %v", err)
	}
	first.Close(nil)

	m := c.client(guest.Options{})
	defer m.Close(nil)
	p, err := m.Adopt(ctx, "signal", guest.Adoption{})
	if err != nil {
		t.Fatal(err)
	}
	p.Signal(syscall.SIGTERM)
	if r, err := p.Wait(); err != nil || r.Signal != "SIGTERM" {
		t.Errorf("signal: %+v, %v", r, err)
	}
	limited, cancel := context.WithCancel(ctx)
	if p, err = m.Adopt(limited, "context", guest.Adoption{}); err != nil {
		t.Fatal(err)
	}
	cancel()
	var wait *guest.WaitError
	if _, err := p.Wait(); !errors.As(err, &wait) {
		t.Errorf("context: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "alone"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	await(t, "the flood has ended", func() bool {
		jobs, err := m.Jobs(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range jobs {
			if j.ID == "flood" {
				return j.Ended
			}
		}
		return false
	})
	if p, err = m.Adopt(ctx, "flood", guest.Adoption{}); err != nil {
		t.Fatal(err)
	}
	r, err := p.Wait()
	if err != nil || r.ExitCode != 2 || !bytes.HasSuffix(r.Stdout, []byte("\x00end\n")) || len(r.Stdout) > 3<<20 {
		t.Errorf("flood: code %d, %d bytes, %v", r.ExitCode, len(r.Stdout), err)
	}
	if got := p.Received().Stdout; got != int64(3<<20+len("ready\nend\n")) {
		t.Errorf("flood: it ended at byte %d", got)
	}
	if p, err = m.Adopt(ctx, "stdin", guest.Adoption{}); err != nil {
		t.Fatal(err)
	}
	p.Signal(syscall.SIGTERM)
	if r, err := p.Wait(); err != nil || r.Signal != "SIGTERM" || bytes.Contains(r.Stdout, []byte("ended")) {
		t.Errorf("stdin: %+v, %v", r, err)
	}
	if _, err := m.Adopt(ctx, "none", guest.Adoption{}); !isOp(err, wire.KindNotFound) {
		t.Errorf("no job: %v", err)
	}
}

func isOp(err error, kind string) bool {
	var op *guest.OpError
	return errors.As(err, &op) && op.Kind == kind
}
