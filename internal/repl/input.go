package repl

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/peterh/liner"
)

// errDropped is a statement that the person gave up before it was complete.
var errDropped = errors.New("dropped")

// An inputError is an error of the input, not its end.
type inputError struct{ err error }

func (e *inputError) Error() string { return e.err.Error() }
func (e *inputError) Unwrap() error { return e.err }

// An input is where statements come from.
type input struct {
	o      Options
	pipe   *bufio.Reader // nil at a terminal
	editor *liner.State  // nil over a pipe
}

func newInput(o Options) *input {
	in := &input{o: o}
	if !Interactive(o.In) || !Interactive(os.Stdout) {
		in.pipe = bufio.NewReader(o.In)
		return in
	}
	in.editor = liner.NewLiner()
	in.editor.SetCtrlCAborts(true)
	in.editor.SetTabCompletionStyle(liner.TabPrints)
	in.editor.SetWordCompleter(in.complete)
	if f, err := os.Open(o.History); err == nil {
		in.editor.ReadHistory(f)
		f.Close()
	}
	return in
}

// close leaves the terminal as it was.
func (in *input) close() {
	if in.editor == nil {
		return
	}
	if in.o.History != "" && os.MkdirAll(filepath.Dir(in.o.History), 0o700) == nil {
		if f, err := os.OpenFile(in.o.History, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600); err == nil {
			in.editor.WriteHistory(f)
			f.Close()
		}
	}
	in.editor.Close()
}

func (in *input) complete(line string, pos int) (head string, words []string, tail string) {
	before, after := string([]rune(line)[:pos]), string([]rune(line)[pos:])
	if strings.TrimSpace(before) == "" {
		return before, []string{"    "}, after // the body of a block
	}
	head, words = in.o.Session.Complete(before)
	return head, words, after
}

// line returns a line with its newline; first is that of a statement.
func (in *input) line(ctx context.Context, first bool) (string, error) {
	type result struct {
		text string
		err  error
	}
	read := make(chan result, 1)
	go func() { // outlives line only when the conversation is over
		text, err := in.read(first)
		read <- result{text, err}
	}()
	select {
	case r := <-read:
		return r.text, r.err
	case <-ctx.Done():
		return "", &inputError{context.Cause(ctx)}
	case cause := <-in.o.Interrupts: // over a pipe; the editor takes Ctrl-C itself
		return "", &inputError{cause}
	}
}

func (in *input) read(first bool) (string, error) {
	if in.pipe != nil {
		text, err := in.pipe.ReadString('\n')
		switch {
		case err == io.EOF && text != "":
			return text + "\n", nil
		case err != nil && err != io.EOF:
			return "", &inputError{err}
		}
		return text, err
	}
	prompt := ">>> "
	if !first {
		prompt = "... "
	}
	text, err := in.editor.Prompt(prompt)
	switch {
	case err == liner.ErrPromptAborted:
		return "", errDropped
	case err == io.EOF:
		io.WriteString(in.o.Out, "\n")
		return "", err
	case err != nil:
		return "", &inputError{err}
	}
	if strings.TrimSpace(text) != "" {
		in.editor.AppendHistory(text)
	}
	return text + "\n", nil
}
