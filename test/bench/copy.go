package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/attest-vm/attest"
)

// errMismatch is a copy that is not what was copied.
var errMismatch = errors.New("the copy differs from the original")

// copyRows measures the copy of a file of random bytes, and compares it outside
// of the timing.
func (b *bench) copyRows(ctx context.Context, m *attest.Machine, d *driver, _ *clock) ([]Row, error) {
	const inGuest = "/var/tmp/bench-copy"
	content := make([]byte, b.size<<20)
	rand.NewChaCha8([32]byte{}).Read(content)
	name := filepath.Join(b.dir, "content")
	if err := os.WriteFile(name, content, 0o644); err != nil {
		return nil, err
	}
	var in, out, refIn, refOut []time.Duration
	for i := range max(b.copies, b.referenceCopies) {
		if i < b.referenceCopies {
			b.say("copy %d MiB in and %d MiB out as the reference does", b.sizeIn, b.sizeOut)
			took, err := b.copyReference(ctx, m, d, content)
			if err != nil {
				return nil, err
			}
			refIn, refOut = append(refIn, took[0]), append(refOut, took[1])
		}
		if i < b.copies {
			b.say("copy %d MiB in and out, %d of %d", b.size, i+1, b.copies)
			took, err := b.copy(ctx, m, name, inGuest, content)
			if err != nil {
				return nil, err
			}
			in, out = append(in, took[0]), append(out, took[1])
		}
	}
	scaled := func(samples []time.Duration, size int) []time.Duration {
		return scale(samples, float64(b.size)/float64(size))
	}
	rowIn := newRow(fmt.Sprintf("copy %d MiB in", b.size), scaled(refIn, b.sizeIn), in, Target{Ratio: 10})
	rowOut := newRow(fmt.Sprintf("copy %d MiB out", b.size), scaled(refOut, b.sizeOut), out, Target{Ratio: 10})
	rowIn.Note = fmt.Sprintf("reference: %d MiB, scaled", b.sizeIn)
	rowOut.Note = fmt.Sprintf("reference: %d MiB, scaled", b.sizeOut)
	return []Row{rowIn, rowOut}, nil
}

// copy times a copy in and the copy of that out again.
func (b *bench) copy(ctx context.Context, m *attest.Machine, name, inGuest string, content []byte) (took [2]time.Duration, err error) {
	start := time.Now()
	if err := m.CopyFromHost(ctx, name, inGuest); err != nil {
		return took, err
	}
	took[0] = time.Since(start)
	if err := sameInGuest(ctx, m, inGuest, content); err != nil {
		return took, err
	}
	dir := filepath.Join(b.dir, "out")
	start = time.Now()
	if err := m.CopyFromMachine(ctx, inGuest, dir); err != nil {
		return took, err
	}
	took[1] = time.Since(start)
	if back, err := os.Open(filepath.Join(dir, filepath.Base(inGuest))); err != nil {
		return took, err
	} else if err := sameContent(back, content); err != nil {
		return took, fmt.Errorf("copy out: %w", err)
	}
	_, err = m.Succeed(ctx, "rm "+inGuest)
	return took, errors.Join(err, os.RemoveAll(dir))
}

// copyReference does the same through the driver's shell, with less.
func (b *bench) copyReference(ctx context.Context, m *attest.Machine, d *driver, content []byte) (took [2]time.Duration, err error) {
	const inGuest = "/var/tmp/bench-reference"
	start := time.Now()
	if err := d.copyIn(content[:b.sizeIn<<20], inGuest); err != nil {
		return took, err
	}
	took[0] = time.Since(start)
	if err := sameInGuest(ctx, m, inGuest, content[:b.sizeIn<<20]); err != nil {
		return took, err
	}
	// Twice the same file and so on is as much to copy as a file of that size.
	if _, err := m.Succeed(ctx, fmt.Sprintf("for i in $(seq %d); do cat %[2]s; done > %[2]s.out", b.sizeOut/b.sizeIn, inGuest)); err != nil {
		return took, err
	}
	start = time.Now()
	out, err := d.copyOut(inGuest + ".out")
	if err != nil {
		return took, err
	}
	took[1] = time.Since(start)
	if !bytes.Equal(out, bytes.Repeat(content[:b.sizeIn<<20], b.sizeOut/b.sizeIn)) {
		return took, fmt.Errorf("copy out of the reference: %w", errMismatch)
	}
	_, err = m.Succeed(ctx, "rm "+inGuest+"*")
	return took, err
}

// sameInGuest compares a file in the guest with what it should hold.
func sameInGuest(ctx context.Context, m *attest.Machine, path string, content []byte) error {
	sum, err := m.Succeed(ctx, "sha256sum "+path)
	if err == nil && !strings.HasPrefix(sum, fmt.Sprintf("%x ", sha256.Sum256(content))) {
		err = fmt.Errorf("copy in: %w", errMismatch)
	}
	return err
}

func sameContent(f *os.File, content []byte) error {
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if want := sha256.Sum256(content); !bytes.Equal(sum.Sum(nil), want[:]) {
		return errMismatch
	}
	return nil
}
