package tap

import (
	"context"

	"github.com/attest-vm/attest/internal/supervise"
)

// Try makes a namespace with a TAP for a VMM, and nothing in it: what is
// wrong with a host shows.
func Try(ctx context.Context) error {
	s, err := supervise.Start(ctx, supervise.Options{})
	if err != nil {
		return err
	}
	defer s.Close()
	p, taps, err := Start(ctx, s, supervise.Command{}, []Link{{Name: "tap0", ForVMM: true}})
	if err != nil {
		return err
	}
	for _, f := range taps {
		f.Close()
	}
	_, err = p.Wait(ctx)
	return err
}
