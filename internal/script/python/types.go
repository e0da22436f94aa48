package python

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/script"
)

// typeCheckers are the programs that CheckTypes knows, in the order in which it looks for them.
var typeCheckers = []struct {
	name string
	args func(dir, file string) []string
}{
	{"mypy", func(dir, file string) []string {
		return []string{"--no-implicit-optional", "--no-color-output", "--no-error-summary", "--show-column-numbers", "--hide-error-context",
			"--ignore-missing-imports", "--disable-error-code", "func-returns-value", "--cache-dir", filepath.Join(dir, "cache"), file}
	}},
	{"ty", func(dir, file string) []string {
		return []string{"check", "--output-format", "concise", "--color", "never", "--extra-search-path", dir, file}
	}},
}

// A place in what a type checker says: FILE:LINE:COLUMN: error: TEXT, or error[RULE] TEXT.
var complaint = regexp.MustCompile(`^(.+?):(\d+):(\d+): error(?:: |\[[^]]*\] )(.*)$`)

// declares is true of a file that declares machines itself, which are its own variables. The
// functions for that are declaring's.
var declares = regexp.MustCompile(`(?m)^[^#\n]*\bmachine\(`)

const declaring = " machine: Callable[..., QemuMachine]; debian: Any; rootfs: Any; disk: Any;"

// CheckTypes has a type checker of this host, if there is one, look at a script for these
// machines. checker is its name; empty: there is none. What it finds is a *script.LoadError.
func CheckTypes(ctx context.Context, path string, machines []attest.MachineConfig) (checker string, err error) {
	for _, c := range typeCheckers {
		if program, lookErr := exec.LookPath(c.name); lookErr == nil {
			return c.name, checkTypes(ctx, program, c.args, path, machines)
		}
	}
	return "", nil
}

func checkTypes(ctx context.Context, program string, args func(dir, file string) []string, path string, machines []attest.MachineConfig) error {
	infra := func(err error) error {
		return &attest.InfraError{Action: "check the types of " + path + " with " + program, Err: err}
	}
	source, err := os.ReadFile(path)
	if err != nil {
		return infra(err)
	}
	names, err := variables(path, machines)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "attest-types")
	if err != nil {
		return infra(err)
	}
	defer os.RemoveAll(dir)
	if err := WriteStubs(dir); err != nil {
		return infra(err)
	}
	// One line more, so that all others keep their numbers but for that.
	head := "from test_driver.symbols import *;"
	if declares.Match(source) {
		head, names = head+declaring, nil
	}
	for _, n := range names {
		head += fmt.Sprintf(" %s: QemuMachine;", n)
	}
	for _, n := range (&file{machines: machines}).networks() {
		head += fmt.Sprintf(" vlan%d: VLan;", n)
	}
	file := filepath.Join(dir, "script", filepath.Base(path))
	err = errors.Join(os.Mkdir(filepath.Dir(file), 0o700), os.WriteFile(file, append([]byte(head+"\n"), source...), 0o600))
	if err != nil {
		return infra(err)
	}
	cmd := exec.CommandContext(ctx, program, args(dir, file)...)
	cmd.Env = append(os.Environ(), "MYPYPATH="+dir+":"+filepath.Dir(path), "NO_COLOR=1")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	found, own := complaints(stdout.String(), file, path, source)
	var exit *exec.ExitError
	switch {
	case own != "":
		return infra(errors.New("it does not understand attest's types: " + own))
	case len(found) > 0:
		return &script.LoadError{Path: path, Errors: found}
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		return nil // about something else than the script
	case err != nil:
		return infra(fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()+stdout.String())))
	}
	return nil
}

// complaints are what a type checker says about the script, with the script's own places, and
// about the line in front of it.
func complaints(said, checked, path string, source []byte) (out []*script.Error, own string) {
	lines := strings.Split(string(source), "\n")
	for line := range strings.Lines(said) {
		m := complaint.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil || filepath.Base(m[1]) != filepath.Base(checked) {
			continue
		}
		n, _ := strconv.Atoi(m[2])
		column, _ := strconv.Atoi(m[3])
		if n--; n < 1 || n > len(lines) {
			own = m[4]
			continue
		}
		out = append(out, &script.Error{Position: event.Position{File: path, Line: n, Column: column}, Source: strings.TrimRight(lines[n-1], "\r"), Err: errors.New(m[4])})
	}
	return out, own
}
