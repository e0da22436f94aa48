package fake

import (
	"encoding/json"
	"os"

	"github.com/attest-vm/attest/internal/vmm/microvm/fake"
)

// create writes the state and the memory, in which the guest's identity is.
func (m *machine) create(body []byte) error {
	var c snapshotCreate
	if err := m.decode(body, &c); err != nil {
		return err
	}
	switch m.state {
	case "Not started":
		return faultf("The requested operation is not supported before starting the microVM.")
	case "Running":
		return faultf("Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable while running")
	}
	m.Who, m.Format = m.guest.Who(), m.format()
	state, err := json.Marshal(m.saved)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.State, state, 0o600); err != nil {
		return faultf("Create snapshot error: Cannot open the snapshot file: %v", err)
	}
	// All of it, whatever is in it.
	memory := make([]byte, *m.Machine.Memory<<20)
	copy(memory[1<<20:], m.Who.Instance)
	f, err := os.OpenFile(c.Memory, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return faultf("Create snapshot error: Cannot open the memory file: %v", err)
	}
	defer f.Close()
	if _, err := f.Write(memory); err != nil {
		return faultf("Create snapshot error: Cannot dump memory: %v", err)
	}
	m.fresh = true
	return nil
}

// load goes on from a state. What goes wrong once that has begun ends the process.
func (m *machine) load(body []byte) error {
	var l snapshotLoad
	if err := m.decode(body, &l); err != nil {
		return err
	}
	if m.state != "Not started" {
		return faultf("The requested operation is not supported after starting the microVM.")
	}
	if m.Boot.Kernel != "" || len(m.Drives) > 0 || m.Vsock != nil || m.Machine.Memory != nil {
		return faultf("Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.")
	}
	fatal := func(text string) error {
		return &fault{"Load snapshot error: Failed to restore from snapshot: " + text, true}
	}
	b, err := os.ReadFile(l.State)
	if err != nil {
		return fatal("Failed to get snapshot state from file: Failed to open snapshot file: No such file or directory (os error 2)")
	}
	var s saved
	if json.Unmarshal(b, &s) != nil {
		return fatal("Failed to get snapshot state from file: Failed to load snapshot state from file: CRC64 validation failed")
	}
	switch {
	case s.Format == "":
		return fatal("Failed to get snapshot state from file: Failed to load snapshot state from file: Magic value does not match arch: 0")
	case s.Format != m.format():
		return fatal("Failed to get snapshot state from file: Failed to load snapshot state from file: Invalid data version: " + s.Format)
	}
	path := l.Memory
	if l.Backend != nil {
		path = l.Backend.Path
	}
	f, err := os.Open(path)
	if err != nil {
		return fatal("Failed to load guest memory: Error creating guest memory from file: " + err.Error())
	}
	defer f.Close()
	who := make([]byte, len(s.Who.Instance))
	if _, err := f.ReadAt(who, 1<<20); err != nil || string(who) != s.Who.Instance {
		return fatal("Failed to load guest memory: it is another guest's")
	}
	if s.Machine.HugePages == "2M" && (l.Backend == nil || l.Backend.Type == "File") {
		return fatal("Failed to load guest memory: Error creating guest memory from file: Cannot restore hugetlbfs backed snapshot by mapping the memory file. Please use uffd.")
	}
	for _, d := range s.Drives {
		if err := d.open(); err != nil {
			return fatal("Failed to build microVM from snapshot: Failed to restore devices: Error restoring MMIO devices: Block: " + err.Error())
		}
	}
	for _, p := range s.Pmem {
		if err := p.drive().open(); err != nil {
			return fatal("Failed to build microVM from snapshot: Failed to restore devices: Error restoring MMIO devices: Pmem: " + err.Error())
		}
	}
	m.saved = s
	m.NICs = nil
	for _, n := range s.NICs {
		if err := m.plug(n); err != nil {
			return fatal("Failed to build microVM from snapshot: Failed to restore devices: Error restoring MMIO devices: Net: " + err.Error())
		}
	}
	if err := m.listen(); err != nil {
		return fatal("Failed to build microVM from snapshot: Failed to restore devices: " + err.Error())
	}
	m.state, m.fresh = "Paused", true
	m.guest = fake.NewGuest(s.Who, true, os.Stdout, end)
	m.line.Connect(m.guest)
	if l.Resume {
		m.state = "Running"
		m.resume()
	}
	return nil
}
