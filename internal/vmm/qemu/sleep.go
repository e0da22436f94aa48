package qemu

import (
	"context"
	"encoding/json"
	"time"

	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/qemu/qmp"
)

// A guest that is suspended to memory (ACPI S3) has told QEMU. One that is suspended to idle
// just has nothing to do, and QEMU says that it runs. But its kernel has suspended all
// devices, and so has reset the virtio ones: ports that it had open are closed, and the
// device that they belong to has no driver, without that the machine was reset.

const (
	serialBus = "attest"       // the virtio serial device of the ports
	agentPort = "attest-agent" // is open as long as an agent runs in the guest
	shellPort = "attest-shell" // is open as long as the guest's kernel has it as a console
)

// ports is what is known of these ports.
type ports struct {
	agent, shell time.Time // when the guest closed it; zero: it is open, or never was
	reset        time.Time // when the machine was reset last
}

// notePort takes an event that may be about a port. QEMU can hold one back for a second
// (VSERPORT_CHANGE); its time is when it was.
func (m *machine) notePort(e qmp.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch e.Name {
	case "RESET":
		m.ports.reset = e.Time
	case "VSERPORT_CHANGE": // QEMU qapi/char.json
		var data struct {
			ID   string
			Open bool
		}
		if json.Unmarshal(e.Data, &data) != nil {
			return
		}
		var closed time.Time
		if !data.Open {
			closed = e.Time
		}
		switch data.ID {
		case agentPort:
			m.ports.agent = closed
		case shellPort:
			m.ports.shell = closed
		}
	}
}

// Dozing is since when a port is closed. A guest that has told QEMU that it sleeps has closed
// them before.
func (m *machine) Dozing() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, closed := range []time.Time{m.ports.agent, m.ports.shell} {
		if closed.After(m.ports.reset) {
			return closed
		}
	}
	return time.Time{}
}

// asleep reports whether the guest's kernel has suspended its devices.
func (m *machine) asleep(ctx context.Context) (bool, error) {
	if m.Dozing().IsZero() {
		return false, nil
	}
	var device struct {
		Status struct {
			Statuses []string `json:"statuses"`
		} `json:"status"`
	}
	err := m.ask(ctx, "x-query-virtio-status", map[string]string{"path": "/machine/peripheral/" + serialBus + "/virtio-backend"}, &device)
	return err == nil && len(device.Status.Statuses) == 0, err
}

// runState is what QEMU says of the machine (qapi/run-state.json).
func (m *machine) runState(ctx context.Context) (string, error) {
	var s struct {
		Status string `json:"status"`
	}
	err := m.ask(ctx, "query-status", nil, &s)
	return s.Status, err
}

// State is QEMU's run state, if it is not of a guest that sleeps.
func (m *machine) State(ctx context.Context) (string, error) {
	state, err := m.runState(ctx)
	if err != nil {
		return "", err
	}
	if state != "running" {
		return state, nil // vmm.Suspended is one
	}
	if asleep, err := m.asleep(ctx); !asleep {
		return "", err
	}
	return vmm.Suspended, nil
}

// wakeKey is one that does nothing to a guest that is awake. Linux lets the keyboard wake a
// machine that suspends to idle, unless somebody in the guest has turned that off.
const wakeKey = "wake"

// Wake wakes the guest by QEMU if it has told QEMU that it sleeps, and otherwise by a key.
func (m *machine) Wake(ctx context.Context) error {
	state, err := m.runState(ctx)
	if err == nil && state == vmm.Suspended {
		return m.do(ctx, "system_wakeup", nil)
	}
	if err == nil {
		err = m.Keys(ctx, []string{wakeKey}, true)
	}
	if err == nil {
		err = m.Keys(ctx, []string{wakeKey}, false)
	}
	return err
}
