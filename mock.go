package attest

import (
	"context"
	"fmt"
	"os"

	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/mock"
)

// mocked is a machine without a VMM (docs/mock.md). Who it is is told to it as to
// attest's own machines; it has no image, and what it writes it keeps itself.
type mocked struct{ own }

// mocks reports whether a backend of this name has mock machines, and no others.
func mocks(backend string) bool {
	b, _ := vmm.Lookup(backend)
	_, ok := b.(vmm.Mocker)
	return ok
}

// normalizeMock is normalize for a machine of a mock backend. What other backends
// would boot is left alone, so that a test file can be tried without them.
func (m *MachineConfig) normalizeMock(bad func(string, ...any) error) error {
	if m.StartCommand != "" {
		return &UnsupportedError{Machine: m.Name, Operation: "start_command", Backend: m.Backend, Reason: "a mock starts no VMM", Can: []string{"qemu"}}
	}
	if len(m.MockScript) > 0 {
		if _, err := mock.ParseScript(m.MockScript); err != nil {
			return bad("script: %v", err)
		}
	}
	return nil
}

func (k *mocked) plan(context.Context) (plan, error) {
	m := k.m
	config := vmm.Config{Name: m.Name(), Dir: m.disks(), Boot: &vmm.Mock{Memory: m.config.Memory, Script: m.config.MockScript}, NICs: m.cards()}
	return plan{
		config: config, planned: config, agent: "mock", title: m.Name() + " (mock)",
		fits: map[string]string{"count of network cards": fmt.Sprint(len(m.address.Interfaces))},
	}, nil
}

func (k *mocked) attach(_ context.Context, _ plan, c *vmm.Config, plugs *plugs) error {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return &InfraError{k.m.Name(), "create the machine's directory", err}
	}
	c.NICs = plugs.all()
	return nil
}

// keep has nothing to copy: files are part of what the backend saves.
func (k *mocked) keep(func(int) string) ([]vmm.Backing, error) { return nil, nil }

func (k *mocked) adopt([]vmm.Backing) error { return nil }
