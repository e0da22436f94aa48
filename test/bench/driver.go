package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/attest-vm/attest"
)

// A driver does what the NixOS test driver does, byte for byte on the wire: one
// root bash in the guest reads commands, each is a pipeline through base64 and
// then a question for its exit code; what waits, polls once a second.
//
// That driver reaches its bash over a virtio console. Here the bash is a
// process of attest's agent; the relay adds two round trips of about 1 ms to a
// command, 2 % of it.
type driver struct {
	in  io.Writer
	out *bufio.Reader
}

// backdoor is the guest's side: its standard error goes to the serial console.
const backdoor = `export PAGER= PS1=; exec bash --norc 2>/dev/ttyS0`

// driverTimeout is the limit of a command that has none of its own, except with
// succeed.
const driverTimeout = 900 * time.Second

// connect opens the backdoor of a machine. Close the dialogue at the end.
func connect(ctx context.Context, m *attest.Machine) (*driver, *dialogue) {
	d := converse(ctx, m, backdoor)
	return &driver{d.in, d.out}, d
}

// execute runs a command to its end; timeout 0 is none.
func (d *driver) execute(command string, timeout time.Duration) (code int, output string, err error) {
	prefix := ""
	if timeout > 0 {
		prefix = fmt.Sprintf("timeout %.1f", timeout.Seconds())
	}
	line := fmt.Sprintf("%s bash -c %s | (base64 -w 0; echo)\n", prefix, quote("set -euo pipefail; "+command))
	encoded, err := d.ask(line)
	if err != nil {
		return 0, "", err
	}
	out, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return 0, "", fmt.Errorf("reference: output of %.80q: %w", command, err)
	}
	status, err := d.ask("echo ${PIPESTATUS[0]}\n")
	if err != nil {
		return 0, "", err
	}
	code, err = strconv.Atoi(status)
	if err != nil {
		return 0, "", fmt.Errorf("reference: exit code of %.80q: %w", command, err)
	}
	return code, string(out), nil
}

func (d *driver) ask(line string) (string, error) {
	if _, err := io.WriteString(d.in, line); err != nil {
		return "", err
	}
	answer, err := d.out.ReadString('\n')
	return strings.TrimSuffix(answer, "\n"), err
}

func (d *driver) succeed(command string) (string, error) {
	code, out, err := d.execute(command, 0)
	if err == nil && code != 0 {
		err = fmt.Errorf("reference: command `%.80s` failed (exit code %d): %s", command, code, out)
	}
	return out, err
}

// retry asks until the answer is yes, with a second in between.
func retry(ctx context.Context, done func() (bool, error)) error {
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// waitUntil polls with a command until it succeeds.
func (d *driver) waitUntil(ctx context.Context, command string) error {
	return retry(ctx, func() (bool, error) {
		code, _, err := d.execute(command, driverTimeout)
		return code == 0, err
	})
}

func (d *driver) waitForFile(ctx context.Context, path string) error {
	return d.waitUntil(ctx, "test -e "+path)
}

func (d *driver) waitForOpenPort(ctx context.Context, port int) error {
	return d.waitUntil(ctx, fmt.Sprintf("nc -z localhost %d", port))
}

func (d *driver) waitForUnit(ctx context.Context, unit string) error {
	state := func() (string, error) {
		_, out, err := d.execute(fmt.Sprintf(`systemctl --no-pager show "%s" --property="ActiveState"`, unit), driverTimeout)
		return strings.TrimPrefix(strings.TrimSpace(out), "ActiveState="), err
	}
	return retry(ctx, func() (bool, error) {
		s, err := state()
		switch {
		case err != nil:
			return false, err
		case s == "failed":
			return false, fmt.Errorf("reference: unit %s has failed", unit)
		case s != "inactive":
			return s == "active", nil
		}
		_, jobs, err := d.execute("systemctl list-jobs --full 2>&1", driverTimeout)
		if err != nil || !strings.Contains(jobs, "No jobs") {
			return false, err
		}
		if s, err = state(); err == nil && s == "inactive" {
			err = fmt.Errorf("reference: unit %s is inactive and there are no pending jobs", unit)
		}
		return s == "active", err
	})
}

// chunk is how much of a file fits a command line as base64: an argument has at
// most 128 KiB.
const chunk = 90 << 10

// copyIn writes a file in the guest, base64 in command lines.
func (d *driver) copyIn(content []byte, path string) error {
	var err error
	redirect := ">"
	for first := true; err == nil && (first || len(content) > 0); first = false {
		n := min(chunk, len(content))
		_, err = d.succeed(fmt.Sprintf("echo -n %s | base64 -d %s %s", base64.StdEncoding.EncodeToString(content[:n]), redirect, path))
		content, redirect = content[n:], ">>"
	}
	return err
}

// copyOut reads a file of the guest as the output of a command.
func (d *driver) copyOut(path string) ([]byte, error) {
	out, err := d.succeed("cat " + path)
	return []byte(out), err
}

var unsafe = regexp.MustCompile(`[^A-Za-z0-9@%+=:,./_-]`)

// quote makes one word of s for a shell, as Python's shlex.quote does.
func quote(s string) string {
	if s != "" && !unsafe.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'"'"'`) + "'"
}

// readyMarker is what the backdoor says before it takes commands.
const readyMarker = "Spawning backdoor root shell..."
