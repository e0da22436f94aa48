package mock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/attest-vm/attest/internal/vmm"
)

// The memory of a mock is a file of the size that was asked for, whose beginning
// is what its guest saves. All else is a hole.

// minMemory is for a machine whose configuration says nothing.
const minMemory = 1 << 20

// Save saves the machine, or half of it (Faults.SaveError).
func (m *Machine) Save(ctx context.Context, memory *os.File) (device []byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: save: %w", m.config.Name, err)
		}
	}()
	m.mu.Lock()
	paused := m.paused
	m.mu.Unlock()
	if !paused {
		return nil, errors.New("the machine runs")
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	var content bytes.Buffer
	if device, err = m.system.save(&content); err != nil {
		return nil, err
	}
	size := max(int64(m.config.Boot.(*vmm.Mock).Memory)<<20, minMemory, int64(content.Len()))
	if m.faults.SaveError != "" {
		content.Truncate(content.Len() / 2)
		size /= 2
	}
	if _, err := memory.WriteAt(content.Bytes(), 0); err != nil {
		return nil, err
	}
	if err := memory.Truncate(size); err != nil {
		return nil, err
	}
	if m.faults.SaveError != "" {
		return nil, errors.New(m.faults.SaveError)
	}
	return device, nil
}

// A restorer is a system that can go on from a state.
type restorer interface {
	load(r io.Reader, device []byte) error
}

func (s *local) restore(g system, from *vmm.State) error {
	st, err := from.Memory.Stat()
	if err != nil {
		return err
	}
	return g.(restorer).load(io.NewSectionReader(from.Memory, 0, st.Size()), from.Device)
}
