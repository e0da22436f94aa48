package backdoor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/wire"
)

// newConsoleBox is a guest that has no port, whose console is a terminal, as in a guest. What comes
// from it goes through through.
func newConsoleBox(t *testing.T, through func(net.Conn) net.Conn, garbage func(error)) *bashBox {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(master.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err := errors.Join(err, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0), unix.SetNonblock(fd, true)); err != nil {
		t.Fatal(err)
	}
	theirs, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := term.MakeRaw(int(theirs.Fd())); err != nil {
		t.Fatal(err)
	}
	b := &bashBox{t: t, console: newPlug(through(fileConn{master})), theirs: theirs, ports: t.TempDir(), garbage: garbage}
	b.begin(guest.Options{}, master)
	return b
}

// A pieces reads a few bytes at a time.
type pieces struct {
	net.Conn
	random *rand.Rand
}

func (p pieces) Read(b []byte) (int, error) {
	return p.Conn.Read(b[:min(len(b), 1+p.random.IntN(700))])
}

// By a console, in whatever pieces it comes, everything is the same.
func TestShellOnConsole(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	b := newConsoleBox(t, func(c net.Conn) net.Conn { return pieces{c, rand.New(rand.NewPCG(seed, 0))} }, func(err error) { t.Error(err) })
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	for _, n := range []int{0, 1, 15, 16, 17, 60, 500} {
		want := bytes.Repeat(every, n)
		got := b.run(guest.Command{Script: "tee /dev/stderr", Stdin: bytes.NewReader(want)})
		if !bytes.Equal(got.Stdout, want) || !bytes.Equal(got.Stderr, want) {
			t.Errorf("%d bytes: got %d and %d", len(want), len(got.Stdout), len(got.Stderr))
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/file", bytes.Repeat(every, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.CopyIn(t.Context(), dir+"/file", dir+"/in"); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := os.Mkdir(dir+"/out", 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := root.OpenRoot("out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := b.client.CopyOut(t.Context(), dir+"/in", out); err != nil {
		t.Error(err)
	}
	if diff, err := exec.Command("cmp", dir+"/file", dir+"/out/in").CombinedOutput(); err != nil {
		t.Errorf("%s", diff)
	}
}

// A shell that has a port says nothing on its console, where it could be lost.
func TestShellSaysByPort(t *testing.T) {
	for name, b := range map[string]*bashBox{
		"port":    newBashBox(t, guest.Options{}),
		"console": newConsoleBox(t, func(c net.Conn) net.Conn { return c }, func(err error) { t.Error(err) }),
	} {
		if got := b.run(guest.Command{Script: "echo said"}); string(got.Stdout) != "said\n" {
			t.Errorf("%s: got %q", name, got.Stdout)
		}
		if _, said := b.door.State(); strings.Contains(said, "$'said") != (name == "console") {
			t.Errorf("%s: the console has %q", name, said)
		}
	}
}

// A leak is a console of which a part of a line of output is lost, as QEMU's are when they are not
// read in time.
type leak struct {
	net.Conn
	random *rand.Rand
	lines  bytes.Buffer
	lost   *atomic.Bool
}

func (l *leak) Read(p []byte) (int, error) {
	for l.lines.Len() == 0 {
		buf := make([]byte, 1<<10)
		var line []byte
		for !bytes.HasSuffix(line, []byte("\n")) {
			n, err := l.Conn.Read(buf[:1])
			if err != nil {
				return 0, err
			}
			line = append(line, buf[:n]...)
		}
		if text := string(line); (strings.Contains(text, ":o:") || strings.Contains(text, ":o+:") || strings.Contains(text, ":e:")) && l.random.IntN(20) == 0 {
			l.lost.Store(true)
			from := l.random.IntN(len(line))
			line = append(line[:from:from], line[from+l.random.IntN(len(line)-from):]...)
		}
		l.lines.Write(line)
	}
	return l.lines.Read(p)
}

// What a console loses is an error, and never other output than the command's.
func TestLostOutput(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	failed := 0
	for round := range 8 {
		var lost atomic.Bool
		b := newConsoleBox(t, func(c net.Conn) net.Conn {
			return &leak{Conn: c, random: rand.New(rand.NewPCG(seed, uint64(round))), lost: &lost}
		}, func(error) {})
		want, err := exec.Command("seq", "6000").Output()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		r, err := b.client.Run(ctx, guest.Command{Script: "seq 3000; seq 3001 6000; echo error >&2"})
		cancel()
		var over *guest.AgentError
		switch {
		case err == nil && (!bytes.Equal(r.Stdout, want) || string(r.Stderr) != "error\n"):
			t.Errorf("round %d: got %d bytes and %q", round, len(r.Stdout), r.Stderr)
		case err != nil && (!lost.Load() || !errors.As(err, &over) && !strings.Contains(err.Error(), "garbage from the guest's root shell")):
			t.Errorf("round %d: %v", round, err)
		case err != nil:
			failed++
		}
	}
	if failed == 0 {
		t.Error("nothing was lost")
	}
}

// Whatever is missing of what the guest says of a command is an error of the command.
func TestMissingFrames(t *testing.T) {
	for name, tt := range map[string]struct{ frames, want string }{
		"of its output":             {"p:100 o:0:1:a o:2:1:b", "part 2 came where part 1 was due"},
		"of its errors":             {"p:100 e:1:1:a", "part 1 came where part 0 was due"},
		"before the end":            {"p:100 o:0:1:a o.:2:0:", "part 2 came where part 1 was due"},
		"before the end of much":    {"p:100 o+:0:4:YWJj o+:2:1:.", "part 2 came where part 1 was due"},
		"of a part":                 {"p:100 o:0:5:a", "part 0 is incomplete"},
		"of the end of a part":      {"p:100 o+:0:8:YWJj", "part 0 is incomplete"},
		"its exit status":           {"p:100 o.:0:0: e:0:4:MARK e0:1:0:", "its exit status was lost"},
		"its exit status, not read": {"p:100 o.:0:0: e.:0:0:", "its exit status was lost"},
	} {
		s := newShell("box", "S", wire.Info{}, func([]byte) {})
		c, err := s.newCommand(wire.ExecRequest{Job: "c"}, 0)
		if err != nil {
			t.Fatal(err)
		}
		c.mark = "MARK"
		for frame := range strings.SplitSeq(tt.frames, " ") {
			if err := s.hear("c", frame); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if end := <-c.ended; end.Err == nil || !strings.Contains(end.Err.Error(), tt.want) {
			t.Errorf("%s: got %+v", name, end)
		}
		c.closeFiles()
		s.close()
	}
}

// A deaf is a console of which the lines that lost picks are lost.
type deaf struct {
	net.Conn
	lost  func(line string) bool
	lines bytes.Buffer
}

func (d *deaf) Read(p []byte) (int, error) {
	for d.lines.Len() == 0 {
		buf := make([]byte, 1)
		var line []byte
		for !bytes.HasSuffix(line, []byte("\n")) {
			n, err := d.Conn.Read(buf)
			if err != nil {
				return 0, err
			}
			line = append(line, buf[:n]...)
		}
		if !d.lost(string(line)) {
			d.lines.Write(line)
		}
	}
	return d.lines.Read(p)
}

// losesOnce loses the first line of a kind that is said of something new.
type losesOnce struct {
	mu   sync.Mutex
	kind string          // ":" and what precedes the text; empty: nothing is lost
	old  map[string]bool // what was said of before
}

func (l *losesOnce) lost(line string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	fields := strings.SplitN(line, ":", 4)
	if len(fields) < 4 {
		return false
	}
	if l.kind == "" {
		l.old[fields[2]] = true
	}
	if l.kind == "" || l.old[fields[2]] || !strings.HasPrefix(":"+fields[3], l.kind) {
		return false
	}
	l.kind = ""
	return true
}

func (l *losesOnce) next(kind string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kind = kind
}

// A line of the end of a command that is lost is an error of the command, long before its deadline;
// one that can be said again is.
func TestLostEnds(t *testing.T) {
	var garbage atomic.Value
	loses := &losesOnce{old: map[string]bool{}}
	b := newConsoleBox(t, func(c net.Conn) net.Conn { return &deaf{Conn: c, lost: loses.lost} }, func(err error) { garbage.Store(err.Error()) })
	for _, tt := range []struct{ kind, script, want, garbage string }{
		{":p:", "cat", "", ""},
		{":x:", "cat", "its exit status", ""},
		{":e.:", "cat", "", ""},
		{":x:", "cat; " + endless + " >&- &", "its exit status was lost", ""},
		{":e0:", "cat; " + endless + " >&- &", "lost on the way from the guest's root shell: the end of its output", ""},
		{":i:", "cat", "that it has taken its input", ""},
		{":i:", "read -r line; echo $line; read -r line", "that it has taken its input", ""},
		{":o.:", "cat", "the guest's root shell", "the end of its output"},
		{":f:", "", "its exit status", ""},
	} {
		t.Run(tt.kind+tt.script, func(t *testing.T) {
			garbage.Store("")
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if _, err := b.client.Run(ctx, guest.Command{Script: "true"}); err != nil {
				t.Fatalf("%v; garbage: %v", err, garbage.Load())
			}
			loses.next(tt.kind)
			cmd := guest.Command{Script: tt.script, Stdin: strings.NewReader("typed\n")}
			if tt.kind == ":f:" {
				cmd.Dir = "/no/such"
			}
			r, err := b.client.Run(ctx, cmd)
			switch {
			case tt.want == "" && (err != nil || string(r.Stdout) != "typed\n"):
				t.Errorf("got %q, %v; garbage: %v", r.Stdout, err, garbage.Load())
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) && garbage.Load() == ""):
				t.Errorf("got %v, want %s", err, tt.want)
			}
			if got := garbage.Load().(string); !strings.Contains(got, tt.garbage) {
				t.Errorf("got %q, want %q", got, tt.garbage)
			}
		})
	}
	b.run(guest.Command{Script: "pkill -f '" + endless + "$' || :"})
}

// An answer of the shell itself that is lost is asked for again, and one to what cannot be done
// twice is an error.
func TestLostAnswers(t *testing.T) {
	loses := &losesOnce{old: map[string]bool{}}
	var hello atomic.Bool
	b := newConsoleBox(t, func(c net.Conn) net.Conn {
		return &deaf{Conn: c, lost: func(line string) bool {
			return strings.Contains(line, ":hello:") && hello.CompareAndSwap(false, true) || loses.lost(line)
		}}
	}, func(err error) { t.Error(err) })
	if _, err := b.client.Ready(t.Context()); err != nil || !hello.Load() {
		t.Fatal(err)
	}
	loses.next(":done:")
	if err := b.client.SetClock(t.Context()); err != nil {
		t.Error(err)
	}
	b.door.mu.Lock()
	s := b.door.shell
	b.door.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	loses.next(":done:")
	if _, err := s.ask(ctx, "power", "true"); err != errAnswerLost {
		t.Errorf("got %v", err)
	}
}
