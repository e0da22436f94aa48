// Package machineconfig reads the machine configuration file: JSON that a
// generator (Nix, a script, a person) writes, with the machines of a lab.
//
// The keys and their defaults are a contract with those generators, so reading
// is strict: an unknown key, a value of the wrong type, a missing backend and
// two machines of one name are errors that name the file, the machine and the
// key as a JSON pointer (RFC 6901).
package machineconfig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"time"

	"github.com/attest-vm/attest/internal/event"
)

// A File is a machine configuration.
type File struct {
	Path          string
	Machines      []Machine
	VLANs         []int         // of machines that have none of their own; nil: not given
	GlobalTimeout time.Duration // an hour unless given
}

// A Machine is one entry of "machines". Which fields have a meaning depends on
// the backend; those of other backends are refused when the file is read.
type Machine struct {
	Name    string
	Backend string
	VLANs   []int // the file's unless given; nil: neither says

	StartCommand string          // qemu
	AllowReboot  bool            // qemu
	Image        json.RawMessage // an image of attest's own, instead of paths
	Memory       int             // MiB; 0: the backend's default
	CPUs         int
	SnapshotPath string
	Files        map[string]any    // path in the guest → string, or map[string]any with content or path, and mode
	Mount        map[string]string // path in the guest → path of the host
	Further      map[string]any    // settings of FurtherKeys, as JSON has them

	Binary      string // firecracker_bin, cloud_hypervisor_bin
	KernelImage string
	Rootfs      string
	Initrd      string
	KernelArgs  string
	StoreImage  string
	VsockCID    int
	VsockPort   int
	DiskBytes   int // per second; 0: no limit
	DiskOps     int
	TAPs        []TAP
	HugePages   string
	Entropy     bool
	EnablePCI   bool
	IOEngine    string
	CacheType   string
	Pmem        []string // firecracker
	Jailer      string   // jailer_bin
	JailerUID   int      // 0: the default
	JailerGID   int
	MockScript  json.RawMessage
}

// Settings are what the file, or a default, says of the machine in the terms that
// all backends share, by key. The image is left out: it is an image's own format.
func (m Machine) Settings() map[string]any {
	out := map[string]any{"name": m.Name, "backend": m.Backend}
	if m.VLANs != nil { // an empty list is a machine without networks
		out["vlans"] = m.VLANs
	}
	if m.KernelImage != "" && m.Memory == 0 {
		m.Memory = kernelMemory
	}
	for key, v := range map[string]any{
		"start_command": m.StartCommand, "allow_reboot": m.AllowReboot, "mem_size_mib": m.Memory, "vcpu_count": m.CPUs,
		"snapshot_path": m.SnapshotPath, "script": []byte(m.MockScript), "options": m.options(), "files": m.Files, "mount": m.Mount,
	} {
		if !reflect.ValueOf(v).IsZero() {
			out[key] = v
		}
	}
	maps.Copy(out, m.Further)
	return out
}

// FurtherKeys are the settings of a machine with an image that a file has by the names
// that test files have. What their values have to be is said where test files are read.
var FurtherKeys = []string{
	"numa", "mac", "nic", "qemu", "type", "cmdline", "user", "password", "root", "root_size", "disks", "display", "egress", "boot", "boot_timeout",
}

// options are the settings that only the machine's backend has, as it reads them; nil if
// all are the default.
func (m Machine) options() []byte {
	out := map[string]any{}
	for _, o := range []struct {
		backend, key     string
		value, otherwise any
	}{
		{"firecracker", "firecracker_bin", m.Binary, ""}, {"firecracker", "huge_pages", m.HugePages, ""}, {"firecracker", "entropy", m.Entropy, true},
		{"firecracker", "jailer_bin", m.Jailer, ""}, {"firecracker", "jailer_uid", m.JailerUID, 0}, {"firecracker", "jailer_gid", m.JailerGID, 0}, {"firecracker", "enable_pci", m.EnablePCI, false}, {"firecracker", "io_engine", m.IOEngine, ioEngine}, {"firecracker", "cache_type", m.CacheType, cacheType},
		{"cloud-hypervisor", "cloud_hypervisor_bin", m.Binary, ""},
		{m.Backend, "vsock_cid", m.VsockCID, vsockCID}, {m.Backend, "vsock_port", m.VsockPort, vsockPort}, {m.Backend, "store_image_path", absolute(m.StoreImage), ""},
		{m.Backend, "disk_bytes_per_second", m.DiskBytes, 0}, {m.Backend, "disk_ops_per_second", m.DiskOps, 0},
	} {
		if m.small() && m.Backend == o.backend && o.value != o.otherwise {
			out[o.key] = o.value
		}
	}
	if m.Backend == "firecracker" && len(m.Pmem) > 0 {
		paths := make([]string, len(m.Pmem))
		for i, p := range m.Pmem {
			paths[i] = absolute(p)
		}
		out["pmem_image_paths"] = paths
	}
	if len(out) == 0 {
		return nil
	}
	b, err := json.Marshal(out)
	if err != nil {
		panic(err) // strings, numbers and booleans
	}
	return b
}

// small reports whether the backend is a small VMM.
func (m Machine) small() bool { return m.Backend == "firecracker" || m.Backend == "cloud-hypervisor" }

// absolute is a path that begins at the current directory.
func absolute(path string) string {
	if path == "" {
		return ""
	}
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// ForOtherImages returns the first key, of those that only have a meaning for a
// machine without an image of attest's, that m has all the same; empty if there is none.
func (m Machine) ForOtherImages() string {
	for _, o := range []struct {
		key   string
		given bool
	}{
		{"kernel_image_path", m.KernelImage != ""}, {"rootfs_path", m.Rootfs != ""}, {"initrd_path", m.Initrd != ""},
		{"kernel_boot_args", m.KernelArgs != ""}, {"store_image_path", m.StoreImage != ""}, {"tap_interfaces", len(m.TAPs) > 0},
		{"vsock_cid", m.VsockCID != vsockCID}, {"vsock_port", m.VsockPort != vsockPort},
	} {
		if o.given {
			return o.key
		}
	}
	return ""
}

// Defaults.
const (
	vsockCID  = 3
	vsockPort = 1234
	ioEngine  = "Sync"
	cacheType = "Unsafe"

	kernelMemory = 256 // MiB, of a machine with kernel_image_path
)

// A TAP is an element of tap_interfaces: a device that exists already.
type TAP struct{ Interface, HostDevice, MAC string }

// Error is a configuration that makes no sense.
type Error struct {
	File    string
	Machine string // may be empty
	Pointer string // "/machines/0/memory"
	Reason  string
}

func (e *Error) Error() string {
	msg := fmt.Sprintf("machine configuration %s: ", e.File)
	if e.Machine != "" {
		msg += fmt.Sprintf("machine %q: ", e.Machine)
	}
	if e.Pointer != "" {
		msg += e.Pointer + ": "
	}
	return msg + e.Reason
}

// Read reads a file. Errors are an *Error, or the file system's.
func Read(path string) (*File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("machine configuration: %w", err)
	}
	return Parse(path, data)
}

var name = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]*$`)

// Parse reads the content of a file; path is for errors.
func Parse(path string, data []byte) (*File, error) {
	top, err := decode(path, data)
	if err != nil {
		return nil, err
	}
	f := &File{Path: path, GlobalTimeout: time.Hour}
	r := reader{file: path}
	root := r.object("", top)
	var machines []any
	r.take(root, "machines", func(v any) { machines = r.array("/machines", v) })
	r.take(root, "vlans", func(v any) { f.VLANs = r.vlans("/vlans", v) })
	r.take(root, "global_timeout", func(v any) { f.GlobalTimeout = r.seconds("/global_timeout", v) })
	r.rest("", root, "machines", "vlans", "global_timeout")
	seen := map[string]bool{}
	for i, v := range machines {
		m := r.machine(fmt.Sprintf("/machines/%d", i), v, f.VLANs)
		if r.err == nil && seen[m.Name] {
			r.fail(fmt.Sprintf("/machines/%d/name", i), "another machine has the same name")
		}
		seen[m.Name] = true
		f.Machines = append(f.Machines, m)
		r.name = ""
	}
	if r.err != nil {
		return nil, r.err
	}
	return f, nil
}

// decode reads the one JSON value of a file. Numbers stay as they were written.
func decode(path string, data []byte) (top any, err error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := dec.Decode(&top); err != nil {
		return nil, &Error{File: path, Reason: syntaxReason(data, err)}
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, &Error{File: path, Reason: "unexpected data after the JSON object"}
	}
	return top, nil
}

func syntaxReason(data []byte, err error) string {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		before := data[:min(int(syntax.Offset), len(data))]
		line := 1 + bytes.Count(before, []byte("\n"))
		column := len(before) - bytes.LastIndexByte(before, '\n') - 1
		return fmt.Sprintf("not JSON: line %d, column %d: %v", line, column, err)
	}
	return fmt.Sprintf("not JSON: %v", err)
}

// machine reads one element of "machines".
func (r *reader) machine(at string, v any, vlans []int) Machine {
	m := Machine{VLANs: vlans, VsockCID: vsockCID, VsockPort: vsockPort, Entropy: true, IOEngine: ioEngine, CacheType: cacheType}
	o := r.object(at, v)
	r.take(o, "name", func(v any) { m.Name = r.string(at+"/name", v) })
	r.name = m.Name
	switch {
	case r.err != nil:
		return m
	case o["name"] == nil:
		r.fail(at, `"name" is missing`)
	case !name.MatchString(m.Name):
		r.fail(at+"/name", "not a machine name: want letters, digits, - and _, beginning with a letter or a digit")
	}
	r.take(o, "backend", func(v any) { m.Backend = r.string(at+"/backend", v) })
	keys, ok := backends[m.Backend]
	switch {
	case r.err != nil:
		return m
	case o["backend"] == nil:
		r.fail(at, `"backend" is missing; want `+backendNames)
	case !ok:
		r.fail(at+"/backend", fmt.Sprintf("unknown backend %q; want %s", m.Backend, backendNames))
	}
	known := []string{"name", "backend", "vlans", "files", "mount"}
	r.take(o, "vlans", func(v any) { m.VLANs = r.vlans(at+"/vlans", v) })
	r.take(o, "files", func(v any) { m.Files = r.files(at+"/files", v) })
	r.take(o, "mount", func(v any) { m.Mount = r.paths(at+"/mount", v) })
	if m.Backend != "mock" {
		known = append(known, FurtherKeys...)
		for _, key := range FurtherKeys {
			r.take(o, key, func(v any) {
				if m.Further == nil {
					m.Further = map[string]any{}
				}
				m.Further[key] = v
			})
		}
	}
	for _, key := range keys {
		known = append(known, key)
		r.take(o, key, func(v any) { readers[key](r, &m, at+"/"+key, v) })
	}
	r.rest(at, o, known...)
	r.complete(at, m)
	if m.CPUs == 0 && m.StartCommand == "" {
		m.CPUs = 1
	}
	return m
}

// complete checks what a machine must have.
func (r *reader) complete(at string, m Machine) {
	if r.err != nil {
		return
	}
	switch m.Backend {
	case "qemu":
		switch {
		case (m.StartCommand == "") == (m.Image == nil):
			r.fail(at, `want either "start_command" or "image"`)
		case m.StartCommand != "" && m.Memory != 0:
			r.fail(at+"/mem_size_mib", `"start_command" already determines the memory; leave one of the two out`)
		case m.StartCommand != "" && m.CPUs != 0:
			r.fail(at+"/vcpu_count", `"start_command" already determines the processors; leave one of the two out`)
		}
	case "firecracker", "cloud-hypervisor":
		if m.Image == nil && m.KernelImage == "" {
			r.fail(at, `"kernel_image_path" is missing (or "image")`)
		}
		if m.Image == nil && m.Rootfs == "" {
			r.fail(at, `"rootfs_path" is missing (or "image")`)
		}
	}
}

const backendNames = "qemu, firecracker, cloud-hypervisor or mock"

// backends lists the keys of each backend beside those that all have.
var backends = func() map[string][]string {
	image := []string{"image", "mem_size_mib", "vcpu_count", "snapshot_path"}
	micro := append([]string{"kernel_image_path", "rootfs_path", "initrd_path", "kernel_boot_args",
		"store_image_path", "vsock_cid", "vsock_port", "tap_interfaces", "disk_bytes_per_second", "disk_ops_per_second"}, image...)
	return map[string][]string{
		"qemu":             append([]string{"start_command", "allow_reboot"}, image...),
		"firecracker":      append([]string{"firecracker_bin", "huge_pages", "entropy", "enable_pci", "io_engine", "cache_type", "pmem_image_paths", "jailer_bin", "jailer_uid", "jailer_gid"}, micro...),
		"cloud-hypervisor": append([]string{"cloud_hypervisor_bin"}, micro...),
		"mock":             {"script"},
	}
}()

// readers says how each key is read.
var readers = map[string]func(r *reader, m *Machine, at string, v any){
	"start_command":         func(r *reader, m *Machine, at string, v any) { m.StartCommand = r.string(at, v) },
	"allow_reboot":          func(r *reader, m *Machine, at string, v any) { m.AllowReboot = r.bool(at, v) },
	"image":                 func(r *reader, m *Machine, at string, v any) { m.Image = r.raw(v) },
	"mem_size_mib":          func(r *reader, m *Machine, at string, v any) { m.Memory = r.positive(at, v) },
	"vcpu_count":            func(r *reader, m *Machine, at string, v any) { m.CPUs = r.positive(at, v) },
	"snapshot_path":         func(r *reader, m *Machine, at string, v any) { m.SnapshotPath = r.string(at, v) },
	"firecracker_bin":       func(r *reader, m *Machine, at string, v any) { m.Binary = r.string(at, v) },
	"cloud_hypervisor_bin":  func(r *reader, m *Machine, at string, v any) { m.Binary = r.string(at, v) },
	"kernel_image_path":     func(r *reader, m *Machine, at string, v any) { m.KernelImage = r.string(at, v) },
	"rootfs_path":           func(r *reader, m *Machine, at string, v any) { m.Rootfs = r.string(at, v) },
	"initrd_path":           func(r *reader, m *Machine, at string, v any) { m.Initrd = r.string(at, v) },
	"kernel_boot_args":      func(r *reader, m *Machine, at string, v any) { m.KernelArgs = r.string(at, v) },
	"store_image_path":      func(r *reader, m *Machine, at string, v any) { m.StoreImage = r.string(at, v) },
	"vsock_cid":             func(r *reader, m *Machine, at string, v any) { m.VsockCID = r.positive(at, v) },
	"vsock_port":            func(r *reader, m *Machine, at string, v any) { m.VsockPort = r.positive(at, v) },
	"disk_bytes_per_second": func(r *reader, m *Machine, at string, v any) { m.DiskBytes = r.positive(at, v) },
	"disk_ops_per_second":   func(r *reader, m *Machine, at string, v any) { m.DiskOps = r.positive(at, v) },
	"tap_interfaces":        func(r *reader, m *Machine, at string, v any) { m.TAPs = r.taps(at, v) },
	"huge_pages":            func(r *reader, m *Machine, at string, v any) { m.HugePages = r.string(at, v) },
	"entropy":               func(r *reader, m *Machine, at string, v any) { m.Entropy = r.bool(at, v) },
	"enable_pci":            func(r *reader, m *Machine, at string, v any) { m.EnablePCI = r.bool(at, v) },
	"io_engine":             func(r *reader, m *Machine, at string, v any) { m.IOEngine = r.string(at, v) },
	"cache_type":            func(r *reader, m *Machine, at string, v any) { m.CacheType = r.string(at, v) },
	"jailer_bin":            func(r *reader, m *Machine, at string, v any) { m.Jailer = r.string(at, v) },
	"jailer_uid":            func(r *reader, m *Machine, at string, v any) { m.JailerUID = r.positive(at, v) },
	"jailer_gid":            func(r *reader, m *Machine, at string, v any) { m.JailerGID = r.positive(at, v) },
	"pmem_image_paths":      func(r *reader, m *Machine, at string, v any) { m.Pmem = r.strings(at, v) },
	"script":                func(r *reader, m *Machine, at string, v any) { m.MockScript = r.raw(v) },
}

// Status says that the file is the user's to mend.
func (*Error) Status() event.Status { return event.Invalid }
