package repl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// A Session is what is talked to.
type Session interface {
	Read(line func(first bool) (string, error)) (script.Statement, error)
	Run(context.Context, script.Statement) (string, error)
	Complete(text string) (head string, words []string)
}

// Options are what a conversation needs. All but History and Interrupts must be given.
type Options struct {
	Session Session
	In      *os.File
	Out     io.Writer // values
	Err     io.Writer // errors
	// Explain lays out an error for a person, and says of what kind it is. ctx is the
	// statement's.
	Explain func(ctx context.Context, err error) (text string, status event.Status)
	History string // path of the history at a terminal; empty: none is kept
	// Interrupts has a value, the reason, for each Ctrl-C.
	Interrupts <-chan error
	// Hold keeps others from writing to the terminal while a guest has it; nil
	// if there are none.
	Hold func(bool)
}

// Interactive reports whether a file is a terminal.
func Interactive(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// Run talks until the input ends, or ctx does, which is its error. worst is that
// of the statements' ends.
func Run(ctx context.Context, o Options) (worst event.Status, err error) {
	worst = event.Passed
	in := newInput(o)
	defer in.close()
	ctx = operation.WithTerminal(ctx, in.lend)
	for {
		statement, err := o.Session.Read(func(first bool) (string, error) { return in.line(ctx, first) })
		var stopped *inputError
		switch {
		case errors.As(err, &stopped):
			return worst, stopped.err
		case errors.Is(err, errDropped):
			continue
		case err == io.EOF:
			return worst, nil
		case err == nil:
			worst = event.Worst(worst, o.run(ctx, statement))
		default:
			worst = event.Worst(worst, o.explain(ctx, err))
		}
		if ctx.Err() != nil {
			return worst, context.Cause(ctx)
		}
	}
}

func (o *Options) explain(ctx context.Context, err error) event.Status {
	text, status := o.Explain(ctx, err)
	fmt.Fprint(o.Err, text)
	return status
}

// run runs one statement and shows what came of it.
func (o *Options) run(ctx context.Context, statement script.Statement) event.Status {
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
	if err != nil {
		return o.explain(ctx, err)
	}
	if shown != "" {
		fmt.Fprintln(o.Out, shown)
	}
	return event.Passed
}
