package backdoor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A loginGuest is the guest's side of a serial console with a login, as a test plays it.
type loginGuest struct {
	t       *testing.T
	door    *Door
	typed   chan string
	refused chan error
}

func newLoginGuest(t *testing.T, opt Options) *loginGuest {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { theirs.Close() })
	g := &loginGuest{t: t, typed: make(chan string, 8), refused: make(chan error, 8)}
	opt.Machine, opt.Shell, opt.Upgrade, opt.Agent = "box", ours, Never, noAgent
	opt.Answers, opt.Installed = func() bool { return false }, func(error) {}
	opt.Login.Patience = 400 * time.Millisecond
	opt.Login.Refused = func(err error) { g.refused <- err }
	opt.Login.Type = func(_ context.Context, p []byte) error {
		g.typed <- string(p)
		return nil
	}
	g.door = New(opt)
	g.door.Start()
	t.Cleanup(g.door.Close)
	return g
}

// say writes to the console, a few bytes at a time.
func (g *loginGuest) say(text string) {
	for len(text) > 0 {
		n := min(3, len(text))
		io.WriteString(g.door.Console(), text[:n])
		text = text[n:]
	}
}

// hear is the next line that is typed.
func (g *loginGuest) hear() string {
	g.t.Helper()
	select {
	case line := <-g.typed:
		return strings.TrimSuffix(line, "\r")
	case err := <-g.refused:
		g.t.Fatalf("it has given up: %v", err)
	case <-time.After(time.Minute):
		step, _ := g.door.State()
		g.t.Fatalf("nothing is typed; %s", step)
	}
	return ""
}

func (g *loginGuest) expect(want string) {
	g.t.Helper()
	if got := g.hear(); got != want {
		g.t.Fatalf("typed %q, want %q", got, want)
	}
}

// command is the line that makes the root shell; it returns the word for answers.
func (g *loginGuest) command() string {
	g.t.Helper()
	line := g.hear()
	_, rest, ok := strings.Cut(line, "' sh ")
	word, _, _ := strings.Cut(rest, " ")
	if !ok || !strings.HasPrefix(line, "exec sh -c '") || word == "" || len(line) > 1500 {
		g.t.Fatalf("typed %q", line)
	}
	g.say(line + "\r\n") // an echo is no answer
	return word
}

func (g *loginGuest) error() string {
	g.t.Helper()
	for {
		select {
		case err := <-g.refused:
			var refusal *LoginError
			if !errors.As(err, &refusal) || refusal.Machine != "box" || refusal.User == "" {
				g.t.Fatalf("%T: %v", err, err)
			}
			return refusal.Reason
		case <-g.typed:
		case <-time.After(time.Minute):
			g.t.Fatal("it does not give up")
		}
	}
}

var root = Options{Login: Login{User: "root", Password: "secret"}}

const motd = "\r\nLast login: Fri Nov 27 03:00:00 UTC 2026 on ttyS0\r\nLinux box 6.1.0 #1 SMP\r\n * Documentation:  https://example.org\r\n\x1b[?2004hroot@box:~# "

// A login is done once in each boot, whatever else comes on the console.
func TestLogin(t *testing.T) {
	g := newLoginGuest(t, root)
	g.say("[    0.000000] Linux version 6.1.0\r\nStarting: \r\nDebian GNU/Linux 12 box ttyS0\r\n\r\nbox login: ")
	for boot := range 2 {
		g.expect("root")
		g.say("root\r\nPassword: ")
		g.expect("secret")
		g.say(motd)
		word := g.command()
		g.say("attest:other:no\r\nattest:" + word + ":ok\r\n")
		g.say("\r\nbox login: ") // the console's next login is nobody's
		select {
		case line := <-g.typed:
			t.Errorf("typed %q", line)
		case err := <-g.refused:
			t.Error(err)
		case <-time.After(50 * time.Millisecond):
		}
		if boot == 0 {
			g.door.Rebooted()
			g.say("box login: ")
		}
	}
}

// What else may come between the prompt and the shell.
func TestLoginsDiffer(t *testing.T) {
	t.Run("no password", func(t *testing.T) {
		g := newLoginGuest(t, Options{Login: Login{User: "root"}})
		g.say("Welcome\nbuildroot login: ")
		g.expect("root")
		g.say("root\r\n# ")
		g.say("attest:" + g.command() + ":ok\n")
	})
	t.Run("a message over the prompt", func(t *testing.T) {
		g := newLoginGuest(t, root)
		g.say("box login: [   12.000000] eth0: link up\r\n")
		g.expect("")
		g.say("\r\nbox login: ")
		g.expect("root")
		g.say("root\r\nPassword: ")
		g.expect("secret")
	})
	t.Run("a console that has to be asked", func(t *testing.T) {
		g := newLoginGuest(t, root)
		g.say("Please press Enter to activate this console. ")
		g.expect("")
		g.say("\r\nbox login: ")
		g.expect("root")
	})
	t.Run("sudo", func(t *testing.T) {
		g := newLoginGuest(t, Options{Login: Login{User: "debian", Password: "secret"}})
		g.say("box login: ")
		g.expect("debian")
		g.say("debian\r\nPasswort: ")
		g.expect("secret")
		g.say("\r\ndebian@box:~$ ")
		word := g.command()
		g.say("attest " + word + " password: ")
		g.expect("secret")
		g.say("\r\nattest:" + word + ":ok\r\n")
	})
	t.Run("the prompt times out", func(t *testing.T) {
		g := newLoginGuest(t, root)
		g.say("box login: ")
		g.expect("root")
		g.say("root\r\nPassword: ")
		g.expect("secret")
		g.say("\r\nLogin timed out after 60 seconds.\r\n\r\nbox login: ")
		g.expect("root")
	})
	t.Run("it reboots in between", func(t *testing.T) {
		g := newLoginGuest(t, root)
		g.say("box login: ")
		g.expect("root")
		g.say("root\r\nPassw")
		g.say("\n[    0.000000] Linux version 6.1.0\n")
		g.say("\r\nbox login: ")
		g.expect("root")
	})
	t.Run("a saved machine", func(t *testing.T) {
		opt := root
		opt.Saved = "the agent"
		g := newLoginGuest(t, opt)
		g.say("box login: ")
		g.door.Rebooted()
		g.say("other login: ")
		g.expect("root")
		if len(g.typed) > 0 {
			t.Errorf("typed %q, too", <-g.typed)
		}
	})
	t.Run("nobody shall log in", func(t *testing.T) {
		g := newLoginGuest(t, Options{})
		if step, _ := g.door.State(); strings.Contains(step, "user=") {
			t.Error(step)
		}
		g.say("box login: ")
		if step, _ := g.door.State(); !strings.Contains(step, "give the machine user= and password=") {
			t.Error(step)
		}
	})
}

func TestLoginRefused(t *testing.T) {
	enter := func(g *loginGuest) {
		g.say("box login: ")
		g.expect("root")
		g.say("root\r\nPassword: ")
		g.expect("secret")
	}
	for name, tt := range map[string]struct {
		play func(g *loginGuest)
		want string
	}{
		"wrong password": {func(g *loginGuest) {
			enter(g)
			g.say("\r\n\r\nLogin incorrect\r\n")
			enter(g)
			g.say("\r\n\r\nLogin incorrect\r\nbox login: ")
		}, `the password is refused ("Login incorrect box login:"); see user and password of the machine`},
		"expired": {func(g *loginGuest) {
			enter(g)
			g.say("\r\nYou are required to change your password immediately.\r\nCurrent password: ")
		}, `it asks for something else than user and password: "You are required to change your password immediately. Current password:"`},
		"no door": {func(g *loginGuest) {
			enter(g)
			g.say(motd)
			g.say("attest:" + g.command() + ":the guest has no bash\x1b[31m\r\n")
		}, "the guest has no bash"},
		"no answer at all": {func(g *loginGuest) {
			enter(g)
			g.say(motd)
			g.say("attest:" + g.command() + ":\r\n")
		}, "no root shell can be started on /dev/hvc0"},
		"silence": {func(g *loginGuest) {
			enter(g)
			g.say("\r\nsome menu")
			g.expect("")
			enter(g)
		}, `the login on its serial console has got the password, and no shell came; the last on it: ""`},
		"silence after a login": {func(g *loginGuest) {
			enter(g)
			g.say("\r\nLast login: today\r\nplease wait\r\n") // a profile that never ends
			g.expect("")                                      // no prompt comes for that
		}, `the login on its serial console has got the password, and no shell came; the last on it: "Last login: today please wait"`},
		"sudo": {func(g *loginGuest) {
			enter(g)
			g.say("\n$ ")
			word := g.command()
			g.say("attest " + word + " password: ")
			g.expect("secret")
			g.say("\r\nSorry, try again.\r\nattest " + word + " password: ")
		}, "sudo refuses the password of root"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newLoginGuest(t, root)
			tt.play(g)
			if got := g.error(); !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// What is typed makes a root shell on a console, and says so when it is there. A user who is
// not root becomes that by sudo.
func TestLoginScript(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	var n, unlock uint32
	for _, call := range []struct {
		request uintptr
		arg     *uint32
	}{{unix.TIOCSPTLCK, &unlock}, {unix.TIOCGPTN, &n}} {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, master.Fd(), call.request, uintptr(unsafe.Pointer(call.arg))); errno != 0 {
			t.Fatal(errno)
		}
	}
	programs := t.TempDir()
	run := func(script string) string {
		t.Helper()
		c := exec.Command("sh", "-c", becomeRoot, "sh", "WORD", script)
		c.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"))
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%q, %v", out, err)
		}
		return string(out)
	}
	program := func(name, text string) {
		if err := os.WriteFile(filepath.Join(programs, name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	asked := filepath.Join(programs, "asked")
	program("systemctl", "echo $* >> "+asked)
	program("id", "echo 1000")
	program("sudo", `printf "%s" "$2"; shift 2; exec "$@"`)
	script := strings.ReplaceAll(loginScript, "/dev/hvc0", fmt.Sprintf("/dev/pts/%d", n))
	if out := run(script); out != "attest WORD password: attest:WORD:ok\n" {
		t.Fatalf("%q", out)
	}
	if text, err := os.ReadFile(asked); string(text) != "mask --runtime --now serial-getty@hvc0.service\n" {
		t.Errorf("systemd is asked %q, %v", text, err)
	}
	shell := make(chan string, 8)
	go func() {
		defer close(shell)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			if shell <- string(buf[:n]); err != nil {
				return
			}
		}
	}()
	if _, err := io.WriteString(master, "echo $((6 * 7)); exit\n"); err != nil {
		t.Fatal(err)
	}
	said := ""
	for text := range shell { // to its end: that of the shell
		said += text
	}
	if !strings.HasPrefix(said, Marker+"\n") || !strings.Contains(said, "42\n") {
		t.Errorf("it says %q", said)
	}
	program("id", "echo 0")
	if out := run(strings.ReplaceAll(loginScript, "/dev/hvc0", "/dev/none")); out != "attest:WORD:the guest has no /dev/none: its kernel lacks the driver of virtio consoles\n" {
		t.Errorf("%q", out)
	}
}

// Whatever a console says, it is kept in bounds, and read without a panic.
func FuzzLogin(f *testing.F) {
	f.Add([]byte("box login: "), []byte("Password: "), []byte(motd))
	f.Add([]byte("\x1b[31mLast login: "), []byte("attest:x:ok\n"), []byte("attest x password: "))
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		l := newLogin(Login{}, nil)
		for _, p := range [][]byte{a, b, c} {
			l.Write(p)
			if len(l.text) > 2*maxSaid {
				t.Errorf("%d bytes are kept", len(l.text))
			}
			text := clean(l.text)
			loginPrompt.MatchString(text)
			passwordPrompt.MatchString(text)
			shellPrompt.MatchString(text)
			tidy(text)
		}
	})
}

// A guest that has come to a login prompt and offers no shell is given up when it has said
// nothing for a while, and one whose shell has announced itself and does not answer.
func TestSilentGuest(t *testing.T) {
	for name, tt := range map[string]struct {
		says []string // each within its patience; after "shell:" on the shell's console
		want string   // empty: it is waited for
	}{
		"boots slowly":  {[]string{"Welcome to Debian!\r\n"}, ""},
		"has a login":   {[]string{"box login: "}, `did not announce itself ("Spawning backdoor root shell..." on /dev/hvc0); in the guest backdoor.service does that, see its journal; there is a login prompt on its serial console (ttyS0): give the machine user= and password=`},
		"talks":         {[]string{"box login: ", "cloud-init: 1\r\n", "cloud-init: 2\r\n", "shell:what is this"}, "did not announce itself"},
		"boots again":   {[]string{"box login: ", "\r\n[    0.000000] Linux version 6.1.0\r\n"}, ""},
		"does not obey": {[]string{"box login: ", "shell:" + Marker + "\n"}, "has announced itself, and does not answer"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				go io.Copy(io.Discard, theirs)
				silent := make(chan error, 8)
				d := New(Options{Machine: "box", Shell: ours, Upgrade: Never, Agent: noAgent, LookAfter: time.Hour,
					Patience: time.Minute, Silent: func(err error) { silent <- err }})
				d.Start()
				for _, text := range tt.says {
					if text, ok := strings.CutPrefix(text, "shell:"); ok {
						io.WriteString(theirs, text)
					} else {
						io.WriteString(d.Console(), text)
					}
					<-time.After(50 * time.Second)
					synctest.Wait()
					if len(silent) > 0 {
						t.Errorf("after %q: %v", text, <-silent)
					}
				}
				if tt.want == "" {
					<-time.After(2 * time.Minute)
				}
				<-time.After(11 * time.Second) // it is over a minute now since the guest was heard
				synctest.Wait()
				var err *SilentError
				switch {
				case tt.want == "" && len(silent) > 0, len(silent) > 1:
					t.Errorf("got %v", <-silent)
				case tt.want != "" && len(silent) == 0:
					t.Error("it is waited for")
				case tt.want != "" && (!errors.As(<-silent, &err) || !strings.Contains(err.Reason, tt.want) || !strings.HasSuffix(err.Reason, "it has said nothing for 1m0s") || err.Machine != "box"):
					t.Errorf("got %+v", err)
				}
				d.Close()
				theirs.Close()
			})
		})
	}
}

// A guest that asks for the passphrase of its disk is said to, as long as it does.
func TestPassphraseIsMissed(t *testing.T) {
	const hint = "asks for a passphrase, which send_console answers"
	g := newLoginGuest(t, root)
	for _, tt := range []struct {
		says string
		want bool
	}{
		{"Begin: Running /scripts/local-top ... ", false},
		{"\r\nPlease unlock disk root: ", true}, // cryptsetup-initramfs
		{"\r\ncryptsetup: root: set up successfully\r\n", false},
		{"\x1b[0;1mPlease enter passphrase for disk vda4 (root): \x1b[0m", true}, // systemd
	} {
		g.say(tt.says)
		if step, _ := g.door.State(); strings.Contains(step, hint) != tt.want {
			t.Errorf("after %q: %s", tt.says, step)
		}
	}
}
