package microvm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/accel"
	"github.com/attest-vm/attest/internal/doctor"
)

// A Version is that of a VMM.
type Version [3]int

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

// Before reports whether v is older than others.
func (v Version) Before(other Version) bool {
	for i := range v {
		if v[i] != other[i] {
			return v[i] < other[i]
		}
	}
	return false
}

// A Program is a VMM that was found.
type Program struct {
	Path    string
	Version Version
	Full    string // as it says it: "1.17.0-dev"
	Stamp   string // tells it from one that replaces it: size and time
}

// A Finder finds a VMM.
type Finder struct {
	Name    string // of the program
	Env     string // the environment variable that names another
	Oldest  Version
	Pattern *regexp.Regexp // of the version in what --version says; what it catches begins with three numbers
	Remedy  string

	mu    sync.Mutex
	known map[string]Program // by path and stamp
}

const versionTimeout = 20 * time.Second // for a host under load

// Find finds the program: path if that is not empty, what the environment names, or the
// first on PATH. One that is missing or too old is a *doctor.MissingError.
func (f *Finder) Find(path string) (Program, error) {
	name := cmp.Or(path, os.Getenv(f.Env), f.Name)
	missing := func(what, reason string) error {
		return &doctor.MissingError{What: what, Reason: reason, Remedy: f.Remedy}
	}
	found, err := exec.LookPath(name)
	switch {
	case err != nil && name == f.Name:
		return Program{}, missing(f.Name, "not found on PATH ("+os.Getenv("PATH")+")")
	case err != nil && path == "":
		return Program{}, &doctor.MissingError{What: f.Name, Reason: err.Error(), Remedy: "see the environment variable " + f.Env}
	case err != nil:
		return Program{}, missing(f.Name, err.Error())
	}
	if found, err = filepath.Abs(found); err != nil { // it is started in another directory
		return Program{}, err
	}
	p, err := f.ask(found)
	if err != nil {
		return p, missing(found, err.Error())
	}
	if p.Version.Before(f.Oldest) {
		return p, missing(found, fmt.Sprintf("version %s is too old, attest needs %d.%d", p.Full, f.Oldest[0], f.Oldest[1]))
	}
	return p, nil
}

// ask has a program say its version, once.
func (f *Finder) ask(path string) (Program, error) {
	st, err := os.Stat(path)
	if err != nil {
		return Program{}, err
	}
	p := Program{Path: path, Stamp: fmt.Sprint(st.Size(), " ", st.ModTime().UnixNano())}
	key := path + " " + p.Stamp
	f.mu.Lock()
	defer f.mu.Unlock()
	if known, ok := f.known[key]; ok {
		return known, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), versionTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	m := f.Pattern.FindSubmatch(out)
	if m == nil {
		if err == nil {
			err = errors.New("it is another program")
		}
		return p, fmt.Errorf("no version in the output of --version: %.80q (%w)", out, err)
	}
	p.Full = string(m[1])
	for i, n := range numbers.FindAllString(p.Full, len(p.Version)) {
		p.Version[i], _ = strconv.Atoi(n)
	}
	if f.known == nil {
		f.known = map[string]Program{}
	}
	f.known[key] = p
	return p, nil
}

var numbers = regexp.MustCompile(`\d+`)

// Hardware returns a *doctor.MissingError on a host on which guests do not run in
// hardware: these VMMs have no emulator.
func Hardware(ctx context.Context) error {
	p, err := accel.Detect(ctx)
	if err != nil || p.KVM {
		return err
	}
	m := &doctor.MissingError{What: "hardware virtualisation (KVM)", Reason: p.Reason}
	const device = "/dev/kvm"
	switch f, err := os.OpenFile(device, os.O_RDWR, 0); {
	case errors.Is(err, os.ErrNotExist):
		m.Reason = device + " does not exist"
		m.Remedy = "load the module (modprobe kvm_intel or kvm_amd), and in a virtual machine turn nested virtualisation on; or use the backend qemu, which emulates"
	case errors.Is(err, os.ErrPermission):
		m.Reason = "this user may not open " + device
		m.Remedy = "add yourself to the group kvm (sudo usermod -aG kvm $USER) and log in again; in a container, start it with --device " + device
	default:
		if err == nil {
			f.Close()
		}
		m.Remedy = "use the backend qemu, which emulates; " + accel.Env + "=kvm uses " + device + " all the same"
	}
	return m
}
