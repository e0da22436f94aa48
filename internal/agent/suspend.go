package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/printable"
)

// suspend suspends the machine, as its init does that, hooks and all, where it is systemd,
// and otherwise by the kernel alone. It returns when systemd has begun, or when the machine
// is awake again (Linux Documentation/admin-guide/pm/sleep-states.rst).
func suspend(ctx context.Context) error {
	comm, err := os.ReadFile("/proc/1/comm")
	if err != nil || strings.TrimSpace(string(comm)) != "systemd" {
		if err := os.WriteFile("/sys/power/state", []byte("mem"), 0); err != nil {
			return fmt.Errorf("the kernel does not suspend: %w", err)
		}
		return nil
	}
	path, err := lookPath("systemctl", nil)
	if err != nil {
		return err
	}
	for {
		c := exec.CommandContext(ctx, path, "suspend")
		c.Env = append(os.Environ(), "LC_ALL=C")
		out, err := c.CombinedOutput()
		text := strings.TrimSpace(string(out))
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case strings.Contains(text, stillSleeping):
			select {
			case <-time.After(sleepPause):
				continue
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		case text != "":
			err = errors.New(printable.Line(text))
		}
		return fmt.Errorf("systemctl suspend: %w", err)
	}
}

// stillSleeping is in what systemctl says as long as the hooks of the sleep before run. It is
// tried again then, after a pause.
const (
	stillSleeping = "in progress"
	sleepPause    = 100 * time.Millisecond
)
