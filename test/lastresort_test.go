package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A run that cannot end, because nobody reads what its test prints, is given up some
// seconds after the first signal.
func TestGivenUpAfterASignal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := writeFile(t, filepath.Join(dir, "print.star"), `
def main():
    for _ in range(1000):
        print("z" * 1000)
`)
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
				t.Fatal(err)
			}
			stateDir := newStateDir(t)
			var said strings.Builder
			cmd := exec.Command("attest", "run", file)
			cmd.Env = append(os.Environ(), "ATTEST_STATE_DIR="+stateDir)
			cmd.Stdout, cmd.Stderr = w, &said
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			w.Close()
			defer cmd.Process.Kill()
			for deadline := time.Now().Add(patience); ; {
				n, err := unix.IoctlGetInt(int(r.Fd()), unix.TIOCINQ)
				if err != nil || time.Now().After(deadline) {
					t.Fatalf("%d bytes are in the pipe; %v", n, err)
				}
				if n >= 3000 { // the next line has no room
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			tree := processTree(cmd.Process.Pid)
			cmd.Process.Signal(signal)
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			select {
			case <-ended:
			case <-time.After(patience):
				t.Fatal("it goes on")
			}
			if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.Contains(said.String(), "("+unix.SignalName(signal)+"): still not ended 20s later, so it is given up") {
				t.Errorf("exit code %d\n%s", code, said.String())
			}
			waitForNothing(t, stateDir, tree)
		})
	}
}

// Signals that come at once are one wish, as those of timeout(1) are: the run says what has
// happened, and writes its reports.
func TestSignalsAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := writeFile(t, filepath.Join(dir, "wait.star"), "m = machine(backend = \"mock\")\ndef main():\n    m.start()\n    print(\"it runs\")\n    m.wait_for_file(\"/none\")\n")
	state := newStateDir(t)
	p := start(t, state, nil, attestBinary, "run", "-o", dir, file)
	for end := time.Now().Add(patience); !strings.Contains(p.said(), "it runs"); <-time.After(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not run: %s", p.said())
		}
	}
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGTERM} { // one that is pending swallows its like
		p.cmd.Process.Signal(s)
	}
	if code := p.exitCode(t); code != 130 || !strings.Contains(p.said(), "1 interrupted") {
		t.Errorf("exit code %d: %s", code, p.said())
	}
	if junit, err := os.ReadFile(filepath.Join(dir, "junit.xml")); err != nil || !strings.Contains(string(junit), "wait.star") {
		t.Errorf("%v: %s", err, junit)
	}
}
