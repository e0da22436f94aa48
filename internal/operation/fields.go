package operation

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/machineconfig"
)

// A Field is a setting of a machine. The table of fields feeds machine(…) and
// create_machine(…) of the front ends, the machine configuration file and the
// page about machines, so that none has a setting that another one lacks.
type Field struct {
	Name  string // of the argument; empty: only files can set it
	JSON  string // key in the machine configuration file; empty: files cannot set it
	Type  Type
	Path  bool              // a path of the host
	Check func(v any) error // of a value of Type; see Param.Check
	Shown string            // the default, as the page shows it
	Doc   string            // in Markdown
	set   func(*attest.MachineConfig, any)
}

// Destinations is the type of egress.
const Destinations Type = "bool, string or list of strings"

// Fields are all settings of a machine, in the order of the page.
var Fields = []Field{
	{
		Name: "name", JSON: "name", Type: String, Shown: "the variable's name",
		Doc: "Letters, digits, `-` and `_`, at most 63. It is the host name too.",
		set: func(c *attest.MachineConfig, v any) { c.Name = v.(string) },
	},
	{
		Name: "image", JSON: "image", Type: Image, Shown: "–",
		Doc: "`debian(…)`, `rootfs(…)` or `disk(…)`.",
		set: func(c *attest.MachineConfig, v any) { c.Image = v.(attest.Image) },
	},
	{
		Name: "start_command", JSON: "start_command", Type: String, Shown: "–",
		Doc: "A start script, instead of an image ([foreign.md](foreign.md)).",
		set: func(c *attest.MachineConfig, v any) { c.StartCommand = v.(string) },
	},
	{
		Name: "backend", JSON: "backend", Type: String, Shown: "`\"auto\"`",
		Doc: "`\"auto\"`: the cheapest that this host has and that can do what the test file asks for ([microvms.md](microvms.md#auto)); `\"qemu\"`, `\"firecracker\"` or `\"cloud-hypervisor\"` ([microvms.md](microvms.md)), or `\"mock\"`: a machine without a VMM, which needs no image.",
		set: func(c *attest.MachineConfig, v any) { c.Backend = v.(string) },
	},
	{
		Name: "memory", JSON: "mem_size_mib", Type: Int, Shown: "1024",
		Doc: "MiB, 64 to 1048576.",
		set: func(c *attest.MachineConfig, v any) { c.Memory = v.(int) },
	},
	{
		Name: "cpus", JSON: "vcpu_count", Type: Int, Shown: "1",
		Doc: "1 to 255.",
		set: func(c *attest.MachineConfig, v any) { c.CPUs = v.(int) },
	},
	{
		Name: "numa", JSON: "numa", Type: Int, Shown: "none",
		Doc: "The number of NUMA nodes, on which memory and CPUs are in equal parts ([machines.md](machines.md#numa)). It divides `cpus`.",
		set: func(c *attest.MachineConfig, v any) { c.NUMA = v.(int) },
	},
	{
		Name: "networks", JSON: "vlans", Type: Ints, Shown: "`[1]`",
		Doc: "Numbers of networks, 1 to 255; `[]` for none. The first is `eth1`, the second `eth2`. A number can come twice. Machines on one network reach each other by name ([networks.md](networks.md)).",
		set: func(c *attest.MachineConfig, v any) { c.Networks = append([]int{}, v.([]int)...) },
	},
	{
		Name: "mac", JSON: "mac", Type: Strings, Shown: "planned",
		Doc: "MAC addresses of the cards, in their order; `\"\"` for the planned one ([networks.md](networks.md#addresses-and-names)).",
		set: func(c *attest.MachineConfig, v any) { c.MACs = append([]string(nil), v.([]string)...) },
	},
	{
		Name: "nic", JSON: "nic", Type: String, Shown: "`\"virtio\"`",
		Doc: "The model of all cards: `\"virtio\"`, `\"e1000\"`, `\"e1000e\"`, `\"rtl8139\"` or `\"vmxnet3\"`. Debian's cloud kernel knows the first and the last.",
		set: func(c *attest.MachineConfig, v any) { c.NIC = v.(string) },
	},
	{
		Name: "qemu", JSON: "qemu", Type: Strings, Shown: "`[]`",
		Doc: "Arguments that are appended to QEMU's own: `[\"-device\", \"i6300esb\"]`.",
		set: func(c *attest.MachineConfig, v any) { c.QEMU = append([]string(nil), v.([]string)...) },
	},
	{
		Name: "type", JSON: "type", Type: String, Shown: "`\"q35\"`",
		Doc: "QEMU's machine type, or `\"microvm\"`: no PCI bus, no keyboard, no screen.",
		set: func(c *attest.MachineConfig, v any) { c.Type = v.(string) },
	},
	{
		Name: "cmdline", JSON: "cmdline", Type: String, Shown: "`\"\"`",
		Doc: "Appended to the kernel's command line.",
		set: func(c *attest.MachineConfig, v any) { c.Cmdline = v.(string) },
	},
	{
		Name: "user", JSON: "user", Type: String, Shown: "the image's, or none",
		Doc: "Who logs in on the serial console of a guest without attest's initramfs ([foreign.md](foreign.md#a-login-on-the-serial-console)): root, or one whom sudo makes root.",
		set: func(c *attest.MachineConfig, v any) { c.User = v.(string) },
	},
	{
		Name: "password", JSON: "password", Type: String, Shown: "the image's, or none",
		Doc: "The password of `user`.",
		set: func(c *attest.MachineConfig, v any) { c.Password = v.(string) },
	},
	{
		Name: "root", JSON: "root", Type: String, Check: checkRoot, Shown: "the image's, or `\"overlay\"`",
		Doc: "The file system that `/` is on: `\"overlay\"`, or `\"ext4\"`, `\"xfs\"` or `\"btrfs\"` on a disk of its own ([machines.md](machines.md#the-root)).",
		set: func(c *attest.MachineConfig, v any) { c.Root = v.(string) },
	},
	{
		Name: "root_size", JSON: "root_size", Type: Size, Shown: "the image's, or `\"16G\"`",
		Doc: "The size of a root on a disk of its own, `\"64M\"` to `\"16T\"`.",
		set: func(c *attest.MachineConfig, v any) { c.RootSize = v.(int64) },
	},
	{
		Name: "disks", JSON: "disks", Type: Disks, Shown: "`[]`",
		Doc: "Disks beside the root: a list of `disk(…)` ([machines.md](machines.md#disks)).",
		set: func(c *attest.MachineConfig, v any) { c.Disks = append([]attest.Disk(nil), v.([]attest.Disk)...) },
	},
	{
		Name: "display", JSON: "display", Type: Bool, Shown: "`False`",
		Doc: "A VGA adapter ([screen.md](screen.md)).",
		set: func(c *attest.MachineConfig, v any) { c.Display = v.(bool) },
	},
	{
		Name: "egress", JSON: "egress", Type: Destinations, Shown: "`False`",
		Doc: "Where the machine may connect to outside of the lab: a list of destinations, or `True` for everywhere ([networks.md](networks.md#the-way-out)).",
		set: func(c *attest.MachineConfig, v any) { c.Egress = v.([]string) },
	},
	{
		Name: "files", JSON: "files", Type: Files, Path: true, Shown: "none",
		Doc: "Files that change: absolute path in the guest → content, as in `debian(files=)`. They lie over the image, and are part of no snapshot ([files.md](files.md#files-that-change)).",
		set: func(c *attest.MachineConfig, v any) { c.Files = v.(map[string]attest.File) },
	},
	{
		Name: "mount", JSON: "mount", Type: Paths, Path: true, Shown: "none",
		Doc: "The same for files and trees of the host: path in the guest → path of the host.",
		set: func(c *attest.MachineConfig, v any) { c.Mount = v.(map[string]string) },
	},
	{
		Name: "allow_reboot", JSON: "allow_reboot", Type: Bool, Shown: "`False`",
		Doc: "The guest may reboot by itself. Otherwise a reset ends the machine. `reboot()` works either way.",
		set: func(c *attest.MachineConfig, v any) { c.AllowReboot = v.(bool) },
	},
	{
		Name: "boot", JSON: "boot", Type: String, Check: checkBoot, Shown: "`\"warm\"`",
		Doc: "`\"warm\"` restores a machine that has booted before, `\"cold\"` boots ([snapshots.md](snapshots.md)).",
		set: func(c *attest.MachineConfig, v any) { c.Boot = attest.Boot(v.(string)) },
	},
	{
		Name: "boot_timeout", JSON: "boot_timeout", Type: Duration, Shown: "5 minutes",
		Doc: "How long the guest may take to boot ([waits.md](waits.md)). Longer by default on an emulated host.",
		set: func(c *attest.MachineConfig, v any) { c.BootTimeout = v.(time.Duration) },
	},
	{
		Name: "snapshot", JSON: "snapshot_path", Type: String, Path: true, Shown: "none",
		Doc: "The directory of a machine in a saved lab to start from ([snapshots.md](snapshots.md#files)).",
		set: func(c *attest.MachineConfig, v any) { c.Snapshot = v.(string) },
	},
	{
		JSON: "options", // put together from the keys of one backend
		set:  func(c *attest.MachineConfig, v any) { c.BackendOptions = v.([]byte) },
	},
	{
		JSON: "script",
		set:  func(c *attest.MachineConfig, v any) { c.MockScript = v.([]byte) },
	},
}

func checkRoot(v any) error {
	if known := attest.Roots(); !slices.Contains(known, v.(string)) {
		return fmt.Errorf("%q is not a file system that a root can have; it is one of %s", v, strings.Join(known, ", "))
	}
	return nil
}

func checkBoot(v any) error {
	switch attest.Boot(v.(string)) {
	case "", attest.BootWarm, attest.BootCold:
		return nil
	}
	return fmt.Errorf("%q is not a way to start a machine; it is %q or %q", v, attest.BootWarm, attest.BootCold)
}

// destinationsOf reads where a machine may connect to: True is everywhere.
func destinationsOf(v any) (any, error) {
	switch v := v.(type) {
	case bool:
		if v {
			return []string{"*"}, nil
		}
		return []string(nil), nil
	}
	return listOf[string](v, "a string")
}

// machineParams are the arguments of a function that makes a machine, all given by
// name.
func machineParams() []Param {
	var out []Param
	for _, f := range Fields {
		if f.Name != "" {
			out = append(out, Param{Name: f.Name, Type: f.Type, Default: Absent, Named: true, Path: f.Path, Check: f.Check, Doc: f.Doc})
		}
	}
	return out
}

// DeclareMachine is machine(…) of a test file, for its arguments: it declares a
// machine of labs that do not exist yet, and is not an operation of one.
var DeclareMachine = &Operation{Name: "machine", On: Lab, Params: machineParams(), Result: Type(Machine.String()), Doc: "Declares a machine. Its arguments are described in docs/machines.md."}

// MachineConfigOf is the machine that arguments describe.
func MachineConfigOf(a Args) attest.MachineConfig {
	var c attest.MachineConfig
	for _, f := range Fields {
		if f.Name != "" && a.Given(f.Name) {
			f.set(&c, a.values[f.Name])
		}
	}
	return c
}

// MachineConfigOfFile is the machine that the settings of a machine configuration
// file describe, by their keys; keys that concern no field are left out. Its error
// names the key.
func MachineConfigOfFile(settings map[string]any) (attest.MachineConfig, error) {
	var c attest.MachineConfig
	for _, f := range Fields {
		v, ok := settings[f.JSON]
		if !ok || f.JSON == "" {
			continue
		}
		var err error
		switch {
		case f.Type == Files:
			if v, err = FilesOf(v); err != nil {
				return c, fmt.Errorf("%s%w", f.JSON, err)
			}
		case slices.Contains(machineconfig.FurtherKeys, f.JSON):
			if v, err = f.fromJSON(v); err != nil {
				return c, err
			}
		}
		f.set(&c, v)
	}
	return c, nil
}

// fromJSON makes a value of a machine configuration file into one of the field's type.
// A disk is an object with the arguments of disk(…).
func (f Field) fromJSON(v any) (any, error) {
	v, err := withNumbers(v)
	if list, ok := v.([]any); ok && f.Type == Disks {
		for i := range list {
			if list[i], err = ImageOf(map[string]any{"disk": list[i]}); err != nil {
				return nil, fmt.Errorf("%s/%d: %w", f.JSON, i, err)
			}
		}
	}
	if err == nil {
		v, err = Param{Name: f.JSON, Type: f.Type, Check: f.Check}.convert(v)
	}
	return v, err
}

// FieldsPage is the table of fields in docs/machines.md.
func FieldsPage() string {
	var b strings.Builder
	b.WriteString("| argument | default | meaning |\n|---|---|---|\n")
	for _, f := range Fields {
		if f.Name != "" {
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.Name, f.Shown, f.Doc)
		}
	}
	return b.String()
}
