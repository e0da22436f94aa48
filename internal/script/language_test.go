package script_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
	"github.com/attest-vm/attest/internal/suite"
)

func init() {
	script.Register(script.Language{Name: "Words", Ending: ".words", Load: loadWords})
}

// A words file is a language of a test: each line is the name of a test and, behind
// it, what it fails with.
type words struct {
	path  string
	tests []script.Test
	fails map[string]string
}

func loadWords(_ context.Context, path string, _ script.Options) (script.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	w := &words{path: path, fails: map[string]string{}}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		name, fail, _ := strings.Cut(lines.Text(), " ")
		at := event.Position{File: path, Line: n}
		if name == "" {
			return nil, &script.LoadError{Path: path, Errors: []*script.Error{{Position: at, Err: errors.New("a line without a word")}}}
		}
		w.tests = append(w.tests, script.Test{Name: name, Position: at})
		w.fails[name] = fail
	}
	return w, lines.Err()
}

func (w *words) Path() string                     { return w.path }
func (w *words) Machines() []attest.MachineConfig { return nil }

func (w *words) Networks() map[int]attest.NetworkConfig { return nil }
func (w *words) Tests() []script.Test                   { return w.tests }
func (w *words) Setup() *script.Test                    { return nil }
func (w *words) KeepOnFailure() bool                    { return false }

func (w *words) Call(_ context.Context, _ operation.Runner, name string) error {
	for _, t := range w.tests {
		if t.Name == name && w.fails[name] != "" {
			return &script.Error{Position: t.Position, Err: errors.New(w.fails[name])}
		}
	}
	return nil
}

type host struct{}

func (host) String() string { return "a host" }
func (host) Close() error   { return nil }
func (host) NewLab(context.Context, attest.LabConfig) (operation.Runner, error) {
	return lab{}, nil
}

type lab struct{}

func (lab) Close() error { return nil }
func (lab) Invoke(context.Context, any, *operation.Operation, operation.Args) (any, error) {
	return nil, errors.New("a lab without machines")
}

// A language that registers itself is run by the suite, which knows none.
func TestALanguageOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a_test.words": "one\ntwo it does not hold\n", "b.words": "\n", "c.star": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run := func(name string) (suite.Summary, map[string]*event.Failure) {
		fails := map[string]*event.Failure{}
		var bus event.Bus
		bus.Subscribe(func(r event.Record) {
			switch e := r.Event.(type) {
			case event.TestFinished:
				fails[r.Scope.Test] = e.Failure
			case event.FileFinished:
				fails[""] = e.Failure
			}
		})
		s, err := suite.Run(event.WithBus(t.Context(), &bus), suite.Options{
			Files: []string{filepath.Join(dir, name)},
			Open:  func(context.Context) (suite.Host, error) { return host{}, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		return s, fails
	}
	s, fails := run(".") // the directory: a_test.words alone
	if f := fails["two"]; s.ExitCode() != 1 || s.Counts[event.Passed] != 1 || f == nil || f.Message != "it does not hold" || f.Position.Line != 2 {
		t.Errorf("got %+v, %+v", s, fails)
	}
	if s, fails := run("b.words"); s.ExitCode() != 2 || fails[""].Message != "a line without a word" || fails[""].Position.Line != 1 {
		t.Errorf("got %+v, %+v", s, fails[""])
	}
	if s, fails := run("c.star"); s.ExitCode() != 2 || !strings.HasSuffix(fails[""].Message, "c.star: not a test file: its name must end in .words") {
		t.Errorf("got %+v, %+v", s, fails[""])
	}
	if _, err := script.NewSession(t.Context(), filepath.Join(dir, "a_test.words"), script.Options{}, nil); attest.StatusOf(err) != attest.Unsupported {
		t.Errorf("a session of a language that nobody types: %v", err)
	}
}
