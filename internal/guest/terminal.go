package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"time"

	"github.com/attest-vm/attest/internal/wire"
)

// A Terminal is where a person works with a login shell of the guest.
type Terminal struct {
	Input   io.Reader // what is typed; when it ends the terminal hangs up
	Output  io.Writer
	Type    string // $TERM
	User    string // empty: root
	Size    wire.TerminalSize
	Resizes <-chan wire.TerminalSize // may be nil
}

var errTerminalLeft = errors.New("the terminal was left")

// Terminal runs a login shell until it exits or is hung up. Neither is an error.
// When ctx ends it is hung up, too.
func (c *Client) Terminal(ctx context.Context, t Terminal) (Result, error) {
	started := time.Now()
	ctx, hangUp := context.WithCancelCause(ctx)
	defer hangUp(nil)
	k, err := c.open(ctx, wire.OpTerminal, wire.TerminalRequest{TerminalSize: t.Size, Type: t.Type, User: t.User}, nil)
	if err != nil {
		return Result{}, err
	}
	go func() { // lives until Input's Read returns
		io.Copy(k.stream.Writer(wire.Stdin), t.Input)
		hangUp(errTerminalLeft)
	}()
	go func() {
		for {
			select {
			case size := <-t.Resizes:
				binary.Write(k.stream.Writer(wire.Resize), binary.BigEndian, size)
			case <-k.stream.Done():
				return
			case <-k.stream.Context().Done():
				return
			}
		}
	}()
	p := &Process{call: k}
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		p.receive(wire.Stdout, "the terminal", &sink{w: t.Output})
	}()
	var r wire.ExecResult
	err = k.wait(ctx, &r)
	if errors.Is(err, errTerminalLeft) {
		err = nil
	}
	<-shown
	return Result{ExitCode: r.ExitCode, Signal: r.Signal, Duration: time.Since(started)}, err
}
