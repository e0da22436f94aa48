package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/attest-vm/attest/internal/wire"
	"github.com/attest-vm/attest/internal/wire/tarfs"
)

// CopyResult is what was copied.
type CopyResult struct {
	Files   int      // without directories
	Bytes   int64    // of content
	Skipped []string // devices, sockets and pipes, and why
}

// CopyIn copies a file or a tree of the host to the guest, like
// mkdir -p $(dirname dst); cp -r src dst: into dst, if that is a directory.
func (c *Client) CopyIn(ctx context.Context, src, dst string) (CopyResult, error) {
	abs, err := filepath.Abs(src)
	if err != nil {
		return CopyResult{}, err
	}
	name := filepath.Base(abs)
	if name == "/" {
		return CopyResult{}, fmt.Errorf("%s: copy %s into the guest: it has no name", c.name, src)
	}
	if _, err := os.Stat(abs); err != nil {
		return CopyResult{}, fmt.Errorf("%s: copy to %s: %w", c.name, dst, err)
	}
	k, err := c.open(ctx, wire.OpPutTar, wire.CopyRequest{Path: []byte(dst)}, nil)
	if err != nil {
		return CopyResult{}, err
	}
	var r wire.CopyResult
	local, err := c.send(ctx, k, &r, func(w io.Writer) (tarfs.Stats, error) {
		st, err := tarfs.Write(w, abs, name)
		if err != nil && !errors.Is(err, io.ErrClosedPipe) {
			err = fmt.Errorf("%s: copy %s: %w", c.name, src, err)
		}
		return st, err
	})
	return CopyResult{Files: r.Files, Bytes: r.Bytes, Skipped: append(local.Skipped, r.Skipped...)}, err
}

// reserve is how much of the host's file system copies leave free: a guest may
// send without end.
const reserve = 256 << 20

// CopyOut copies a file or a tree of the guest into a directory of the host, under
// its own name.
func (c *Client) CopyOut(ctx context.Context, src string, root *os.Root) (CopyResult, error) {
	k, err := c.open(ctx, wire.OpGetTar, wire.CopyRequest{Path: []byte(src)}, nil)
	if err != nil {
		return CopyResult{}, err
	}
	k.stall = c.opt.Stall
	var local tarfs.Stats
	received := make(chan error, 1)
	go func() {
		in := k.stream.Reader(wire.Stdout)
		var err error
		if local, err = tarfs.Extract(in, root, filepath.Base(filepath.Clean(src)), reserve); err == nil {
			_, err = io.Copy(io.Discard, in)
		}
		if err != nil {
			err = fmt.Errorf("%s: copy %s to %s: %w", c.name, src, root.Name(), err)
			k.stream.Cancel(err)
		}
		received <- err
	}()
	var r wire.CopyResult
	err = k.wait(ctx, &r)
	if extractErr := <-received; err == nil {
		err = extractErr
	}
	return CopyResult{Files: local.Files, Bytes: local.Bytes, Skipped: append(r.Skipped, local.Skipped...)}, err
}
