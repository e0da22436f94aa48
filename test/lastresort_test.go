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
