package attest

import (
	"context"
	"fmt"
	"os"

	"github.com/attest-vm/attest/internal/vmm"
)

// mocked is a machine without a VMM (docs/mock.md). Who it is is told to it as to
// attest's own machines; it has no image, and what it writes it keeps itself.
type mocked struct{ own }

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
