package test

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/mock"
)

// TestScripts runs the scripts in testdata. Beside testscript's own commands
// they have those of scriptCommands; at their end nothing may be left behind.
func TestScripts(t *testing.T) {
	t.Parallel()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:         "testdata",
		WorkdirRoot: t.TempDir(), // testscript leaves behind the one that it makes
		Cmds:        scriptCommands,
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Geteuid() == 0, nil
			case "namespaces":
				return mock.New(mock.Options{}).Check(vmm.Config{Boot: &vmm.Mock{}}) == nil, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Setup: func(env *testscript.Env) error {
			// Not below $WORK: the paths of sockets would be too long.
			state, err := os.MkdirTemp("/tmp", "at")
			if err != nil {
				return err
			}
			env.Setenv("ATTEST_STATE_DIR", state)
			env.Setenv("XDG_CACHE_HOME", cache)
			env.Setenv("ATTEST", attestBinary)
			env.Defer(func() {
				defer os.RemoveAll(state)
				if left := leftovers(state); len(left) > 0 {
					env.T().Fatal("this is left behind:\n" + strings.Join(left, "\n"))
				}
			})
			return nil
		},
		RequireUniqueNames: true,
	})
}

var scriptCommands = map[string]func(*testscript.TestScript, bool, []string){
	"exits":      exits,
	"jsonlines":  jsonLines,
	"wellformed": wellFormed,
}

// exits runs a program that must end with an exit code:
//
//	exits CODE PROGRAM [ARG...]
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM [ARG...]")
	}
	code := 0
	var exit *exec.ExitError
	switch err := ts.Exec(args[1], args[2:]...); {
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got := strconv.Itoa(code); got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// jsonLines checks that each line of a file is an event and that none is missing:
//
//	jsonlines FILE
func jsonLines(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: jsonlines FILE")
	}
	n := 0
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		n++
		var e struct {
			Seq  int
			Time string
			Type string
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			ts.Fatalf("%s:%d: %v\n%s", args[0], n, err, line)
		}
		if e.Seq != n || e.Type == "" || e.Time == "" {
			ts.Fatalf("%s:%d: seq %d, type %q, time %q\n%s", args[0], n, e.Seq, e.Type, e.Time, line)
		}
	}
	if n == 0 {
		ts.Fatalf("%s is empty", args[0])
	}
}

// wellFormed checks that a file is XML:
//
//	wellformed FILE
func wellFormed(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: wellformed FILE")
	}
	d := xml.NewDecoder(strings.NewReader(ts.ReadFile(args[0])))
	for {
		if _, err := d.Token(); err == io.EOF {
			return
		} else if err != nil {
			ts.Fatalf("%s: %v", filepath.Base(args[0]), err)
		}
	}
}
