package guest_test

import (
	"io"
	"testing"

	"github.com/attest-vm/attest/internal/guest"
)

// What client and agent cost without a guest between them.

func BenchmarkEcho(b *testing.B) {
	m, ctx := newMachine(b), b.Context()
	for b.Loop() {
		if err := m.Echo(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTrue(b *testing.B) {
	m, ctx := newMachine(b), b.Context()
	for b.Loop() {
		if r, err := m.Run(ctx, guest.Command{Script: "true"}); err != nil || r.ExitCode != 0 {
			b.Fatal(r, err)
		}
	}
}

func BenchmarkOutput(b *testing.B) {
	m, ctx := newMachine(b), b.Context()
	b.SetBytes(64 << 20)
	for b.Loop() {
		if r, err := m.Run(ctx, guest.Command{Script: "head -c 64M /dev/zero", Stdout: io.Discard}); err != nil || r.ExitCode != 0 {
			b.Fatal(r, err)
		}
	}
}
