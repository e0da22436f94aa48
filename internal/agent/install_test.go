package agent

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// An agent that is there stays, unless it is of another root; one of another boot
// is none.
func TestReplaceAgent(t *testing.T) {
	boot, _, _ := strings.Cut(place(), " ")
	for name, tt := range map[string]struct {
		place      string
		same, ends bool
	}{
		"here":         {place(), true, false},
		"another root": {boot + " 1:2", false, true},
		"another boot": {"11111111-2222-3333-4444-555555555555 1:2", false, false},
		"garbage":      {"", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("sleep", "1000000")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			record := filepath.Join(t.TempDir(), "agent.pid")
			if err := os.WriteFile(record, fmt.Appendf(nil, "%d %s\n", cmd.Process.Pid, tt.place), 0o600); err != nil {
				t.Fatal(err)
			}
			same, err := replaceAgent(record)
			if same != tt.same || err != nil {
				t.Errorf("got %v, %v", same, err)
			}
			alive := syscall.Kill(-cmd.Process.Pid, 0) == nil
			if alive == tt.ends {
				t.Errorf("it lives: %v", alive)
			}
			cmd.Process.Kill()
			<-ended
		})
	}
	if same, err := replaceAgent(filepath.Join(t.TempDir(), "none")); same || err != nil {
		t.Errorf("without a record: %v, %v", same, err)
	}
	if err := checkSelf("0000"); err == nil || !strings.Contains(err.Error(), "damaged on its way") {
		t.Errorf("a wrong sum: %v", err)
	}
}
