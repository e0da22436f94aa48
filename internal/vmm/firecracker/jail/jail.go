package jail

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// An Order is what the helper starts.
type Order struct {
	Jailer      string // paths of the programs
	Firecracker string

	// Dir is the machine's directory, and the root directory of the jail. It belongs to the
	// jailed user afterwards.
	Dir string
	ID  string // 1 to 64 letters, digits and hyphens

	UID, GID int
	Args     []string // of Firecracker
	Files    []File
	// Memories is the descriptor of the mount namespace of files that have no path; 0: there
	// are none.
	Memories int
}

// A File is what Firecracker finds below a name in its directory.
type File struct {
	Name  string
	Path  string // on the host; empty: FD
	FD    int    // the descriptor of a file in the namespace Memories
	Write bool   // otherwise it is read-only, whoever may write to it
}

// Log is the name of the pipe in the jail to which Firecracker has to write what it logs. It comes
// out of the helper's standard error.
const Log = "log"

// helperName is argv[0] of this binary while it is the helper.
const helperName = "attest-jail"

// Argv is what the binary of this process is started with as the helper. It has to be a first
// process (supervise.Command.Isolate), since nothing else ends the jail with it.
func (o Order) Argv() ([]string, error) {
	b, err := json.Marshal(o)
	return []string{helperName, string(b)}, err
}

// ID is the jail's identifier of a machine with any name: the jailer knows fewer letters.
func ID(machine string) string {
	id := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, machine)
	return id[:min(len(id), 64)]
}

// try is the argument of a helper that only tries what the jailer will do.
const try = "try"

var tried = sync.OnceValue(func() error {
	c := exec.Command("/proc/self/exe")
	var said bytes.Buffer
	c.Args, c.Stderr = []string{helperName, try}, &said
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := c.Run()
	if text := strings.TrimSpace(said.String()); err != nil && text != "" {
		err = errors.New(text)
	}
	return err
})

// Try returns why no jailer can do its work in this process's place: it makes a mount
// namespace and a device node, and becomes another user. It does so once, and leaves nothing.
func Try() error {
	if uid := unix.Geteuid(); uid != 0 {
		return fmt.Errorf("this is uid %d", uid)
	}
	return tried()
}
