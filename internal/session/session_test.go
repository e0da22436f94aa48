package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	_ "github.com/attest-vm/attest/internal/script/starlark"
)

// fakeLab is a lab without machines. It knows what it was made with, and what it
// was asked.
type fakeLab struct {
	machines []attest.MachineConfig
	calls    []string
	closed   bool
}

func (l *fakeLab) Has(name string) bool {
	return slices.ContainsFunc(l.machines, func(c attest.MachineConfig) bool { return c.Name == name })
}

func (l *fakeLab) Create(_ context.Context, c attest.MachineConfig) error {
	l.machines = append(l.machines, c)
	return nil
}

func (l *fakeLab) Close() error { l.closed = true; return nil }

func (l *fakeLab) Invoke(ctx context.Context, object any, o *operation.Operation, args operation.Args) (any, error) {
	event.Logf(ctx, "%s", o.Name)
	on := ""
	switch object := object.(type) {
	case operation.MachineName:
		on = string(object)
	case operation.Handle:
		on = object.Name
	}
	l.calls = append(l.calls, on+"."+o.Name)
	switch o.Name {
	case "spawn":
		return operation.Handle{On: operation.Job, Name: args.String("command")}, nil
	case "fail":
		return nil, errors.New("it did not")
	}
	return "", nil
}

// begin begins a session with a fake lab.
func begin(t *testing.T, o Options) (*Session, *fakeLab) {
	t.Helper()
	lab := &fakeLab{}
	opened := 0
	o.open = func(_ context.Context, c attest.LabConfig) (Lab, error) {
		opened++
		lab.machines = append(lab.machines, c.Machines...)
		return lab, nil
	}
	s := Begin(t.Context(), o)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if opened > 1 || lab.closed != (opened == 1) {
			t.Errorf("%d labs, closed: %v", opened, lab.closed)
		}
	})
	return s, lab
}

// types types text and returns the errors.
func types(t *testing.T, s *Session, text string) (failed []string) {
	t.Helper()
	lines := slices.Collect(strings.Lines(text))
	for {
		in, err := s.Read(func(bool) (string, error) {
			if len(lines) == 0 {
				return "", io.EOF
			}
			line := lines[0]
			lines = lines[1:]
			return line, nil
		})
		if err == io.EOF {
			return failed
		}
		if err == nil {
			_, err = s.Run(t.Context(), in)
		}
		if err != nil {
			failed = append(failed, err.Error())
		}
	}
}

// A machine that is declared when the lab is there is the machine that was declared.
func TestLateMachineKeepsItsConfiguration(t *testing.T) {
	s, lab := begin(t, Options{})
	if err := s.Load("", nil); err != nil {
		t.Fatal(err)
	}
	snapshot, err := filepath.Abs("saved")
	if err != nil {
		t.Fatal(err)
	}
	const arguments = `(image = debian(), memory = 99, cpus = 2, networks = [2], type = "microvm", cmdline = "quiet", display = True,
		egress = ["example.org"], allow_reboot = True, boot = "cold", boot_timeout = 7, backend = "qemu", snapshot = "SAVED")`
	declare := "machine" + strings.ReplaceAll(strings.ReplaceAll(arguments, "SAVED", snapshot), "\n", "") + "\n"
	if failed := types(t, s, "m = "+declare+"m.succeed('a')\nlate = "+declare+"late.succeed('a')\nlate.succeed('b')\n"); failed != nil {
		t.Fatal(failed)
	}
	if len(lab.machines) != 2 {
		t.Fatalf("%d machines", len(lab.machines))
	}
	want := attest.MachineConfig{
		Name: "late", Image: attest.Debian{}, Memory: 99, CPUs: 2, Networks: []int{2}, Type: "microvm", Cmdline: "quiet", Display: true,
		Egress: []string{"example.org"}, AllowReboot: true, Boot: attest.BootCold, BootTimeout: 7 * time.Second, Backend: "qemu", Snapshot: snapshot,
	}
	if diff := cmp.Diff(want, lab.machines[1]); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	want.Name = "m"
	if diff := cmp.Diff(want, lab.machines[0]); diff != "" {
		t.Errorf("the first (-want +got)\n%s", diff)
	}
}

// The lab is made by the first operation, with the machines that are declared by then.
func TestLabIsMadeWhenNeeded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lab.star")
	if err := os.WriteFile(path, []byte("web = machine(image = debian())\ndef setup(): web.succeed('start')\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s, lab := begin(t, Options{})
	if err := s.Load(path, nil); err != nil {
		t.Fatal(err)
	}
	types(t, s, "1 + 1\n")
	if lab.machines != nil {
		t.Error("there is a lab before it is needed")
	}
	if failed := types(t, s, "db = machine(image = debian())\nsetup()\nlate = machine(image = debian())\n"); failed != nil {
		t.Error(failed)
	}
	if len(lab.machines) != 2 || len(s.Machines()) != 3 {
		t.Errorf("the lab has %d machines, and %d are declared", len(lab.machines), len(s.Machines()))
	}
	if failed := types(t, s, "machine(image = debian()).succeed('a')\n"); len(failed) != 1 || !strings.Contains(failed[0], "this machine has no name") {
		t.Errorf("got %q", failed)
	}
}

// Operations by name: machines by name, other objects by number.
func TestInvoke(t *testing.T) {
	var said []string
	s, lab := begin(t, Options{Record: func(r event.Record) {
		if l, ok := r.Event.(event.Log); ok {
			said = append(said, l.Text)
		}
	}})
	if err := s.Load("", []attest.MachineConfig{{Name: "web", Image: attest.Debian{}}}); err != nil {
		t.Fatal(err)
	}
	web := operation.MachineName("web")
	made, err := s.Invoke(t.Context(), web, "spawn", []any{"sleep 1"}, nil)
	job, ok := made.(Object)
	if err != nil || !ok || job != (Object{operation.Job, "job", job.ID, "sleep 1"}) {
		t.Fatalf("got %v, %v", made, err)
	}
	if _, err := s.Invoke(t.Context(), Object{ID: job.ID}, "kill", nil, nil); err != nil {
		t.Error(err)
	}
	_, err = s.Invoke(t.Context(), web, "fail", []any{"true"}, nil)
	var op *operation.Error
	if !errors.As(err, &op) || op.Machine != "web" || op.Operation != "fail" {
		t.Errorf("got %v", err)
	}
	if _, err = s.Invoke(t.Context(), operation.Network, "heal", nil, nil); err != nil {
		t.Error(err)
	}
	if got := strings.Join(lab.calls, " "); got != "web.spawn sleep 1.kill web.fail .heal" {
		t.Errorf("asked %s", got)
	}
	if got := strings.Join(said, " "); got != "spawn kill fail heal" {
		t.Errorf("events: %s", got)
	}
	s.Release(job)
	for _, tt := range []struct {
		on   any
		name string
		args []any
		want string
	}{
		{job, "kill", nil, fmt.Sprintf("this session has no object %d", job.ID)},
		{web, "suceed", nil, "suceed: machine has no such operation; did you mean succeed?"},
		{web, "wait_for_unit", nil, "argument unit is missing"},
		{7, "x", nil, "neither a machine nor an object"},
	} {
		_, err := s.Invoke(t.Context(), tt.on, tt.name, tt.args, nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) || attest.StatusOf(err) != attest.Invalid {
			t.Errorf("%v.%s: %v (%s)", tt.on, tt.name, err, attest.StatusOf(err))
		}
	}
}
