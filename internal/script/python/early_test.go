package python

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
	"github.com/attest-vm/attest/internal/supervise"
)

// realPython has scripts run by the interpreter itself: nothing is started early by a shim.
func realPython(t *testing.T) {
	t.Helper()
	path, err := exec.Command("python3", "-c", "import sys; print(sys.executable)").Output()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("ATTEST_PYTHON", strings.TrimSpace(string(path)))
}

// The first call has the Python that was started while the file was read, and only that one.
func TestEarly(t *testing.T) {
	realPython(t)
	var process *supervise.Process
	refused := errors.New("refused")
	for _, test := range []struct {
		name  string
		start script.Starter
		early bool
	}{
		{"nobody starts it", nil, false},
		{"it cannot be started", func(context.Context, func(string) (supervise.Command, error)) (*supervise.Process, error) {
			return nil, refused
		}, false},
		{"started", func(ctx context.Context, prepare func(string) (supervise.Command, error)) (*supervise.Process, error) {
			var err error
			process, err = access.StartHelper(ctx, host, prepare)
			return process, err
		}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			path := filepath.Join(t.TempDir(), "a.py")
			source := "import os\nm = machine(backend='mock')\ndef test_a():\n    print(os.getpid(), m.name)\ndef test_b():\n    test_a()\n"
			if err := os.WriteFile(path, []byte(source), 0o644); err != nil {
				t.Fatal(err)
			}
			var stdout bytes.Buffer
			f, err := script.Load(ctx, path, script.Options{Stdout: &stdout, Early: test.start})
			if err != nil {
				t.Fatal(err)
			}
			lab, err := host.NewLab(ctx, attest.LabConfig{Machines: f.Machines(), OutDir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			defer lab.Close()
			for i, name := range []string{"test_a", "test_b"} {
				stdout.Reset()
				if err := f.Call(ctx, operation.Of(lab), name); err != nil {
					t.Fatal(err)
				}
				var pid int
				if _, err := fmt.Sscanf(stdout.String(), "%d m\n", &pid); err != nil {
					t.Fatalf("%s: %q: %v", name, stdout.String(), err)
				}
				if early := process != nil && pid == process.Pid(); early != (test.early && i == 0) {
					t.Errorf("%s: in process %d, early: %v", name, pid, early)
				}
			}
			if left := pythons(t, path); left != "" {
				t.Errorf("processes are left: %s", left)
			}
		})
	}
}
