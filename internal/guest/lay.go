package guest

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/attest-vm/attest/internal/wire"
	"github.com/attest-vm/attest/internal/wire/tarfs"
)

// Lay makes a file or a tree of the guest what it is on the host; write writes what
// is new of it as a tar stream.
func (c *Client) Lay(ctx context.Context, q wire.LayRequest, write func(io.Writer) (tarfs.Stats, error)) (wire.LayResult, error) {
	var r wire.LayResult
	k, err := c.open(ctx, wire.OpLay, q, nil)
	if err != nil {
		return r, err
	}
	local, err := c.send(ctx, k, &r, func(w io.Writer) (tarfs.Stats, error) {
		st, err := write(w)
		if err != nil && !errors.Is(err, io.ErrClosedPipe) {
			err = fmt.Errorf("%s: files for %s: %w", c.name, q.Path, err)
		}
		return st, err
	})
	r.Skipped = append(local.Skipped, r.Skipped...)
	return r, err
}

// send writes a tar stream to an operation that takes one, and waits for its result.
func (c *Client) send(ctx context.Context, k *call, result any, write func(io.Writer) (tarfs.Stats, error)) (local tarfs.Stats, err error) {
	k.stall = c.opt.Stall
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		var err error
		local, err = write(k.stream.Writer(wire.Stdin))
		if err != nil && !errors.Is(err, io.ErrClosedPipe) { // that is: the guest ended it, and says why
			k.stream.Cancel(err)
		}
		k.stream.CloseWrite(wire.Stdin)
	}()
	err = k.wait(ctx, result)
	<-sent // the stream is over, so that write has failed if it had not ended
	return local, err
}
