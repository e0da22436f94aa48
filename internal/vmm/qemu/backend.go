// Package qemu runs machines on QEMU, with KVM or its own emulator (TCG).
//
// Everything between attest and a QEMU goes over descriptors that it inherits:
// the monitor (QMP), the serial console, the agent's channel and the networks.
// No socket is in the file system, so no path can be too long or be taken by
// somebody else.
package qemu

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/vmm"
)

// Env names a QEMU to use instead of the one on the PATH.
const Env = "ATTEST_QEMU"

const defaultBinary = "qemu-system-x86_64"

// The oldest QEMU that has -netdev stream.
const minMajor, minMinor = 7, 2

func init() { vmm.Register(&backend{}) }

// A backend knows the QEMU of this host.
type backend struct {
	mu       sync.Mutex
	binaries map[binaryKey]installed // what a binary said of itself
	examined map[string]examination  // by machine and start command
}

// binaryKey tells a binary from the one that replaces it by an update.
type binaryKey struct {
	path  string
	size  int64
	mtime int64
}

var (
	_ vmm.Backend = (*backend)(nil)
	_ vmm.Doctor  = (*backend)(nil)
)

func (*backend) Name() string { return "qemu" }

// Check refuses what attest does not know how to give a machine. It takes
// configurations whose files and connections do not exist yet.
func (b *backend) Check(c vmm.Config) error {
	if _, ok := c.Boot.(*vmm.Command); ok {
		return nil // which QEMU it starts is its own affair
	}
	hw, ok := c.Boot.(*vmm.Hardware)
	unsupported := func(operation, reason string) error {
		return &vmm.UnsupportedError{Machine: c.Name, Operation: operation, Backend: b.Name(), Reason: reason}
	}
	if !ok {
		return unsupported(fmt.Sprintf("a machine of a %T", c.Boot), "")
	}
	if _, ok := machineTypes[hw.Type]; !ok {
		return unsupported(fmt.Sprintf("machine type %q", hw.Type), "want q35 or microvm")
	}
	for _, d := range hw.Disks {
		if d.Format != "" && d.Format != "raw" && d.Format != "qcow2" {
			return unsupported(fmt.Sprintf("disk format %q", d.Format), "want raw or qcow2")
		}
		if len(d.Serial) > maxSerial {
			return unsupported(fmt.Sprintf("disk serial %q", d.Serial), fmt.Sprintf("it has %d bytes, and the limit is %d", len(d.Serial), maxSerial))
		}
	}
	if len(hw.Options) > 0 {
		dec := json.NewDecoder(bytes.NewReader(hw.Options))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&Options{}); err != nil {
			return unsupported(fmt.Sprintf("the options %s", hw.Options), "they are another backend's: "+err.Error())
		}
	}
	for _, n := range c.NICs {
		switch {
		case n.Model != "" && !slices.Contains(cardModels, n.Model):
			return unsupported(fmt.Sprintf("network card %q", n.Model), "want one of "+strings.Join(cardModels, ", "))
		case n.Model != "" && n.Model != virtioCard && hw.Type == "microvm":
			return unsupported(fmt.Sprintf("network card %q", n.Model), "a microvm has virtio only")
		}
	}
	if err := checkSlots(hw); err != nil {
		return unsupported(err.Error(), "")
	}
	if err := checkNUMA(hw); err != nil {
		return unsupported(fmt.Sprintf("%d NUMA nodes", hw.NUMA), err.Error())
	}
	_, err := b.find()
	return err
}

// checkSlots refuses disks that do not fit.
func checkSlots(hw *vmm.Hardware) error {
	if hw.Type == "microvm" && hw.Slots > 0 {
		return errors.New("a further disk of a microvm, which has no slots,")
	}
	if hw.Slots > maxSlots {
		return fmt.Errorf("a machine with %d slots for disks (at most %d)", hw.Slots, maxSlots)
	}
	for _, d := range hw.SlotDisks {
		if d.Slot < 0 || d.Slot >= hw.Slots {
			return fmt.Errorf("a disk in slot %d of %d", d.Slot, hw.Slots)
		}
		if d.Bus != "" && !slices.Contains(vmm.DiskBuses(), d.Bus) {
			return fmt.Errorf("a disk of bus %q", d.Bus)
		}
		if len(d.Serial) > maxSerial {
			return fmt.Errorf("a disk serial of more than %d bytes: %q", maxSerial, d.Serial)
		}
	}
	return nil
}

// maxSerial is VIRTIO_BLK_ID_BYTES. QEMU cuts longer ones short.
const maxSerial = 20

// installed is a QEMU that was found.
type installed struct {
	path, version string
	sandbox       bool   // it and the kernel can do without what sandboxOptions deny
	visible       string // why it sees all files of the host; empty: it sees its own (vmm.View)
}

// find finds a QEMU that is new enough.
func (b *backend) find() (p installed, err error) {
	name := cmp.Or(os.Getenv(Env), defaultBinary)
	remedy := "install QEMU (Debian: apt-get install qemu-system-x86; Nix: qemu)"
	path, err := exec.LookPath(name)
	if err != nil {
		where := "not found on PATH (" + os.Getenv("PATH") + ")"
		if os.Getenv(Env) != "" {
			where, remedy = err.Error(), "see the environment variable "+Env
		}
		return p, &doctor.MissingError{What: name, Reason: where, Remedy: remedy}
	}
	p, err = b.ask(path)
	if err != nil {
		return p, &doctor.MissingError{What: path, Reason: err.Error(), Remedy: remedy}
	}
	if tooOld(p.version) {
		return p, &doctor.MissingError{What: path, Reason: fmt.Sprintf("version %s is too old, attest needs %d.%d", p.version, minMajor, minMinor), Remedy: remedy}
	}
	return p, nil
}

var versionPattern = regexp.MustCompile(`version (\d+)\.(\d+)(\.\d+)*`)

func tooOld(version string) bool { return !since(version, minMajor, minMinor) }

// since reports whether a version is that one or newer.
func since(version string, wantMajor, wantMinor int) bool {
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > wantMajor || major == wantMajor && minor >= wantMinor
}

// mapsReadOnly reports whether QEMU can have a private mapping of a file as its memory that it
// opens for reading alone (rom=off). Older ones want to write to the file, which they never do.
func (p installed) mapsReadOnly() bool { return since(p.version, 8, 2) }

// sandboxOptions deny a QEMU what attest's machines have no use for, by seccomp(2):
// obsolete system calls, other users' rights, other programs, its own limits. Files
// and memory stay: snapshots need them.
const sandboxOptions = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// ask has a QEMU say its version, with the sandbox if it takes that.
func (b *backend) ask(path string) (installed, error) {
	st, err := os.Stat(path)
	if err != nil {
		return installed{path: path}, err
	}
	key := binaryKey{path, st.Size(), st.ModTime().UnixNano()}
	b.mu.Lock()
	defer b.mu.Unlock()
	if p, ok := b.binaries[key]; ok {
		return p, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), versionTimeout)
	defer cancel()
	p := installed{path: path, sandbox: true}
	out, err := exec.CommandContext(ctx, path, "-sandbox", sandboxOptions, "--version").CombinedOutput()
	if err != nil {
		p.sandbox = false
		out, err = exec.CommandContext(ctx, path, "--version").CombinedOutput()
	}
	m := versionPattern.FindSubmatch(out)
	if m == nil {
		return p, fmt.Errorf("no version in the output of --version: %q (%v)", firstLine(out), err)
	}
	p.version = string(m[0][len("version "):])
	p.sandbox = p.sandbox && hasSeccomp()
	p.visible = vmm.WhyVisible(path, true)
	if b.binaries == nil {
		b.binaries = map[binaryKey]installed{}
	}
	b.binaries[key] = p
	return p, nil
}

// hasSeccomp reports whether the kernel has seccomp filters, and permits their use.
func hasSeccomp() bool {
	action := uint32(unix.SECCOMP_RET_KILL_THREAD)
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	return errno == 0
}

// versionTimeout is for a host under load; it takes 20 ms as a rule.
const versionTimeout = 20 * time.Second

func firstLine(b []byte) string {
	for i, c := range b {
		if c == '\n' {
			return string(b[:i])
		}
	}
	return string(b)
}

// Examine says what is there, for attest doctor.
func (b *backend) Examine(context.Context) doctor.Diagnosis {
	p, err := b.find()
	d := doctor.Diagnosis{Usable: err == nil, Path: p.path, Version: p.version}
	f := doctor.Finding{Name: "program", OK: err == nil, Detail: p.path + ", version " + p.version}
	if err != nil {
		f.Detail = err.Error()
	}
	d.Findings = append(d.Findings, f)
	if err == nil {
		d.Findings = append(d.Findings,
			doctor.Finding{Name: "machine types", OK: true, Detail: "q35, microvm"},
			sandboxFinding(p),
			vmm.ViewFinding(p.visible),
			b.firmwareFinding(),
			doctor.Finding{Name: "networks", OK: true, Detail: "in attest's own process; no root, nothing on the host"})
	}
	return d
}

func sandboxFinding(p installed) doctor.Finding {
	if p.sandbox {
		return doctor.Finding{Name: "sandbox", OK: true, Detail: "it may start no program and get no rights (seccomp)"}
	}
	return doctor.Finding{Name: "sandbox", Detail: "machines run without: this QEMU or this kernel has no seccomp", Remedy: "install a QEMU that is built with libseccomp"}
}

func (b *backend) firmwareFinding() doctor.Finding {
	u, err := b.UEFI()
	if missing := (*doctor.MissingError)(nil); errors.As(err, &missing) {
		return doctor.Finding{Name: "UEFI", Detail: "no machine boots by UEFI: " + missing.Reason, Remedy: missing.Remedy}
	}
	return doctor.Finding{Name: "UEFI", OK: true, Detail: u.Code}
}

// itoa keeps the command line readable.
func itoa(n int) string { return strconv.Itoa(n) }
