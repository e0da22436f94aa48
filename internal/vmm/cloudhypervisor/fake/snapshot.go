package fake

import (
	"encoding/json"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/vmm/microvm/fake"
)

// A snapshot is state.json: components within components, each with a state that is
// JSON in a string.
type snapshot struct {
	Snapshots map[string]snapshot `json:"snapshots"`
	Data      *snapshotData       `json:"snapshot_data"`
}

type snapshotData struct {
	State string `json:"state"`
}

type memoryState struct {
	Ranges struct {
		Data []memoryRange `json:"data"`
	} `json:"memory_ranges"`
	RAM uint64 `json:"boot_ram"`
}

type memoryRange struct {
	GPA    uint64 `json:"gpa"`
	Length uint64 `json:"length"`
}

func directory(url string) (string, error) {
	path := strings.TrimPrefix(url, "file://")
	if st, err := os.Stat(path); err != nil || !st.IsDir() || path == url {
		return "", &fs.PathError{Op: "open", Path: path, Err: os.ErrNotExist}
	}
	return path, nil
}

// writeNew makes a file that must not exist.
func writeNew(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(content)
	return err
}

// snapshot writes a paused machine into a directory.
func (m *machine) snapshot(body []byte) error {
	failed := func(chain ...string) error {
		return m.fail(500, append([]string{"The VM could not be snapshotted", "Cannot take a snapshot"}, chain...)...)
	}
	var to struct {
		URL string `json:"destination_url"`
	}
	if err := json.Unmarshal(body, &to); err != nil {
		return &fault{400, []string{"Failed to deserialize JSON", err.Error()}}
	}
	if m.state != "Paused" {
		return failed("Trying to snapshot while VM is running")
	}
	dir, err := directory(to.URL)
	if err != nil {
		return failed("Destination is not a directory")
	}
	state := memoryState{RAM: uint64(m.config.Memory.Zones[0].Size)}
	var st unix.Stat_t
	persisted := m.shared != nil && unix.Fstat(int(m.shared.Fd()), &st) == nil && st.Nlink > 0
	if !persisted {
		state.Ranges.Data = []memoryRange{{0, state.RAM}}
		memory := m.memory
		if m.shared != nil {
			memory = make([]byte, state.RAM)
			m.shared.ReadAt(memory, 0)
		}
		if err := writeNew(filepath.Join(dir, "memory-ranges"), memory); err != nil {
			return failed("Error creating memory snapshot file", err.Error())
		}
	}
	text := func(v any) *snapshotData {
		b, _ := json.Marshal(v)
		return &snapshotData{string(b)}
	}
	b, err := json.Marshal(snapshot{Data: text(struct{}{}), Snapshots: map[string]snapshot{
		"memory-manager": {Data: text(state)}, "cpu-manager": {Data: text(m.guest.Who())},
	}})
	if err == nil {
		err = writeNew(filepath.Join(dir, "config.json"), m.config.raw)
	}
	if err == nil {
		err = writeNew(filepath.Join(dir, "state.json"), b)
	}
	if err != nil {
		return failed("Error creating VM config snapshot file", err.Error())
	}
	return nil
}

// restore goes on from what is in a directory. The machine stands still.
func (m *machine) restore(body []byte) error {
	failed := func(chain ...string) error {
		return m.fail(500, append([]string{"The VM could not be restored", "Cannot restore VM"}, chain...)...)
	}
	var from struct {
		URL string `json:"source_url"`
	}
	if err := json.Unmarshal(body, &from); err != nil {
		return &fault{400, []string{"Failed to deserialize JSON", err.Error()}}
	}
	if m.config != nil {
		return m.fail(500, "The VM could not be restored", "VM is already created")
	}
	dir, err := directory(from.URL)
	if err != nil {
		return failed("Failed to send migratable component snapshot", "Destination is not a directory")
	}
	c, s, who, memory := &config{}, snapshot{}, fake.Who{}, memoryState{}
	if c.raw, err = os.ReadFile(filepath.Join(dir, "config.json")); err == nil {
		err = json.Unmarshal(c.raw, c)
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(filepath.Join(dir, "state.json"))
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	for name, into := range map[string]any{"cpu-manager": &who, "memory-manager": &memory} {
		if d := s.Snapshots[name].Data; err == nil && d != nil {
			err = json.Unmarshal([]byte(d.State), into)
		}
	}
	if err != nil || len(c.Memory.Zones) == 0 || who.Instance == "" {
		return failed("Error deserialising")
	}
	if err := m.open(c); err != nil {
		return err
	}
	if err := m.remember(dir, c.Memory.Zones[0], memory, who); err != nil {
		m.config, m.state = nil, ""
		return err
	}
	if err := m.devices(); err != nil {
		m.config, m.state = nil, ""
		return failed(err.Error())
	}
	m.say("vm", "restoring", nil)
	m.state, m.guest = "Paused", fake.NewGuest(who, true, m.console, m.end)
	m.line.Connect(m.guest)
	go m.console.accept(m.serial, func(c net.Conn) { m.guest.Listen(c) })
	m.say("vm", "restored", nil)
	return nil
}

// remember maps the memory, and reads into it what was saved apart from it.
func (m *machine) remember(dir string, z zone, s memoryState, who fake.Who) error {
	failed := func(text string) error {
		return m.fail(500, "The VM could not be restored", "Cannot restore VM", "Error from memory manager", text)
	}
	flags := os.O_RDONLY
	if z.Shared {
		flags = os.O_RDWR
	}
	f, err := os.OpenFile(z.File, flags, 0)
	if err != nil {
		return failed("Failed to open shared file: " + err.Error())
	}
	m.memory = make([]byte, z.Size)
	if _, err := f.ReadAt(m.memory, 0); err != nil {
		return failed("Failed to map: " + err.Error())
	}
	if z.Shared {
		m.shared = f
	} else {
		f.Close()
	}
	if len(s.Ranges.Data) > 0 {
		saved, err := os.ReadFile(filepath.Join(dir, "memory-ranges"))
		if err != nil {
			return failed("Failed to open the memory snapshot: " + err.Error())
		}
		copy(m.memory, saved)
	}
	if got := string(m.memory[1<<20:][:len(who.Instance)]); got != who.Instance {
		return failed("it is another guest's")
	}
	return nil
}
