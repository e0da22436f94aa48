package agent

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

const keptEnv = "ATTEST_TEST_KEPT"

// TestKeeper kills an agent, here this test itself in a process of its own, and
// sees another one come, with a keeper of its own.
func TestKeeper(t *testing.T) {
	if os.Getenv(keptEnv) != "" {
		keep(os.Args, logger{os.Stderr})
		fmt.Println("pid", os.Getpid())
		select {}
	}
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKeeper$")
	cmd.Env = append(os.Environ(), keptEnv+"=1")
	cmd.Stdout, cmd.Stderr = in, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	group := -cmd.Process.Pid
	defer cmd.Wait()
	defer syscall.Kill(group, syscall.SIGKILL)
	seen := map[int]bool{}
	lines := bufio.NewScanner(out)
	for len(seen) < 3 && lines.Scan() {
		text, ok := strings.CutPrefix(lines.Text(), "pid ")
		if !ok {
			continue
		}
		pid, err := strconv.Atoi(text)
		if err != nil || seen[pid] {
			t.Fatalf("got %q, seen %v", lines.Text(), seen)
		}
		seen[pid] = true
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != 3 {
		t.Errorf("after %d agents nobody came", len(seen))
	}
}
