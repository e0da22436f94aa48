package backdoor

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/wire"
)

// A shellGuest is the guest's side of a backdoor, as a test plays it.
type shellGuest struct {
	t        *testing.T
	shell    net.Conn
	upload   net.Conn
	lines    *bufio.Reader
	backdoor *Door
	results  chan error
}

const agentProgram = "the program that becomes the agent"

func newShellGuest(t *testing.T) *shellGuest {
	t.Helper()
	return newShellGuestWith(t, func(*Options) {})
}

func newShellGuestWith(t *testing.T, change func(*Options)) *shellGuest {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(path, []byte(agentProgram), 0o700); err != nil {
		t.Fatal(err)
	}
	ours, shell := net.Pipe()
	oursUp, upload := net.Pipe()
	g := &shellGuest{t: t, shell: shell, upload: upload, lines: bufio.NewReader(shell), results: make(chan error, 8)}
	opt := Options{Machine: "box", Shell: ours, Upload: oursUp, Binary: path, Upgrade: Always, Agent: noAgent,
		Answers: func() bool { return false }, Installed: func(err error) { g.results <- err }}
	change(&opt)
	g.backdoor = New(opt)
	g.backdoor.Start()
	t.Cleanup(func() {
		g.backdoor.Close()
		shell.Close()
		upload.Close()
		oursUp.Close()
	})
	return g
}

func noAgent(ctx context.Context) (net.Conn, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

func (g *shellGuest) say(text string) {
	g.t.Helper()
	if _, err := io.WriteString(g.shell, text); err != nil {
		g.t.Fatal(err)
	}
}

// called reads what the shell is to run, up to the call.
func (g *shellGuest) called() (nonce string, call []string) {
	g.t.Helper()
	for {
		line, err := g.lines.ReadString('\n')
		if err != nil {
			g.t.Fatal(err)
		}
		if call = strings.Fields(line); len(call) == 6 && call[0] == "attest_install" {
			return call[1], call
		}
	}
}

func (g *shellGuest) receive() string {
	g.t.Helper()
	b := make([]byte, len(agentProgram))
	if _, err := io.ReadFull(g.upload, b); err != nil {
		g.t.Fatal(err)
	}
	return string(b)
}

func (g *shellGuest) result() error {
	g.t.Helper()
	select {
	case err := <-g.results:
		return err
	case <-time.After(time.Minute):
		g.t.Fatal("nothing comes of it")
		return nil
	}
}

// The marker comes in pieces, between anything; the agent goes in byte for byte,
// at each boot again.
func TestBackdoor(t *testing.T) {
	g := newShellGuest(t)
	if step, said := g.backdoor.State(); !strings.Contains(step, "did not announce itself") || !strings.Contains(step, "backdoor.service") || said != "" {
		t.Errorf("at first: %q, %q", step, said)
	}
	for boot := range 2 {
		g.say("\x1b[2J some login: attest:x:ready:no\r\nSpawning back")
		g.say("door root shell...")
		g.say("\n")
		nonce, call := g.called()
		if want := fmt.Sprintf("%d %x 1 %s", len(agentProgram), sha256.Sum256([]byte(agentProgram)), wire.UploadPort); strings.Join(call[2:], " ") != want {
			t.Errorf("called with %q, want %q", call[2:], want)
		}
		g.say("attest_install " + nonce + " 1 2 3\n") // an echo of it
		g.say("attest:other:failed:not ours\nattest:" + nonce + ":what:is this\nattest:" + nonce + ":ready:/run/attest\r\n")
		if got := g.receive(); got != agentProgram {
			t.Errorf("boot %d: the guest got %q", boot, got)
		}
		g.say("attest:" + nonce + ":started:/run/attest\n")
		if err := g.result(); err != nil {
			t.Error(err)
		}
		if step, said := g.backdoor.State(); !strings.Contains(step, "from /run/attest") || !strings.Contains(said, "started") {
			t.Errorf("at the end: %q, %q", step, said)
		}
	}
}

// A guest that has the agent among its programs gets nothing.
func TestBackdoorOfGuestWithAgent(t *testing.T) {
	g := newShellGuest(t)
	g.say(Marker + "\n")
	nonce, _ := g.called()
	g.say("attest:" + nonce + ":started:/usr/bin/attest-agent\n")
	if err := g.result(); err != nil {
		t.Error(err)
	}
	if step, _ := g.backdoor.State(); !strings.Contains(step, "from /usr/bin/attest-agent") {
		t.Errorf("at the end: %q", step)
	}
}

// What the guest says goes wrong is a typed error, once more tried where the agent
// may not have arrived whole.
func TestBackdoorFails(t *testing.T) {
	g := newShellGuest(t)
	g.say(Marker)
	nonce, _ := g.called()
	g.say("attest:" + nonce + ":failed:there is no port\n")
	var e *InstallError
	if err := g.result(); !errors.As(err, &e) || e.Reason != "there is no port" || e.Machine != "box" {
		t.Errorf("got %v", err)
	}
	g.say(Marker)
	for try := 1; try <= 2; try++ {
		nonce, call := g.called()
		if call[4] != fmt.Sprint(try) {
			t.Errorf("try %s, want %d", call[4], try)
		}
		g.say("attest:" + nonce + ":ready:/run/attest\n")
		g.receive()
		g.say("attest:" + nonce + ":failed:126: Exec format error\x1b[31m\n")
	}
	if err := g.result(); !errors.As(err, &e) || e.Reason != "126: Exec format error" {
		t.Errorf("got %v", err)
	}
}

// A guest that boots again in the middle gets it from the beginning, and an attempt
// that it took no part in any more says nothing.
func TestBackdoorOfGuestThatResets(t *testing.T) {
	g := newShellGuest(t)
	g.say(Marker + "\n")
	g.called()
	g.say(Marker + "\n")
	nonce, _ := g.called()
	g.say("attest:" + nonce + ":ready:/run/attest\n")
	if got := g.receive(); got != agentProgram {
		t.Errorf("it got %q", got)
	}
	g.say("attest:" + nonce + ":started:/run/attest\n")
	if err := g.result(); err != nil {
		t.Error(err)
	}
	g.backdoor.Close()
	if len(g.results) != 0 {
		t.Errorf("another result: %v", <-g.results)
	}
}

// What comes from a guest, in whatever pieces, is bounded, and the marker is
// found wherever it is.
func FuzzDialog(f *testing.F) {
	f.Add([]byte("Spawning backdoor root shell...\nattest:N:ready:/run\n"), 3)
	f.Add([]byte("attest:N:failed:a:b:c\r\n"), 1)
	f.Add([]byte("Spawning Spawning backdoor root shell...."), 7)
	f.Add(bytes.Repeat([]byte("x"), 3*maxSaid), 100)
	f.Add([]byte("attest:::\nattest:a\n\x00\xff\x1b[0m"), 2)
	f.Fuzz(func(t *testing.T, data []byte, piece int) {
		piece = max(1, min(piece, len(data)))
		var whole, pieces dialog
		want := whole.feed(data)
		var got []reply
		for rest := data; len(rest) > 0; {
			n := min(piece, len(rest))
			got = append(got, pieces.feed(rest[:n])...)
			rest = rest[n:]
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("in pieces %v, at once %v", got, want)
		}
		markers := 0
		for _, r := range want {
			if r.marker {
				markers++
			}
		}
		if n := bytes.Count(data, []byte(Marker)); markers != n {
			t.Errorf("%d markers of %d", markers, n)
		}
		if len(pieces.line) >= 2*maxSaid || len(pieces.last) >= 2*maxSaid || len(pieces.tail()) > 900 {
			t.Errorf("it keeps %d and %d bytes, says %d", len(pieces.line), len(pieces.last), len(pieces.tail()))
		}
	})
}

// bashGuest runs the script itself in a bash, with its places below dir: a guest
// whose upload port is a pipe.
func bashGuest(t *testing.T, dir, places string) (say func(string), hear func() reply, upload *os.File) {
	t.Helper()
	script := strings.NewReplacer("/sys/class/virtio-ports", dir+"/sys", "/dev/$", dir+"/dev/$",
		"/run /dev/shm /tmp /var/tmp", places, "n < 300", "n < 3").Replace(installScript)
	for _, d := range []string{"sys/vport1p1", "sys/vport1p2", "dev"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "sys/vport1p1/name"), []byte(wire.AgentPort+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sys/vport1p2/name"), []byte(wire.UploadPort+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "dev/vport1p2")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	upload, err := os.OpenFile(pipe, os.O_RDWR, 0) // both, so that neither end waits for the other
	if err != nil {
		t.Fatal(err)
	}
	bash := exec.Command("bash", "--norc")
	in, err := bash.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := bash.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	bash.Stderr = os.Stderr
	if err := bash.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); bash.Wait(); upload.Close() })
	lines := bufio.NewScanner(out)
	say = func(call string) { io.WriteString(in, script+call+"\n") }
	hear = func() reply {
		for lines.Scan() {
			if r, ok := parseReply(lines.Text()); ok {
				return r
			}
		}
		t.Fatal("the shell has ended")
		return reply{}
	}
	return say, hear, upload
}

// The script, in the shell that it is for.
func TestInstallScript(t *testing.T) {
	const program = "#!/bin/sh\necho \"$0 $1\"\n[ \"$1\" = good ]\n"
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	say, hear, upload := bashGuest(t, dir, file+" "+dir+"/run")
	for _, tt := range []struct{ sum, try, want string }{
		{"good", "1", "started:" + dir + "/run/attest"},
		{"bad", "1", "failed:1: " + dir + "/run/attest/agent bad"},
		{"good", "2", "started:" + dir + "/run/attest"},
	} {
		if tt.try == "2" {
			upload.WriteString("what an earlier try has left")
		}
		say(fmt.Sprintf("attest_install N %d %s %s %s", len(program), tt.sum, tt.try, wire.UploadPort))
		if r := hear(); r.word != "ready" || r.nonce != "N" {
			t.Fatalf("got %+v", r)
		}
		upload.WriteString(program)
		if r := hear(); r.word+":"+r.text != tt.want {
			t.Errorf("got %+v, want %s", r, tt.want)
		}
		if left, _ := os.ReadDir(filepath.Join(dir, "run/attest")); len(left) != 1 {
			t.Errorf("it leaves %v", left)
		}
	}
}

// Without an upload port the program comes on the shell's own console, as lines of base64,
// and what follows it there is read as before.
func TestInstallScriptOnItsConsole(t *testing.T) {
	program := "#!/bin/sh\nexit 0\n# " + strings.Repeat("\xff\x00", 200)
	text, err := encode(strings.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	say, hear, _ := bashGuest(t, dir, dir+"/run")
	for range 2 {
		say(fmt.Sprintf("attest_install N %d good 1 ''\n%secho attest:N:next:", len(text), text))
		for _, want := range []string{"ready", "started", "next"} {
			if r := hear(); r.word != want {
				t.Errorf("got %+v, want %s", r, want)
			}
		}
		if got, err := os.ReadFile(filepath.Join(dir, "run/attest/agent")); string(got) != program {
			t.Errorf("the guest got %q (%v)", got, err)
		}
	}
}

// A Door without a second stream sends it there.
func TestBackdoorWithoutUpload(t *testing.T) {
	g := newShellGuestWith(t, func(o *Options) { o.Upload, o.Place = nil, "vsock port 1234" })
	if step, _ := g.backdoor.State(); !strings.Contains(step, "on vsock port 1234") {
		t.Errorf("at first: %q", step)
	}
	g.say(Marker + "\n")
	nonce, call := g.called()
	want, err := encode(strings.NewReader(agentProgram))
	if err != nil {
		t.Fatal(err)
	}
	if call[2] != fmt.Sprint(len(want)) || call[5] != "''" {
		t.Errorf("called with %q", call)
	}
	g.say("attest:" + nonce + ":ready:/run/attest\n")
	got := make([]byte, len(want))
	if _, err := io.ReadFull(g.lines, got); err != nil || string(got) != string(want) {
		t.Errorf("the guest got %q, %v", got, err)
	}
	g.say("attest:" + nonce + ":started:/run/attest\n")
	if err := g.result(); err != nil {
		t.Error(err)
	}
}

// An agent that the guest has is taken if it is the one, and not fetched.
func TestInstallScriptTakesGuestsOwn(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(dir, "bin/attest-agent")
	if err := os.WriteFile(own, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	say, hear, upload := bashGuest(t, dir, dir+"/run")
	for _, tt := range []struct{ of, want string }{
		{"#!/bin/sh\n", "started:" + own},
		{"#!/bin/sh\nexit 0\n", "ready:" + dir + "/run/attest"},
	} {
		say(fmt.Sprintf("PATH=%s/bin:$PATH; attest_install N %d %x 1 %s", dir, len(tt.of), sha256.Sum256([]byte(tt.of)), wire.UploadPort))
		r := hear()
		if r.word+":"+r.text != tt.want {
			t.Errorf("got %+v, want %s", r, tt.want)
		}
		if r.word == "ready" {
			upload.WriteString(tt.of)
			if r := hear(); r.word != "started" {
				t.Errorf("got %+v", r)
			}
		}
	}
}

// A guest that has no place for it, or no port, says so.
func TestInstallScriptFails(t *testing.T) {
	dir := t.TempDir()
	say, hear, _ := bashGuest(t, dir, "/proc /sys")
	say("attest_install N 1 x 1 " + wire.UploadPort)
	if r := hear(); r.word != "failed" || !strings.Contains(r.text, "no directory in which a program can be put and run") {
		t.Errorf("got %+v", r)
	}
	if err := os.RemoveAll(filepath.Join(dir, "sys")); err != nil {
		t.Fatal(err)
	}
	say("attest_install N 1 x 1 " + wire.UploadPort)
	if r := hear(); r.word != "failed" || !strings.Contains(r.text, "no virtio serial port org.attest.upload.0") {
		t.Errorf("got %+v", r)
	}
}
