// Package qemu runs machines on QEMU, with KVM or its own emulator (TCG).
//
// Everything between attest and a QEMU goes over descriptors that it inherits:
// the monitor (QMP), the serial console, the agent's channel and the networks.
// No socket is in the file system, so no path can be too long or be taken by
// somebody else.
package qemu

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"sync"
	"time"

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
	versions map[binaryKey]string   // what a binary said of itself
	examined map[string]examination // by machine and start command
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
			return unsupported(fmt.Sprintf("disk serial %q", d.Serial), fmt.Sprintf("it has %d bytes, and %d fit", len(d.Serial), maxSerial))
		}
	}
	_, _, err := b.find()
	return err
}

// maxSerial is VIRTIO_BLK_ID_BYTES. QEMU cuts longer ones short.
const maxSerial = 20

// find is the path and version of a QEMU that is new enough.
func (b *backend) find() (path, version string, err error) {
	name := cmp.Or(os.Getenv(Env), defaultBinary)
	remedy := "install QEMU (Debian: apt-get install qemu-system-x86; Nix: qemu)"
	path, err = exec.LookPath(name)
	if err != nil {
		where := "not found on PATH (" + os.Getenv("PATH") + ")"
		if os.Getenv(Env) != "" {
			where, remedy = err.Error(), "see the environment variable "+Env
		}
		return "", "", &vmm.MissingError{What: name, Reason: where, Remedy: remedy}
	}
	version, err = b.version(path)
	if err != nil {
		return path, "", &vmm.MissingError{What: path, Reason: err.Error(), Remedy: remedy}
	}
	if tooOld(version) {
		return path, version, &vmm.MissingError{What: path, Reason: fmt.Sprintf("version %s is too old, attest needs %d.%d", version, minMajor, minMinor), Remedy: remedy}
	}
	return path, version, nil
}

var versionPattern = regexp.MustCompile(`version (\d+)\.(\d+)(\.\d+)*`)

func tooOld(version string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
		return true
	}
	return major < minMajor || major == minMajor && minor < minMinor
}

func (b *backend) version(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	key := binaryKey{path, st.Size(), st.ModTime().UnixNano()}
	b.mu.Lock()
	defer b.mu.Unlock()
	if v := b.versions[key]; v != "" {
		return v, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), versionTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	m := versionPattern.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("it does not say its version: %q (%v)", firstLine(out), err)
	}
	v := string(m[0][len("version "):])
	if b.versions == nil {
		b.versions = map[binaryKey]string{}
	}
	b.versions[key] = v
	return v, nil
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
func (b *backend) Examine(context.Context) vmm.Diagnosis {
	path, version, err := b.find()
	d := vmm.Diagnosis{Usable: err == nil, Path: path, Version: version}
	f := vmm.Finding{Name: "program", OK: err == nil, Detail: path + ", version " + version}
	if err != nil {
		f.Detail = err.Error()
	}
	d.Findings = append(d.Findings, f)
	if err == nil {
		d.Findings = append(d.Findings,
			vmm.Finding{Name: "machine types", OK: true, Detail: "q35, microvm"},
			vmm.Finding{Name: "networks", OK: true, Detail: "in attest's own process; no root, nothing on the host"})
	}
	return d
}

// itoa keeps the command line readable.
func itoa(n int) string { return strconv.Itoa(n) }
