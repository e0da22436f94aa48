package attest

import (
	"context"
	"io"
	"sync"

	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/wire"
)

// TerminalSize is the size of a terminal in cells.
type TerminalSize struct{ Rows, Columns uint16 }

// A Terminal is where a person works with a shell of a guest.
type Terminal struct {
	Input  io.Reader // what is typed
	Output io.Writer // what the guest shows
	// Type is $TERM in the guest. Empty: this is no terminal; the shell reads
	// commands from Input and has no job control.
	Type    string
	Size    TerminalSize
	Resizes <-chan TerminalSize // changes of the size; may be nil
}

// Shell runs a login shell of the guest, as root or as the user given, on a
// terminal, and returns its exit code. It ends when the shell exits, and hangs
// up when Input or ctx ends.
func (m *Machine) Shell(ctx context.Context, t Terminal, opts ...ShellOption) (int, error) {
	o := collect(opts)
	code := 0
	err := step(ctx, m.Name(), "shell_interact", "", func(ctx context.Context) error {
		r, err := m.use(ctx, "shell_interact")
		if err != nil {
			return err
		}
		var res guest.Result
		if t.Type == "" {
			res, err = r.guest.Run(ctx, guest.Command{
				Argv: []string{"sh", "-c", `exec "$(command -v bash || echo sh)" -l`}, User: o.user,
				Stdin: t.Input, Stdout: t.Output, Stderr: t.Output,
			})
		} else {
			resizes, stop := t.resizes()
			defer stop()
			res, err = r.guest.Terminal(ctx, guest.Terminal{
				Input: t.Input, Output: t.Output, Type: t.Type, User: o.user, Size: wire.TerminalSize(t.Size), Resizes: resizes,
			})
		}
		code = res.ExitCode
		return r.explain(ctx, "shell_interact", err)
	})
	return code, err
}

// resizes are the changes of the size as the guest channel takes them, until stop.
func (t Terminal) resizes() (_ <-chan wire.TerminalSize, stop func()) {
	sizes, over := make(chan wire.TerminalSize), make(chan struct{})
	var carrier sync.WaitGroup
	carrier.Go(func() {
		for {
			select {
			case size, more := <-t.Resizes:
				if !more {
					return
				}
				select {
				case sizes <- wire.TerminalSize(size):
				case <-over:
					return
				}
			case <-over:
				return
			}
		}
	})
	return sizes, func() { close(over); carrier.Wait() }
}
