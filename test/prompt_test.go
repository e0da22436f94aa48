package test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/mock"
)

// A typist is a person at a terminal on which a program runs.
type typist struct {
	t      *testing.T
	master *os.File
	ended  chan error // of the program, see startPrompt

	mu   sync.Mutex
	news *sync.Cond
	seen bytes.Buffer
	over bool
	read int // of seen, by expect
}

// newTerminal returns a terminal, and who sits at it.
func newTerminal(t *testing.T) (slave *os.File, p *typist) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	err = errors.Join(err, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0), unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}))
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	p = &typist{t: t, master: master}
	p.news = sync.NewCond(&p.mu)
	done := make(chan struct{})
	go func() { // until the terminal has no more users
		defer close(done)
		buf := make([]byte, 4<<10)
		for {
			n, err := master.Read(buf)
			p.mu.Lock()
			p.seen.Write(buf[:n])
			p.over = err != nil
			p.news.Broadcast()
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		slave.Close()
		<-done
		master.Close()
		if t.Failed() {
			t.Logf("the terminal showed:\n%s", p.seen.String())
		}
	})
	return slave, p
}

// expect waits until the terminal shows a text after the last one that was expected.
func (p *typist) expect(text string) {
	p.t.Helper()
	late := time.AfterFunc(patience, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.over = true
		p.news.Broadcast()
	})
	defer late.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if i := strings.Index(p.seen.String()[p.read:], text); i >= 0 {
			p.read += i + len(text)
			return
		}
		if p.over {
			p.t.Fatalf("the terminal does not show %q", text)
		}
		p.news.Wait()
	}
}

func (p *typist) enter(line string) {
	p.t.Helper()
	if _, err := p.master.WriteString(line); err != nil {
		p.t.Fatal(err)
	}
}

// startPrompt has the driver's prompt, which is that of the standard Python, on a terminal. dir is the directory in
// which the driver runs.
func startPrompt(t *testing.T, dir string, args ...string) *typist {
	t.Helper()
	standard := t.TempDir()
	for _, other := range []string{"ptpython.py", "IPython.py"} {
		writeFile(t, filepath.Join(standard, other), "raise ImportError")
	}
	slave, p := newTerminal(t)
	cmd := exec.Command(attestBinary, append([]string{"nixos-test-driver", "-I", "--log-level", "error"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "ATTEST_STATE_DIR="+newStateDir(t), "PYTHONPATH="+standard, "TERM=dumb")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.ended = make(chan error, 1)
	go func() { p.ended <- cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill() })
	return p
}

// leave ends a prompt.
func (p *typist) leave() {
	p.t.Helper()
	p.enter("\x04")
	select {
	case err := <-p.ended:
		if err != nil {
			p.t.Errorf("it ended with %v", err)
		}
	case <-time.After(patience):
		p.t.Fatal("Ctrl-D does not end it")
	}
}

// The prompt of the standard Python on a terminal: what is typed runs, a shell of a machine and the console
// of another have the terminal and give it back, an error and Ctrl-C end nothing, and Ctrl-D ends all.
func TestPromptOnTerminal(t *testing.T) {
	t.Parallel()
	if err := mock.New(mock.Options{}).Check(vmm.Config{Boot: &vmm.Mock{}}); err != nil {
		var missing *doctor.MissingError // namespaces for everybody
		if !errors.As(err, &missing) {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	config := writeFile(t, filepath.Join(dir, "lab.json"), `{"machines": [{"name": "box", "backend": "mock"}, {"name": "line", "backend": "mock", "script": {"answers": []}}]}`)
	script := writeFile(t, filepath.Join(dir, "script.py"), "print('the script has run')\n")
	p := startPrompt(t, dir, "-c", config, script)
	p.expect("machines: box, line")
	p.expect(">>> ")
	p.enter("start_all()\r")
	p.expect(">>> ")
	p.enter("print('answer', 6 * 7)\r")
	p.expect("answer 42")
	p.enter("test_script()\r")
	p.expect("the script has run\r\n")
	p.expect(">>> ")
	p.enter("box.shell_interact()\r")
	p.enter("echo $((40 + 2))-in-the-shell; tty\r")
	p.expect("42-in-the-shell")
	p.expect("/dev/pts/")
	p.enter("exit\r")
	p.expect(">>> ")
	// The console gets whole lines. Ctrl-D leaves it, and so does Ctrl-C.
	for _, text := range []string{"one line", "another"} {
		p.enterOnConsole("line", text)
		p.enter("line.wait_for_console_text('" + text + "'); print('it was', 'said')\r")
		p.expect("it was said\r\n")
		p.expect(">>> ")
	}
	p.interruptConsole("line")
	p.enter("box.succeed('false')\r")
	p.expect("RequestedAssertionFailed: command `false` failed (exit code 1)")
	p.expect(">>> ")
	p.enter("print('it', 'waits'); box.succeed('sleep 3600')\r")
	p.expect("it waits\r\n")
	p.enter("\x03")
	p.expect("KeyboardInterrupt")
	p.expect(">>> ")
	p.leave()
	if history, err := os.ReadFile(filepath.Join(dir, ".nixos-test-history")); err != nil || !strings.Contains(string(history), "box.shell_interact()") {
		t.Errorf("the history has %q, %v", history, err)
	}
}

// enterOnConsole gives a machine's console a line, and leaves the console by Ctrl-D.
func (p *typist) enterOnConsole(machine, line string) {
	p.t.Helper()
	p.enter(machine + ".console_interact(); print('left', 'it')\r")
	p.expect("Ctrl-D ends it")
	p.enter(line + "\r\x04")
	p.expect("left it\r\n")
	p.expect(">>> ")
}

// interruptConsole leaves a machine's console by Ctrl-C.
func (p *typist) interruptConsole(machine string) {
	p.t.Helper()
	p.enter(machine + ".console_interact()\r")
	p.expect("Ctrl-D ends it")
	p.enter("\x03")
	p.expect("KeyboardInterrupt")
	p.expect(">>> ")
}

// testPromptOfGuest types at a real guest: at its shell and at its serial console, with the terminal of the prompt.
func testPromptOfGuest(t *testing.T, startScript string) {
	p := startPrompt(t, t.TempDir(), "--start-scripts", startScript, "--vlans", "1")
	p.expect("machines: box")
	p.expect(">>> ")
	p.enter("box.shell_interact()\r")
	p.expect("root@")
	p.enter("stty size; tty\r")
	p.expect("24 80")
	p.expect("/dev/pts/")
	// Ctrl-C is the guest's. A bash goes on if what it waits for has ended by itself meanwhile, so
	// one process says that it is there and sleeps.
	p.enter("sh -c 'echo it $((40 + 1)) sleeps; exec sleep 3600'\r")
	p.expect("it 41 sleeps")
	p.enter("\x03")
	p.enter("echo $((40 + 2))-in-the-shell; exit\r")
	p.expect("42-in-the-shell")
	p.expect(">>> ")
	// The console gets whole lines. Ctrl-D leaves it, and so does Ctrl-C.
	p.enter("box.succeed('systemctl stop serial-getty@ttyS0; stty -F /dev/ttyS0 sane')\r")
	p.expect("''\r\n>>> ")
	p.enter("reader = box.spawn('exec < /dev/ttyS0; echo it reads; read -r a; read -r b; echo \"$a, $b\"'); reader.wait_for_output('it reads')\r")
	p.expect("'it reads'\r\n>>> ")
	for _, line := range []string{"one line", "another"} {
		p.enterOnConsole("box", line)
	}
	p.interruptConsole("box")
	p.enter("reader.wait()\r")
	p.expect("(0, 'it reads\\none line, another\\n')")
	p.expect(">>> ")
	p.leave()
}
