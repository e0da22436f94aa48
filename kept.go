package attest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/flock"
)

// keptFiles is the directory of a foreign machine that outlives its lab
// (LabConfig.StateDir).
type keptFiles struct {
	dir  string
	lock *os.File // the directory itself
}

// keepFiles gives a foreign machine its directory of the lab's StateDir, if there is
// one. Two labs must not use it at once: their disks would be one.
func (m *Machine) keepFiles() error {
	state := m.lab.config.StateDir
	if state == "" || m.config.StartCommand == "" {
		return nil
	}
	dir, err := filepath.Abs(filepath.Join(state, "vm-state-"+m.Name()))
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	var lock *os.File
	if err == nil {
		lock, err = os.Open(dir)
	}
	if err != nil {
		return &InfraError{m.Name(), "create the directory that keeps its state", err}
	}
	if err := flock.Lock(lock, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return &ConfigError{fmt.Sprintf("machine %q", m.Name()), "another run uses its state in " + dir + "; wait for its end, or keep the state elsewhere (TMPDIR)"}
		}
		return &InfraError{m.Name(), "lock the directory that keeps its state", err}
	}
	m.kept, m.config.Boot = &keptFiles{dir, lock}, BootCold
	return nil
}

// empty removes what is in the directory, which stays the one that is locked.
func (k *keptFiles) empty() error {
	entries, err := os.ReadDir(k.dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(k.dir, e.Name())))
	}
	return err
}

// close gives the directory to the next lab.
func (k *keptFiles) close() {
	if k != nil {
		k.lock.Close()
	}
}
