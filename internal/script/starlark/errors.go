package starlark

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"go.starlark.net/resolve"
	sl "go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// An AssertError is a claim of the test that does not hold.
type AssertError struct{ Message string }

func (e *AssertError) Error() string         { return e.Message }
func (e *AssertError) Status() attest.Status { return attest.Failed }

// A usageError is a call that makes no sense, whatever the machines do.
type usageError struct{ message string }

func (e *usageError) Error() string         { return e.message }
func (e *usageError) Status() attest.Status { return attest.Invalid }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

func positionOf(p syntax.Position) event.Position {
	return event.Position{File: p.Filename(), Line: int(p.Line), Column: int(p.Col)}
}

// builtinFile is what Starlark gives as the file of a function that is
// written in Go.
const builtinFile = "<builtin>"

// frames are the places of a call stack that are in test files.
func frames(stack sl.CallStack) []event.Position {
	var out []event.Position
	for _, f := range stack {
		if f.Pos.Filename() == builtinFile {
			continue
		}
		p := positionOf(f.Pos)
		p.Func = f.Name
		out = append(out, p)
	}
	return out
}

// sources are the texts of the files that were loaded, by the names that
// positions have, in lines.
type sources map[string][]string

func (s sources) add(name string, text []byte) {
	s[name] = strings.Split(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n")
}

func (s sources) line(p event.Position) string {
	if lines := s[p.File]; p.Line >= 1 && p.Line <= len(lines) {
		return lines[p.Line-1]
	}
	return ""
}

func (s sources) errorAt(p event.Position, err error) *script.Error {
	return &script.Error{Position: p, Source: s.line(p), Err: err}
}

// shownFrames are so many of a deep stack's outermost and innermost calls.
const shownFrames = 20

// explain turns what a Starlark thread ended with into an Error. The call
// stacks of threads that it started in turn are joined to its own.
func (s sources) explain(err error) *script.Error {
	out := &script.Error{}
	for {
		eval, ok := err.(*sl.EvalError)
		if !ok {
			break
		}
		out.Stack = append(out.Stack, frames(eval.CallStack)...)
		err = eval.Unwrap()
	}
	out.Err = err
	var inner *script.Error
	if errors.As(err, &inner) {
		out.Stack = append(out.Stack, inner.Stack...)
		if err == inner {
			out.Err = inner.Err
		}
	}
	if n := len(out.Stack); n > 2*shownFrames {
		out.Stack = append(out.Stack[:shownFrames:shownFrames], out.Stack[n-shownFrames:]...)
	}
	if n := len(out.Stack); n > 0 {
		out.Position = out.Stack[n-1]
		out.Source = s.line(out.Position)
	}
	return out
}

// parseErrors are the mistakes that the parser or the resolver found; env is
// what is predeclared.
func (s sources) parseErrors(err error, env sl.StringDict) []*script.Error {
	var one syntax.Error
	var list resolve.ErrorList
	switch {
	case errors.As(err, &one):
		p := positionOf(one.Pos)
		if strings.HasPrefix(one.Msg, "got newline") && p.Column == 1 && p.Line > 1 {
			// The scanner has read past the newline; the mistake is before it.
			p.Line--
			p.Column = utf8.RuneCountInString(s.line(p)) + 1
		}
		return []*script.Error{s.errorAt(p, errors.New(one.Msg+syntaxHint(s.line(p))))}
	case errors.As(err, &list):
		var out []*script.Error
		for _, e := range list {
			out = append(out, s.errorAt(positionOf(e.Pos), errors.New(e.Msg+undefinedHint(e.Msg, env))))
		}
		return out
	}
	return []*script.Error{{Err: err}}
}

var (
	formatted  = regexp.MustCompile(`(^|[^\w"'])[fF]["']`)
	firstWord  = regexp.MustCompile(`^\s*(\w+)`)
	pythonOnly = map[string]string{
		"assert":   "write assert_eq(got, want), assert_contains or assert_matches, or if …: fail(text)",
		"class":    "Starlark has no classes; use functions and struct(…)",
		"except":   "Starlark has no exceptions; retry(fn) calls again what fails, m.execute tells how a command ended",
		"from":     `write load("lib.star", "name")`,
		"global":   "global variables are frozen when the file has been read",
		"import":   `write load("lib.star", "name"); json, math, re, time and struct are there already`,
		"nonlocal": "keep what inner functions change in a list or a dict",
		"raise":    "write fail(text)",
		"try":      "Starlark has no exceptions; retry(fn) calls again what fails, m.execute tells how a command ended",
		"with":     "write subtest(name, fn), with a function for the block",
	}
	undefinedNames = map[string]string{
		"filter":     "write [x for x in list if …]",
		"isinstance": `write type(x) == "string"`,
		"map":        "write [fn(x) for x in list]",
		"open":       "a test file does not read files of the host; m.copy_from_host copies them to a machine",
		"os":         "a test file does not see the host",
		"sleep":      "write m.sleep(secs), or better a wait or retry(fn)",
		"sum":        "add the numbers in a loop",
	}
)

// syntaxHint helps people who write Python.
func syntaxHint(line string) string {
	if formatted.MatchString(line) {
		return ` (Starlark has no f-strings; write "…%s…" % value)`
	}
	if m := firstWord.FindStringSubmatch(line); m != nil && pythonOnly[m[1]] != "" {
		return " (" + pythonOnly[m[1]] + ")"
	}
	return ""
}

func undefinedHint(msg string, env sl.StringDict) string {
	name, ok := strings.CutPrefix(msg, "undefined: ")
	if !ok || strings.Contains(name, " ") {
		return "" // the resolver has a hint of its own
	}
	if hint := undefinedNames[name]; hint != "" {
		return " (" + hint + ")"
	}
	return operation.DidYouMean(name, append(env.Keys(), universe()...))
}

// cancelled reports whether Starlark ended because its thread was cancelled.
func cancelled(err error) bool {
	for {
		eval, ok := err.(*sl.EvalError)
		if !ok {
			break
		}
		err = eval.Unwrap()
	}
	return err != nil && strings.HasPrefix(err.Error(), "Starlark computation cancelled:")
}

// cause is why ctx ended.
func cause(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return ctx.Err()
}
