package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/attest-vm/attest"
)

// A dialogue is a program in the guest that answers lines with lines, for as
// long as it is needed: one long command of attest's, with its standard input
// and output.
type dialogue struct {
	in    io.WriteCloser
	out   *bufio.Reader
	ended chan error
}

func converse(ctx context.Context, m *attest.Machine, command string) *dialogue {
	stdin, in := io.Pipe()
	out, stdout := io.Pipe()
	d := &dialogue{in: in, out: bufio.NewReader(out), ended: make(chan error, 1)}
	go func() {
		_, err := m.Succeed(ctx, command, attest.Stdin(stdin), attest.Stdout(stdout))
		gone := err
		if gone == nil {
			gone = io.EOF
		}
		stdin.CloseWithError(gone)
		stdout.CloseWithError(gone)
		d.ended <- err
	}()
	return d
}

// ask sends a line and returns the next one that comes back.
func (d *dialogue) ask(format string, args ...any) (string, error) {
	if err := d.tell(format, args...); err != nil {
		return "", err
	}
	return d.hear()
}

func (d *dialogue) tell(format string, args ...any) error {
	_, err := fmt.Fprintf(d.in, format+"\n", args...)
	return err
}

func (d *dialogue) hear() (string, error) {
	line, err := d.out.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

// close lets the program read to the end of its input, and waits for its end.
func (d *dialogue) close() error {
	d.in.Close()
	_, err := io.Copy(io.Discard, d.out)
	return errors.Join(err, <-d.ended)
}
