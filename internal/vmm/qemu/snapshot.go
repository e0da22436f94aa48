package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/qemu/qmp"
)

// A machine that boots has a file of its own as its memory, mapped shared. Then
// a migration with x-ignore-shared is the state of the devices alone, half a
// megabyte, and the memory is a copy of the file.
//
// A machine that was restored has the file of the snapshot as its memory, mapped
// privately: what it has not written to, it shares with all others. Its file is
// not its memory, so a migration would send all of that, which takes as long as
// reading and comparing it. Instead the pages that it has written to are copied
// over a copy of the file (supervise.CopyPrivate), and the devices are written
// by the command that Xen uses, which leaves the memory out.
//
// A machine with a screen is not such a clone: the adapter's memory, which it draws
// in, is one of those below. So are the variables of UEFI. Such a machine gets a copy of
// the memory as a file of its own.
//
// What that command leaves out too are the small memories that belong to
// devices, such as the firmware's. Nobody writes to them after the firmware has
// run, so they are taken from the migration of the machine that booted: what is
// in front of the devices there is kept, and put in front of them again.

// saved is what a machine can be saved from, and was restored from.
type saved struct {
	memory  *os.File
	restore *os.File // what QEMU restores its devices from, and then closes; nil: it boots
	devices *os.File // what it writes them to
	prefix  []byte   // what comes in front of the devices; nil: not known yet

	restoreFD, devicesFD int // in QEMU
}

func (s saved) Close() error {
	return errors.Join(s.memory.Close(), s.restore.Close(), s.devices.Close())
}

// newSaved is for a machine with such a memory. Where it shares, it has the file that it
// is restored from as its memory.
func newSaved(c vmm.Config, mem memory) (s saved, err error) {
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.devices, err = vmm.MemoryFile("attest-devices"); err != nil {
		return s, err
	}
	if c.Restore == nil {
		if s.memory, err = vmm.MemoryFile("attest-memory"); err != nil {
			return s, err
		}
		if err = s.memory.Truncate(mem.size); err != nil {
			err = fmt.Errorf("a memory of %d MiB: %w", mem.size>>20, err)
		}
		return s, err
	}
	var devices []byte
	if s.prefix, devices, err = splitState(c.Restore.Device); err != nil {
		return s, err
	}
	if st, err := c.Restore.Memory.Stat(); err != nil {
		return s, err
	} else if st.Size() != mem.size {
		return s, fmt.Errorf("the saved memory has %d bytes, and the machine has %d", st.Size(), mem.size)
	}
	if s.restore, err = vmm.MemoryFile("attest-restore"); err != nil {
		return s, err
	}
	if _, err = s.restore.WriteAt(s.prefix, 0); err != nil {
		return s, err
	}
	if _, err = s.restore.WriteAt(devices, int64(len(s.prefix))); err != nil {
		return s, err
	}
	if !mem.shared {
		s.prefix = nil
		if s.memory, err = vmm.MemoryFile("attest-memory"); err == nil {
			err = vmm.CopySparse(s.memory, c.Restore.Memory)
		}
		return s, err
	}
	if mem.readOnly {
		s.memory, err = vmm.ReadOnly(c.Restore.Memory)
		return s, err
	}
	fd, err := unix.FcntlInt(c.Restore.Memory.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return s, err
	}
	s.memory = os.NewFile(uintptr(fd), c.Restore.Memory.Name())
	return s, nil
}

// shares reports whether the machine shares the memory that it goes on from.
func shares(c vmm.Config, hw *vmm.Hardware) bool {
	return c.Restore != nil && !hw.Display && hw.UEFI == nil
}

// load restores a QEMU that was started with -incoming defer.
func (m *machine) load(ctx context.Context) error {
	return m.migrate(ctx, "migrate-incoming", fmt.Sprintf("fd:%d", m.saved.restoreFD))
}

// migrate runs a migration to its end.
func (m *machine) migrate(ctx context.Context, command, uri string) error {
	ended := make(chan string, 1)
	defer m.monitor.Subscribe(func(e qmp.Event) {
		var data struct{ Status string }
		if e.Name == "MIGRATION" && json.Unmarshal(e.Data, &data) == nil && (data.Status == "completed" || data.Status == "failed") {
			select {
			case ended <- data.Status:
			default:
			}
		}
	})()
	on := func(name string) map[string]any { return map[string]any{"capability": name, "state": true} }
	err := m.monitor.Do(ctx, "migrate-set-capabilities", map[string]any{"capabilities": []any{on("events"), on("x-ignore-shared")}}, nil)
	if err == nil {
		err = m.monitor.Do(ctx, command, map[string]string{"uri": uri}, nil)
	}
	if err != nil {
		return err
	}
	select {
	case status := <-ended:
		if status == "completed" {
			return nil
		}
		var info struct {
			Desc string `json:"error-desc"`
		}
		m.monitor.Do(ctx, "query-migrate", nil, &info)
		return fmt.Errorf("%s: %s", command, strings.TrimSpace("failed "+info.Desc))
	case <-m.monitor.Done(): // a QEMU that cannot restore what it gets ends
		return fmt.Errorf("%s: %w", command, m.monitor.Err())
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", command, context.Cause(ctx))
	}
}

// Save saves the paused machine.
func (m *machine) Save(ctx context.Context, memory *os.File) (device []byte, err error) {
	err = vmm.CopySparse(memory, m.saved.memory)
	if err == nil && m.saved.prefix != nil {
		err = m.process.CopyPrivate(ctx, m.saved.memory, memory)
	}
	if err == nil {
		device, err = m.saveDevices(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: save: %w", m.name, err)
	}
	return device, nil
}

func (m *machine) saveDevices(ctx context.Context) ([]byte, error) {
	err := m.monitor.Do(ctx, "xen-save-devices-state", map[string]any{"filename": fmt.Sprintf("/proc/self/fd/%d", m.saved.devicesFD), "live": false}, nil)
	if err != nil {
		return nil, err
	}
	devices, err := m.takeState()
	if err != nil {
		return nil, err
	}
	if len(devices) < streamHeader+sectionHeader {
		return nil, fmt.Errorf("QEMU wrote only %d bytes of its devices", len(devices))
	}
	devices = devices[streamHeader:]
	prefix := m.saved.prefix
	if prefix == nil {
		stream, err := m.migrateOut(ctx)
		if err != nil {
			return nil, err
		}
		if prefix, err = beforeDevices(stream, devices); err != nil {
			return nil, err
		}
	}
	return joinState(prefix, devices), nil
}

// takeState reads what QEMU has written.
func (m *machine) takeState() ([]byte, error) {
	st, err := m.saved.devices.Stat()
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(m.saved.devices, 0, st.Size()))
}

// migrateOut is the stream of a migration that leaves out the memory, which is shared.
func (m *machine) migrateOut(ctx context.Context) ([]byte, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	err = m.monitor.GetFD(ctx, "state", w)
	w.Close()
	if err != nil {
		return nil, err
	}
	var stream bytes.Buffer
	var readErr error
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, readErr = stream.ReadFrom(r)
	}()
	if err := m.migrate(ctx, "migrate", "fd:state"); err != nil {
		return nil, err
	}
	select {
	case <-read:
		return stream.Bytes(), readErr
	case <-ctx.Done():
		r.Close()
		<-read
		return nil, context.Cause(ctx)
	}
}

// QEMU's migration stream (docs/devel/migration.rst): magic and version, and
// sections; one of a device begins with a byte 4, its number, and its name after
// the length of that.
const (
	streamHeader  = 8
	sectionFull   = 4
	sectionHeader = 1 + 4 + 1
)

// beforeDevices is the part of a stream that comes before the first device.
func beforeDevices(stream, devices []byte) ([]byte, error) {
	if len(devices) < sectionHeader || devices[0] != sectionFull {
		return nil, fmt.Errorf("QEMU's state of devices begins with %q", devices[:min(len(devices), sectionHeader)])
	}
	first := devices[:min(len(devices), sectionHeader+int(devices[5]))]
	i := bytes.Index(stream, first)
	if i < 0 || i != bytes.LastIndex(stream, first) {
		return nil, fmt.Errorf("no device state found in a migration of %d bytes", len(stream))
	}
	return bytes.Clone(stream[:i]), nil
}

// joinState and splitState are the format of vmm.State.Device: the length of
// what comes before the devices, that, and the devices.
func joinState(prefix, devices []byte) []byte {
	return bytes.Join([][]byte{binary.BigEndian.AppendUint32(nil, uint32(len(prefix))), prefix, devices}, nil)
}

func splitState(state []byte) (prefix, devices []byte, err error) {
	if len(state) < 4 || uint64(binary.BigEndian.Uint32(state))+4 > uint64(len(state)) {
		return nil, nil, errors.New("the saved device state is invalid")
	}
	n := binary.BigEndian.Uint32(state)
	return state[4 : 4+n], state[4+n:], nil
}

// Fingerprint is the QEMU and its command line, without what differs from one
// machine to another of the same kind.
func (b *backend) Fingerprint(host vmm.Host, config vmm.Config) (string, error) {
	if command, ok := config.Boot.(*vmm.Command); ok {
		// What that starts is known when it runs, and compared then (scriptState).
		files := namedFiles([]string{command.Line}, config.Dir)
		files = append(files, readFiles(files, config.Dir)...)
		return strings.Join(append(stamps(files), command.Line, vmm.Processor()), "\n"), nil
	}
	hw := *config.Boot.(*vmm.Hardware)
	qemu, err := b.find()
	if err != nil {
		return "", err
	}
	st, err := os.Stat(qemu.path)
	if err != nil {
		return "", err
	}
	config.Name, config.AllowReboot, config.Restore, config.Paused = "", false, nil, false
	disks, nics := hw.Disks, config.NICs
	hw.Disks, config.NICs = nil, nil
	for _, d := range disks {
		hw.Disks = append(hw.Disks, vmm.Disk{Serial: d.Serial, Format: "raw", ReadOnly: d.ReadOnly})
	}
	slots := hw.SlotDisks
	hw.SlotDisks = nil
	for _, d := range slots {
		hw.SlotDisks = append(hw.SlotDisks, vmm.SlotDisk{Disk: vmm.Disk{Serial: d.Serial, Format: "raw", ReadOnly: d.ReadOnly}, Slot: d.Slot, Bus: d.Bus, Shared: d.Shared})
	}
	for _, n := range nics {
		config.NICs = append(config.NICs, vmm.NIC{ID: n.ID, Model: n.Model})
	}
	var firmware []string
	if hw.UEFI != nil {
		firmware = stamps([]string{hw.UEFI.Code})
		hw.UEFI = &vmm.UEFI{Code: hw.UEFI.Code}
	}
	h := invocation{config: config, hw: &hw, accel: host.Accel, nics: make([]*os.File, len(nics)), door: make([]*os.File, 2)}
	c := h.command()
	// The clock's frequency is measured anew by each process, and is never twice
	// the same; a percent of difference would be another processor.
	line := clockFrequency.ReplaceAllString(strings.Join(c.args, "\n"), "${1}xxxx")
	return strings.Join(append([]string{qemu.path, qemu.version, fmt.Sprint(st.Size(), st.ModTime().UnixNano()), vmm.Processor(), line}, firmware...), "\n"), nil
}

var clockFrequency = regexp.MustCompile(`(tsc_early_khz=\d+)\d{4}`)
