package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The example of a daemon that changes, as its reader uses it: attest runs the tests again
// after each edit, in a lab that stands, and Ctrl-C leaves nothing.
func TestWatch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../examples/daemon")); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "go.mod"), "module example.org/hello\n\ngo 1.24\n")
	source, file := filepath.Join(dir, "hello/main.go"), filepath.Join(dir, "hello_test.star")
	stateDir := newStateDir(t)
	p := start(t, stateDir, nil, "attest", "run", "--watch", "-v", "--run", "test_greets", file)
	rounds := 0
	// round waits for the end of the next round and returns what was said in it.
	round := func(what string) string {
		t.Helper()
		rounds++
		p.poll(t, "end of round "+fmt.Sprint(rounds)+", "+what, func() bool { return strings.Count(p.said(), "attest: waiting for a change") >= rounds })
		parts := strings.Split(p.said(), "attest: waiting for a change")
		return parts[rounds-1]
	}
	edit := func(path, old, new string) {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(text), old) {
			t.Fatalf("%s has no %q (%v)", path, old, err)
		}
		// As editors do: a new file takes the place of the old one.
		err = os.WriteFile(path+".new", []byte(strings.Replace(string(text), old, new, 1)), 0o644)
		if err := errors.Join(err, os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	setups := func(said string) int { return strings.Count(said, "setup started") }
	expect := func(what string, wantSetups int, want ...string) {
		t.Helper()
		said := round(what)
		for _, w := range want {
			if !strings.Contains(said, w) {
				t.Errorf("%s: nothing says %q:\n%s", what, w, said)
			}
		}
		if n := setups(said); n != wantSetups {
			t.Errorf("%s: setup ran %d times, want %d:\n%s", what, n, wantSetups, said)
		}
	}
	expect("as it is", 1, "1 passed")
	edit(source, `greeting = "Hello"`, `greeting = "Goodbye"`)
	expect("another greeting", 0, "hello/main.go changed", "1 file of the host changed since the snapshot", "1 failed", "Goodbye, ")
	edit(source, `greeting = "Goodbye"`, `greeting = `)
	expect("it does not compile", 0, "syntax error", "1 invalid")
	edit(source, `greeting = `, `greeting = "Hello"`)
	expect("it compiles again", 0, "1 passed")
	edit(file, `assert_contains(greeting(), "Hello, ")`, `assert_contains(greeting(), "Hello, ", "more")`)
	expect("a mistake in the test file", 0, "assert_contains", "1 ")
	edit(file, `assert_contains(greeting(), "Hello, ", "more")`, `print(server.succeed("stat -c %a /opt/hello/hello"), greeting())`)
	expect("another test", 0, "1 passed", "755\n")
	edit(file, `server.wait_for_unit("multi-user.target")`, `server.succeed("sha256sum /opt/hello/hello")`)
	expect("another setup", 1, "setup runs again: setup, a machine or what they depend on has changed", "1 passed")
	edit(source, `greeting = "Hello"`, `greeting = "Hi"`)
	expect("what setup has used", 1, "setup runs again: it had used what has changed (server: /opt/hello/hello)", "1 passed", "Hi, ")

	tree := processTree(p.cmd.Process.Pid)
	p.cmd.Process.Signal(syscall.SIGINT)
	if code := p.exitCode(t); code != 130 {
		t.Errorf("exit code %d", code)
	}
	for _, proc := range tree {
		if proc.alive() {
			t.Errorf("%v is left", proc)
		}
	}
	if left := leftovers(stateDir); len(left) > 0 {
		t.Errorf("left behind: %s", strings.Join(left, "\n"))
	}
}
