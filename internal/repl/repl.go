package repl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"

	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// Options are what a conversation needs. All but History and Interrupts must be given.
type Options struct {
	Session script.Session
	In      *os.File
	Out     io.Writer // values
	Err     io.Writer // errors
	// Explain lays out an error for a person. ctx is the statement's.
	Explain func(ctx context.Context, err error) string
	History string // path of the history at a terminal; empty: none is kept
	// Interrupts has a value, the reason, for each Ctrl-C.
	Interrupts <-chan error
	// Hold keeps others from writing to the terminal while a guest has it; nil
	// if there are none.
	Hold func(bool)
}

// Interactive says whether a file is a terminal.
func Interactive(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// Run talks until the input ends, or ctx does, which is its error. failed says
// whether a statement ended with an error.
func Run(ctx context.Context, o Options) (failed bool, err error) {
	in := newInput(o)
	defer in.close()
	ctx = operation.WithTerminal(ctx, in.lend)
	for {
		statement, err := o.Session.Read(func(first bool) (string, error) { return in.line(ctx, first) })
		var stopped *inputError
		switch {
		case errors.As(err, &stopped):
			return failed, stopped.err
		case errors.Is(err, errDropped):
			continue
		case err == io.EOF:
			return failed, nil
		case err == nil:
			err = o.run(ctx, statement)
		default:
			fmt.Fprint(o.Err, o.Explain(ctx, err))
		}
		if ctx.Err() != nil {
			return failed, context.Cause(ctx)
		}
		failed = failed || err != nil
	}
}

// run runs one statement and shows what came of it. Its error was shown.
func (o *Options) run(ctx context.Context, statement script.Statement) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case cause := <-o.Interrupts:
			cancel(cause)
		case <-ctx.Done():
		}
	}()
	shown, err := o.Session.Run(ctx, statement)
	switch {
	case err != nil:
		fmt.Fprint(o.Err, o.Explain(ctx, err))
	case shown != "":
		fmt.Fprintln(o.Out, shown)
	}
	return err
}
