package attest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/attest-vm/attest/internal/cache"
	"github.com/attest-vm/attest/internal/console"
	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/snapshot"
	"github.com/attest-vm/attest/internal/vmm"
)

// savedLab is the file lab.json in the directory of a saved lab. Each machine
// has a directory of its name beside it.
type savedLab struct {
	Format   int            `json:"format"`
	Name     string         `json:"name"`
	Seed     int64          `json:"seed"`
	Machines []savedMachine `json:"machines"`

	Networks map[int]NetworkConfig `json:"networks,omitempty"`
}

const (
	labFile   = "lab.json"
	labFormat = 1
)

// savedMachine is a MachineConfig whose image can be read again.
type savedMachine struct {
	MachineConfig
	Image   image.Spec           // in place of the one above
	Files   map[string]savedFile // likewise: a file may have any bytes
	Created bool                 // by CreateMachine
	Started bool                 // it has a directory
}

type savedFile struct {
	Content []byte `json:",omitempty"`
	Path    string `json:",omitempty"`
	Mode    uint32 `json:",omitempty"`
}

// savedState is what a machineState has beyond files.
type savedState struct {
	ID          string     `json:"machine_id"`
	Agent       string     `json:"agent,omitempty"`
	AllowReboot bool       `json:"allow_reboot,omitempty"`
	Down        string     `json:"down,omitempty"` // why it is off, if nobody asked
	MACs        []string   `json:"macs,omitempty"`
	Jobs        []jobState `json:"jobs,omitempty"`
	Booted      bool       `json:"booted,omitempty"` // of a template: its boot was over
	Laid        laid       `json:"laid,omitempty"`
}

// Save writes the lab as it is now to a directory, which must not exist or be
// empty, for OpenLab; see Snapshot.Save.
func (l *Lab) Save(ctx context.Context, dir string) error {
	return step(ctx, "", "save", dir, func(ctx context.Context) error {
		s, err := l.Snapshot(ctx)
		if err != nil {
			return err
		}
		return errors.Join(s.Save(ctx, dir), s.Close())
	})
}

// Save writes the snapshot to a directory, which must not exist or be empty, for
// Host.OpenSnapshot of this or another process, or of another host of the same
// kind: the same version of the VMM, and the same processor. The images of the
// machines are not in it; they are built again where they are missing, and have
// to be the same. Nor are faults of the network.
//
// The directory of one machine in it is what MachineConfig.Snapshot takes.
func (s *Snapshot) Save(ctx context.Context, dir string) error {
	return outward(s.save(ctx, dir))
}

func (s *Snapshot) save(ctx context.Context, dir string) (err error) {
	if names, err := os.ReadDir(dir); err == nil && len(names) > 0 {
		return &ConfigError{"directory " + dir, "it is not empty; name another, or empty it"}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return &InfraError{Action: "save the lab", Err: err}
	}
	// One lab of it, which never starts anything, knows what its machines fit.
	l, err := newLab(ctx, s.host, s.config)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, l.Close())
		if err != nil {
			removeContents(dir)
		}
		if cache.NoSpace(err) {
			err = &InfraError{Action: "save the lab: no space in " + dir, Err: err}
		}
	}()
	lab := savedLab{Format: labFormat, Name: s.config.Name, Seed: s.config.Seed, Networks: s.config.Networks}
	for i, m := range l.Machines() {
		saved := savedMachine{MachineConfig: m.config, Created: i >= len(s.config.Machines)}
		if m.config.Image != nil {
			saved.Image = image.SpecOf(m.config.Image.spec())
		}
		for path, f := range m.config.Files {
			if saved.Files == nil {
				saved.Files = map[string]savedFile{}
			}
			saved.Files[path] = savedFile{[]byte(f.Content), f.Path, f.Mode}
		}
		if state := s.machines[m.Name()]; state != nil && state.booted {
			saved.Started = true
			if err := m.save(ctx, state, filepath.Join(dir, m.Name())); err != nil {
				return err
			}
		}
		lab.Machines = append(lab.Machines, saved)
	}
	data, err := json.MarshalIndent(lab, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, labFile), append(data, '\n'), 0o644) // the last: without it there is no lab
}

func removeContents(dir string) {
	names, _ := os.ReadDir(dir)
	for _, n := range names {
		os.RemoveAll(filepath.Join(dir, n.Name()))
	}
}

// save writes one machine's state.
func (m *Machine) save(ctx context.Context, s *machineState, dir string) error {
	p, err := m.plan(ctx)
	if err != nil {
		return err
	}
	fits, err := m.fits(p)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	extra := savedState{ID: s.id, Agent: s.agent, AllowReboot: s.allowReboot, MACs: s.macs, Jobs: s.jobs, Laid: s.laid}
	if down := (*DownError)(nil); errors.As(s.down, &down) {
		extra.Down = down.Reason
	}
	data, err := json.Marshal(extra)
	if err != nil {
		return err
	}
	d, err := snapshot.NewDraft(dir, snapshot.Meta{Title: p.title, Fits: fits, Extra: data})
	if err != nil {
		return err
	}
	defer d.Memory.Close()
	for i, b := range s.disk {
		if err := copyFile(d.DiskPath(i), b.Path); err != nil {
			return err
		}
		d.Formats = append(d.Formats, b.Format)
	}
	var device []byte
	if s.state != nil {
		device = s.state.Device
		if err := vmm.CopySparse(d.Memory, s.state.Memory); err != nil {
			return err
		}
	}
	return d.Finish(device, s.console.SinceBoot())
}

// OpenLab goes on from a lab that was saved: OpenSnapshot and a Fork of it.
func (h *Host) OpenLab(ctx context.Context, dir string, config LabConfig) (*Lab, error) {
	s, err := h.OpenSnapshot(ctx, dir, config)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return s.Fork(ctx)
}

// sameBackend refuses a saved machine of another backend than is asked for.
func sameBackend(dir string, saved MachineConfig, given []MachineConfig) error {
	i := slices.IndexFunc(given, func(m MachineConfig) bool { return m.Name == saved.Name })
	if i < 0 || given[i].Backend == "" || given[i].Backend == "auto" {
		return nil
	}
	was := cmp.Or(saved.Backend, "auto")
	if was == "auto" {
		was = defaultBackend
	}
	if was != given[i].Backend {
		return &snapshot.MismatchError{Dir: filepath.Join(dir, saved.Name), What: "backend", Saved: was, Now: given[i].Backend}
	}
	return nil
}

// OpenSnapshot opens a lab that was saved. Of config the directories count, the name
// if there is one, and the Files and Mount of machines, by their names, whose Backend has
// to be the saved one's unless it is empty or "auto"; otherwise the
// machines are those that were saved, with the files that they had then. The directory
// is not changed, and has to stay as long as the snapshot is open. What is damaged
// or does not fit this host is an error that says what it is: a
// *SnapshotDamagedError or a *SnapshotMismatchError, the latter when it is forked.
func (h *Host) OpenSnapshot(ctx context.Context, dir string, config LabConfig) (*Snapshot, error) {
	s, err := h.openSnapshot(dir, config)
	return s, outward(err)
}

func (h *Host) openSnapshot(dir string, config LabConfig) (_ *Snapshot, err error) {
	data, err := os.ReadFile(filepath.Join(dir, labFile))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, &ConfigError{"directory " + dir, "there is no saved lab in it (no " + labFile + ")"}
	}
	if err != nil {
		return nil, &InfraError{Action: "open the saved lab", Err: err}
	}
	var saved savedLab
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&saved); err != nil {
		return nil, &snapshot.DamagedError{Dir: dir, Reason: labFile + ": " + err.Error()}
	}
	if saved.Format != labFormat {
		return nil, &snapshot.MismatchError{Dir: dir, What: "version of attest", Saved: fmt.Sprint("format ", saved.Format), Now: fmt.Sprint("format ", labFormat)}
	}
	if config.Name == "" {
		config.Name = saved.Name
	}
	given := config.Machines
	config.Seed, config.Machines, config.Networks = saved.Seed, nil, saved.Networks
	s := &Snapshot{host: h, machines: map[string]*machineState{}}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.dir, err = os.MkdirTemp(h.scratch(), "s"); err != nil {
		return nil, &InfraError{Action: "create a directory for a snapshot", Err: err}
	}
	for _, m := range saved.Machines {
		if !machineName.MatchString(m.Name) { // its directory is called so
			return nil, &snapshot.DamagedError{Dir: dir, Reason: fmt.Sprintf("%s: %q is not a machine name", labFile, m.Name)}
		}
		if s.machines[m.Name] != nil {
			return nil, &snapshot.DamagedError{Dir: dir, Reason: fmt.Sprintf("%s: there are two machines %q", labFile, m.Name)}
		}
		if err := sameBackend(dir, m.MachineConfig, given); err != nil {
			return nil, err
		}
		if m.StartCommand == "" {
			m.MachineConfig.Image = imageOf(m.Image)
		}
		for path, f := range m.Files {
			if m.MachineConfig.Files == nil {
				m.MachineConfig.Files = map[string]File{}
			}
			m.MachineConfig.Files[path] = File{string(f.Content), f.Path, f.Mode}
		}
		if m.Created {
			config.created = append(config.created, m.MachineConfig)
		} else {
			config.Machines = append(config.Machines, m.MachineConfig)
		}
		state := &machineState{}
		if m.Started {
			if state, err = openState(filepath.Join(dir, m.Name)); err != nil {
				return nil, err
			}
		}
		s.machines[m.Name] = state
	}
	s.config = config
	s.asSaved(given)
	return s, s.refile(given)
}

// checkSnapshot looks at the snapshot of the machine's configuration: whether it
// is there, and fits. What is in it is read when the machine starts.
func (m *Machine) checkSnapshot(p plan) error {
	dir := m.config.Snapshot
	if dir == "" {
		return nil
	}
	reason := ""
	switch _, err := os.Stat(dir); {
	case errors.Is(err, os.ErrNotExist):
		reason = "there is no such directory"
	case err != nil:
		reason = err.Error()
	default:
		if _, err := os.Stat(filepath.Join(dir, labFile)); err == nil {
			reason = "a whole lab is saved there; name the directory of one of its machines in it"
		}
	}
	if reason != "" {
		return &ConfigError{fmt.Sprintf("machine %q", m.Name()), fmt.Sprintf("snapshot %s: %s", dir, reason)}
	}
	meta, err := snapshot.ReadMeta(dir)
	if err != nil {
		return err
	}
	now, err := m.fits(p)
	if err != nil {
		return err
	}
	return (&snapshot.Saved{Meta: meta, Dir: dir}).Check(now)
}

// openState opens one saved machine.
func openState(dir string) (*machineState, error) {
	saved, err := snapshot.Open(dir)
	if err != nil {
		return nil, err
	}
	var extra savedState
	if err := json.Unmarshal(saved.Extra, &extra); err != nil {
		return nil, errors.Join(&snapshot.DamagedError{Dir: dir, Reason: err.Error()}, saved.Close())
	}
	s := &machineState{
		booted: true, disk: saved.Disks, id: extra.ID, state: saved.State,
		agent: extra.Agent, allowReboot: extra.AllowReboot, macs: extra.MACs, jobs: extra.Jobs, laid: extra.Laid,
		console: console.StateOf(saved.Console), fits: saved.Check,
	}
	if extra.Down != "" {
		s.down = &DownError{Machine: filepath.Base(dir), Reason: extra.Down}
	}
	return s, nil
}
