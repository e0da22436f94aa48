package attest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/backdoor"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/wire"
)

// foreign is a machine that a foreign start command starts
// (docs/foreign.md). Its directory is where its disks are; who it is, and how its
// networks are configured, is in its guest.
type foreign struct{ m *Machine }

func (f *foreign) knowsHosts() bool { return false }

// startCommand is the command with the path of its program, if that is relative,
// below the directory of the test file.
func (m *Machine) startCommand() (string, error) {
	command := m.config.StartCommand
	program, rest, _ := strings.Cut(strings.TrimSpace(command), " ")
	if !strings.Contains(program, "/") || strings.ContainsAny(program, "'\"\\$`~*?[](){}<>|&;=\n") {
		return command, nil // the shell's to find
	}
	path, err := filepath.Abs(m.lab.sourcePath(program))
	if err != nil {
		return "", err
	}
	reason := ""
	switch st, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		reason = "no such file"
	case err != nil:
		reason = err.Error()
	case !st.Mode().IsRegular():
		reason = "not a regular file"
	case st.Mode()&0o111 == 0:
		reason = "it is not executable; chmod +x"
	}
	if reason != "" {
		return "", &ConfigError{fmt.Sprintf("machine %q: start_command", m.Name()), path + ": " + reason}
	}
	if program == path {
		return command, nil
	}
	return strings.TrimSpace(path + " " + rest), nil
}

func (f *foreign) plan(ctx context.Context) (plan, error) {
	m := f.m
	command := &vmm.Command{}
	p := plan{
		config: vmm.Config{Name: m.Name(), Dir: m.disks(), Boot: command, NICs: m.cards()},
		title:  fmt.Sprintf("%s (%s)", m.Name(), m.config.StartCommand),
		fits:   map[string]string{},
	}
	var err error
	if p.agent, err = m.doorAgent(ctx); err != nil {
		return p, err
	}
	command.Line, err = m.startCommand()
	p.planned = p.config
	return p, err
}

// doorAgent names the agent that a guest gets by its root shell.
func (m *Machine) doorAgent(ctx context.Context) (string, error) {
	policy, err := upgrade()
	if err != nil {
		return "", err
	}
	agent, err := m.lab.host.guestDigest(ctx)
	if policy == backdoor.Never {
		agent = backdoor.ShellDigest() // the guest's own shell
	}
	return agent, err
}

// attach makes what the start command finds: its directory, the one that it
// shares with the host, and the networks.
func (f *foreign) attach(_ context.Context, _ plan, c *vmm.Config, _ *plugs) error {
	m := f.m
	shared := filepath.Join(m.lab.scratch, sharedDir)
	if err := f.makeDirectories(shared); err != nil {
		return err
	}
	command := *c.Boot.(*vmm.Command)
	command.Env = []string{
		"TMPDIR=" + c.Dir,
		"USE_TMPDIR=1",
		"SHARED_DIR=" + shared,
		"NIX_DISK_IMAGE=" + filepath.Join(c.Dir, m.Name()+".qcow2"),
		"NIX_EFI_VARS=" + filepath.Join(c.Dir, m.Name()+"-efi-vars.fd"),
	}
	for _, n := range networksOf(m.lab.Machines()) {
		dir, err := m.vdeSocket(n)
		if err != nil {
			return err
		}
		command.Env = append(command.Env, fmt.Sprintf("QEMU_VDE_SOCKET_%d=%s", n, dir))
	}
	c.Boot = &command
	return nil
}

func (f *foreign) makeDirectories(shared string) error {
	for _, dir := range []string{f.m.disks(), shared} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return &InfraError{f.m.Name(), "create the machine's directory", err}
		}
	}
	return nil
}

// hasFiles reports whether somebody has put files into the machine's directory.
func (f *foreign) hasFiles() bool {
	entries, err := os.ReadDir(f.m.disks())
	return err == nil && len(entries) > 0
}

func (f *foreign) identity(r *run, _ bool) wire.Identity { return foreignIdentity(r) }

// foreignIdentity contains only what the guest lacks. The guest keeps its own identity, and one that has
// booted has the time that it was given.
func foreignIdentity(r *run) wire.Identity {
	id := renewal()
	if r.origin == nil {
		id.Time = time.Time{}
	}
	return id
}

// sharedDir is the directory that start commands share with the host, one for all
// machines of a lab as with the NixOS driver. No machine has this name.
const sharedDir = ".shared-xchg"

// UpgradeEnv says whether foreign guests get attest's agent: "never" has their root shell do
// everything, and with "always" a guest in which the agent cannot run has not booted. Otherwise
// the shell stands in for an agent that cannot run.
const UpgradeEnv = "ATTEST_UPGRADE"

// upgrade is what UpgradeEnv says.
func upgrade() (backdoor.Upgrade, error) {
	switch u := backdoor.Upgrade(os.Getenv(UpgradeEnv)); u {
	case backdoor.Auto, backdoor.Never, backdoor.Always:
		return u, nil
	case "auto":
		return backdoor.Auto, nil
	default:
		return u, &ConfigError{UpgradeEnv, fmt.Sprintf("%q: want auto, never or always", u)}
	}
}

// newDoor reaches the guest by the root shell that it offers, and puts the agent into it
// whenever it has booted.
func (r *run) newDoor(v vmm.Backdoor) *backdoor.Door {
	m := r.machine
	shell, upload := v.Backdoor()
	policy, _ := upgrade() // plan has checked it
	saved := ""
	if r.origin != nil {
		saved = r.origin.agent
	}
	place := ""
	if upload == nil {
		place = "port 1234 of its vsock, or that of vsock_port"
	}
	login := backdoor.Login{User: m.config.User, Password: m.config.Password, Patience: m.lab.host.scale(loginPatience), Refused: func(err error) { r.guest.Fail(err) }}
	if w, ok := vmm.As[vmm.ConsoleWriter](r.vm); ok {
		login.Type = w.WriteConsole
	}
	return backdoor.New(backdoor.Options{
		Login:   login,
		Machine: m.Name(), Shell: shell, Place: place, Upload: upload, Agent: r.vm.Dial, Binary: m.lab.host.guestPath, Upgrade: policy, Saved: saved,
		Answers: r.answers, Patience: m.lab.host.scale(shellPatience), Silent: func(err error) { r.guest.Fail(err) },
		Garbage: func(err error) { event.Warnf(m.lab.ctx, "%s: %v", m.Name(), err) },
		Installed: func(err error) {
			switch {
			case err == nil:
			case policy == backdoor.Always:
				r.guest.Fail(err)
			default:
				event.Warnf(m.lab.ctx, "%v; its root shell is used instead, which is slower (docs/foreign.md)", err)
			}
		},
	})
}

// loginPatience is how long a serial console is silent before attest tries something there
// again.
const loginPatience = 5 * time.Second

// shellPatience is how long a guest may say nothing that has come far enough for its root
// shell to answer.
const shellPatience = time.Minute

// tellDoor tells the door when the guest is reset: there is a login again.
func (r *run) tellDoor(events *vmm.EventLog) {
	for n := int64(0); ; {
		e, next, err := events.Next(context.Background(), n) // ends with the VMM
		if err != nil {
			return
		}
		if n = next; e.Name == "RESET" { // QEMU qapi/run-state.json
			r.door.Rebooted()
		}
	}
}

// answers reports whether the guest has an agent nevertheless: its shell was started
// again beside it.
func (r *run) answers() bool {
	if r.agentInstance() == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(r.machine.lab.ctx, r.machine.lab.host.scale(echoTimeout))
	defer cancel()
	return r.guest.Echo(ctx) == nil
}

const echoTimeout = 5 * time.Second

// closeDoor waits until nothing is left of it; the VMM is gone.
func (r *run) closeDoor() {
	if r.door != nil {
		r.door.Close()
	}
}

// standIn reports whether the guest's root shell stands in for the agent, and when it was heard last.
func (r *run) standIn() (heard time.Time, ok bool) {
	if r.door == nil {
		return heard, false
	}
	return r.door.StandIn()
}

// awaited says what a guest that has not answered was waited for.
func (r *run) awaited() string {
	if r.door == nil {
		return ""
	}
	step, said := r.door.State()
	if said == "" {
		return "; " + step + "; nothing has come on the shell's console"
	}
	return fmt.Sprintf("; %s; the last on the shell's console: %q", step, said)
}

// guestDigest names the agent that guests get.
func (h *Host) guestDigest(ctx context.Context) (string, error) {
	path, err := h.guestBinary(ctx)
	if err != nil {
		return "", err
	}
	h.digestOnce.Do(func() { h.digest, h.digestErr = fileDigest(path) })
	return h.digest, h.digestErr
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// The files of a foreign machine's directory are kept in a snapshot as its disks:
// each with its name, or where a link leads.
const (
	stateFile = "file:"
	stateLink = "link:"
)

// keep copies the files in the machine's directory. Sockets, which belong to
// processes, are not among them.
func (f *foreign) keep(to func(int) string) ([]vmm.Backing, error) {
	m := f.m
	var kept []vmm.Backing
	err := filepath.WalkDir(m.disks(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(m.disks(), path)
		switch {
		case err != nil:
			return err
		case d.Type().IsRegular():
			copied := to(len(kept))
			kept = append(kept, vmm.Backing{Path: copied, Format: stateFile + name})
			return copyFile(copied, path)
		case d.Type() == fs.ModeSymlink:
			copied := to(len(kept))
			kept = append(kept, vmm.Backing{Path: copied, Format: stateLink + name})
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.WriteFile(copied, []byte(target), 0o600)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) && len(kept) == 0 { // it was never started
		return nil, nil
	}
	return kept, err
}

// adopt fills the machine's directory with what was kept.
func (f *foreign) adopt(kept []vmm.Backing) error {
	for _, b := range kept {
		kind, name, _ := strings.Cut(b.Format, ":")
		if !filepath.IsLocal(name) {
			return fmt.Errorf("%q is not a valid name for a file of a machine", name)
		}
		path := filepath.Join(f.m.disks(), name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if kind+":" == stateLink {
			target, err := os.ReadFile(b.Path)
			if err == nil {
				err = os.Symlink(string(target), path)
			}
			if err != nil {
				return err
			}
			continue
		}
		if err := copyFile(path, b.Path); err != nil {
			return err
		}
	}
	return nil
}
