package starlark

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// converse types text into a session, and returns what it shows: values, and
// errors behind "! ".
func converse(t *testing.T, s *Session, text string) []string {
	t.Helper()
	lines := slices.Collect(strings.Lines(text))
	var shown []string
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
			return shown
		}
		value := ""
		if err == nil {
			value, err = s.Run(t.Context(), in)
		}
		switch {
		case err != nil:
			shown = append(shown, "! "+err.Error())
		case value != "":
			shown = append(shown, value)
		}
	}
}

// newSession is a session on a fake lab.
func newSession(t *testing.T, path string, lab *fakeLab) (s *Session, out *bytes.Buffer) {
	t.Helper()
	out = &bytes.Buffer{}
	s, err := NewSession(t.Context(), path, script.Options{Stdout: out}, lab)
	if err != nil {
		t.Fatal(err)
	}
	return s, out
}

// declared are the names of a session's machines.
func declared(t *testing.T, s *Session) string {
	t.Helper()
	machines, err := s.Machines()
	if err != nil {
		t.Error(err)
	}
	var names []string
	for _, m := range machines {
		names = append(names, m.Name)
	}
	return strings.Join(names, " ")
}

func TestSession(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"expressions", "1 + 1\n'a' * 3\nNone\n_\n", "2|\"aaa\"|\"aaa\""},
		{"variables", "x = 2\nx = x + 1\nx\n", "3"},
		{"several statements in a line", "x = 1; x\n", ""},
		{"a block ends with an empty line", "def f():\n    return 7\n\nf()\n", "7"},
		{"a block ends before a line that is not indented", "def f():\n    return 7\nf()\nif True:\n    x = 1\nelse:\n    x = 2\nx\n", "7|1"},
		{"a block ends with the input", "for i in [1]:\n    print(i)", ""},
		{"parentheses", "[1,\n2,\n3]\nlen('''a\nb''')\n", "[1, 2, 3]|3"},
		{"comments and empty lines", "\n# nothing\n\n1 # one\n", "1"},
		{"a syntax error", "1 +\n2\n", "! input 1:1:4: got newline, want primary expression\n\t1 +|2"},
		{"an unknown name", "mm\n1\n", "! input 1:1:1: undefined: mm\n\tmm|1"},
		{"a failure and on", "fail('no')\n1\n", "! input 1:1:5: no|1"},
		{"in a function of before", "def f():\n    fail('deep')\n\nf()\n", "! input 1:2:9: deep"},
		{"a machine", "m = machine(image = debian())\nm\nm.name\nm.succeed('a')\n", "<machine m>|\"m\"|\"\""},
		{"a misspelt operation", "m = machine(image = debian())\nm.suceed('a')\n", "! input 2:1:2: machine has no operation suceed; did you mean succeed?"},
		{"a machine for the lab that runs", "m = machine(image = debian())\nm.succeed('a')\nn = machine(image = debian(), memory = 99, networks = [2])\nn.succeed('a')\n", "\"\"|\"\""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := newSession(t, "", &fakeLab{})
			got := strings.Join(converse(t, s, tt.text), "|")
			if got != tt.want && !(strings.HasSuffix(tt.want, "! ") && strings.HasPrefix(got, tt.want)) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

// A session has what its file has, and may give it other values.
func TestSessionOfAFile(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for name, text := range map[string]string{
		"lab.star": "load('lib.star', 'double', thrice = 'triple')\nweb = machine(image = debian())\ncount = 3\ndef setup():\n    \"\"\"starts the web\"\"\"\n    web.succeed('start')\ndef test_x():\n    print(double(count))\n",
		"lib.star": "def double(x): return 2 * x\ndef triple(x): return 3 * x\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	lab := &fakeLab{}
	s, out := newSession(t, "lab.star", lab)
	if got := converse(t, s, "count\ncount = 4\ncount\ntest_x()\nload('lib.star', twice = 'double')\ntwice(4)\n"); fmt.Sprint(got) != "[3 4 8]" || out.String() != "6\n" {
		t.Errorf("got %q, printed %q", got, out)
	}
	if got := converse(t, s, "double(5)\nthrice(5)\n'%.1f' % 2.25\nx = '%5.2f'\nx %= 1.5\nx\n"); fmt.Sprintf("%q", got) != `["10" "15" "\"2.2\"" "\" 1.50\""]` {
		t.Errorf("what the file has loaded, and %%: %q", got)
	}
	if _, words := s.Complete("dou"); fmt.Sprint(words) != "[double(]" {
		t.Errorf("completion: %v", words)
	}
	converse(t, s, "db = machine(image = debian())\nsetup()\ndb.fail('x')\n")
	converse(t, s, "late = machine(image = debian())\nlate.succeed('x')\n")
	if got := fmt.Sprint(declared(t, s), lab.calls); got != "web db late[web.succeed db.fail late.succeed]" && got != "web db late [web.succeed db.fail late.succeed]" {
		t.Errorf("got %s", got)
	}
	out.Reset()
	converse(t, s, "help()\nhelp(web)\nhelp(web.wait_for_unit)\nhelp(setup)\n")
	for _, want := range []string{"Machines: web, db", "wait_until_succeeds", "machine.wait_for_unit(unit, user=None, timeout=900)", "setup: starts the web"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("help does not say %q:\n%s", want, out)
		}
	}
}

func TestSessionOfAFileWithoutTests(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.star")
	if err := os.WriteFile(path, []byte("m = machine(image = debian())\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s, _ := newSession(t, path, &fakeLab{})
	if got := converse(t, s, "m\n"); fmt.Sprint(got) != "[<machine m>]" {
		t.Errorf("got %q", got)
	}
}

// An operation that is interrupted ends its statement and not the session.
func TestSessionInterrupt(t *testing.T) {
	stop := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	lab := &fakeLab{answer: func(ctx context.Context, _, _ string, args operation.Args) (any, error) {
		if args.Strings("commands")[0] != "hang" {
			return "fine", nil
		}
		cancel(stop)
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}}
	s, _ := newSession(t, "", lab)
	converse(t, s, "m = machine(image = debian())\n")
	in, err := s.Read(func(bool) (string, error) { return "m.succeed('hang')\n", nil })
	if err == nil {
		_, err = s.Run(ctx, in)
	}
	if !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
	if got := converse(t, s, "m.succeed('on')\n"); fmt.Sprint(got) != `["fine"]` {
		t.Errorf("got %q", got)
	}
}

func TestComplete(t *testing.T) {
	s, _ := newSession(t, "", &fakeLab{})
	converse(t, s, "web = machine(image = debian())\nwebsite = 'x'\n")
	for _, tt := range []struct{ text, head, some, not string }{
		{"we", "", "web website", "m"},
		{"x = we", "x = ", "web", ""},
		{"web.wait_for_u", "web.", "wait_for_unit(", "succeed("},
		{"web.", "web.", "succeed( name", "web"},
		{"web.name", "web.", "", ""},
		{"assert_e", "", "assert_eq(", ""},
		{"web.wait_for_unit('a', ti", "web.wait_for_unit('a', ", "timeout=", "user="},
		{"web.wait_for_unit([1], ", "web.wait_for_unit([1], ", "timeout= user=", ""},
		{"web.succeed('we", "web.succeed('we", "", "web"},
		{"1 # we", "1 # we", "", "web"},
		{"json.de", "json.", "decode(", "encode("},
		{"nothing.x", "nothing.x", "", ""},
		{"retry(we", "retry(", "web", ""},
		{"x = machine(boot", "x = machine(", "boot= boot_timeout=", "image="},
		{"create_machine(eg", "create_machine(", "egress=", ""},
	} {
		head, words := s.Complete(tt.text)
		if head != tt.head {
			t.Errorf("%q: head %q, want %q", tt.text, head, tt.head)
		}
		for _, w := range strings.Fields(tt.some) {
			if !slices.Contains(words, w) {
				t.Errorf("%q: no %q among %q", tt.text, w, words)
			}
		}
		if tt.not != "" && slices.Contains(words, tt.not) {
			t.Errorf("%q: %q among the words", tt.text, tt.not)
		}
	}
}
