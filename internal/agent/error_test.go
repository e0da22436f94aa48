package agent

import (
	"context"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

func TestAsError(t *testing.T) {
	over, cancel := context.WithCancel(t.Context())
	cancel()
	own := &wire.Error{Kind: wire.KindUnit, Message: "x"}
	for _, tt := range []struct {
		ctx  context.Context
		err  error
		want string
	}{
		{t.Context(), errors.New("x"), wire.KindFailed},
		{t.Context(), errors.Join(errors.New("first"), own), wire.KindUnit},
		{t.Context(), &os.PathError{Op: "open", Path: "x", Err: unix.ENOENT}, wire.KindNotFound},
		{t.Context(), &os.PathError{Op: "fork/exec", Path: "x", Err: unix.EMFILE}, wire.KindExhausted},
		{t.Context(), os.NewSyscallError("pipe2", unix.ENFILE), wire.KindExhausted},
		{t.Context(), unix.ENOMEM, wire.KindExhausted},
		{over, unix.ENOMEM, wire.KindCanceled},
	} {
		if got := asError(tt.ctx, tt.err); got.Kind != tt.want || got.Message == "" {
			t.Errorf("%v: got %+v", tt.err, got)
		}
	}
}
