package attest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize/english"

	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/network"
	"github.com/attest-vm/attest/internal/network/egress"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/mock"
)

// LabConfig is a lab as plain data: machines, and by their Networks the
// networks between them. The zero value is a lab without machines.
type LabConfig struct {
	Name     string // for reports and directories; empty: "lab"
	Machines []MachineConfig
	// OutDir is where copy_from_machine and the like put files. Empty: the
	// current directory.
	OutDir string
	// FlatOutDir leaves out the directories of tests and machines below OutDir, as the
	// NixOS test driver does: of two things of one name the later one is kept.
	FlatOutDir bool
	// StateDir is where machines with a StartCommand have their files, in vm-state-NAME,
	// and find them again in a later lab. Such machines boot cold, and a directory belongs
	// to one lab at a time; forks of the lab do without. Empty: what a machine has
	// written ends with the lab.
	StateDir string
	// SourceDir is where relative paths of copy_from_host begin. Empty: the
	// current directory.
	SourceDir string
	// Seed is what all that is random in the lab depends on, such as which
	// frames a fault loses. 0: the environment's ATTEST_SEED, or another one every
	// time.
	Seed int64
	// KeepOnFailure is the directory below which go test saves the lab of a test
	// that fails, for attest debug. Empty: what the environment's ATTEST_KEEP says,
	// or nowhere.
	KeepOnFailure string

	// Networks says what is different about networks, by their numbers.
	Networks map[int]NetworkConfig

	created   []MachineConfig    // by CreateMachine, in this order
	addresses *network.Addresses // of a larger lab; nil: of the lab's own machines
	network   *networkState      // that the lab begins with, if it is a fork: a configuration and its state travel together
}

// NetworkConfig is one network as plain data. By default it has a host that serves planned
// addresses and names to guests that ask (docs/networks.md).
type NetworkConfig struct {
	NoDHCP bool `json:"no_dhcp,omitempty"` // neither DHCP nor DHCPv6, for a guest that serves it
	NoDNS  bool `json:"no_dns,omitempty"`  // no names
	NoRA   bool `json:"no_ra,omitempty"`   // no router advertisements
}

// MachineConfig is one machine as plain data.
type MachineConfig struct {
	Name    string // [A-Za-z0-9][A-Za-z0-9_-]*; also its host name
	Image   Image  // what it boots; or StartCommand
	Backend string // "qemu", …; empty or "auto": that of the HostConfig; attest run chooses one for each file
	Memory  int    // MiB; 0: 1024
	CPUs    int    // 0: 1
	// NUMA is on how many nodes the memory and the processors are, in equal parts; 0: the
	// machine has no nodes. The CPUs have to be a multiple of it.
	NUMA int
	// Networks are the numbers of the networks it is on, 1 to 255, with a card for each;
	// nil: network 1; empty: none. A number can be there again: the further card has no
	// address of the lab's.
	Networks []int
	MACs     []string // of the cards, in their order, such as "52:54:00:00:00:01"; "": the planned one
	NIC      string   // the model of all cards: "virtio" (default), "e1000", "e1000e", "rtl8139" or "vmxnet3"
	// QEMU are arguments that are appended to QEMU's own, for what attest has no setting
	// for: a watchdog, the base of the clock. What they open on this host is no part of
	// what is saved of the machine.
	QEMU    []string
	Type    string // QEMU's machine type: "q35" (default) or "microvm"
	Cmdline string // appended to the kernel's command line
	// User and Password are for a guest without attest's initramfs: that of a StartCommand,
	// a Disk with Boot, an image with an Initrd. attest logs in with them on the serial
	// console, ttyS0, at each boot, and puts its agent in from there. The user is root, or
	// one whom sudo makes root. Empty: the guest offers a root shell by itself
	// (docs/foreign.md).
	User, Password string
	// Root is the file system that the root is on. "ext4", "xfs" and "btrfs" are a disk
	// of its own, which the image's files were copied to once. "overlay" is the
	// image's read-only layers with an ext4 above. Empty: as the image says, or "overlay".
	Root string
	// RootSize is the size of a Root of its own, in bytes; 0: 16 GiB. What is not
	// written takes no space.
	RootSize int64
	// Disks are what it has beside its root. Each can be pulled out while the machine
	// runs, and others put in (Machine.Plug).
	Disks []Disk
	Boot  Boot // how it starts the first time; empty: as HostConfig.Boot says
	// Snapshot is the directory of a machine that Lab.Save or attest snapshot
	// build has written: the machine starts from that the first time, with its own
	// name and addresses. One that is damaged or does not fit is an error.
	Snapshot string
	// Display gives the machine a screen: a VGA adapter, which shows the guest's
	// first terminal. Terminals can be read and typed on without it.
	Display bool
	// BootTimeout is how long the guest may take from power on to its first
	// answer. 0: what BootTimeoutEnv says, or 5 minutes, more on a slow host.
	BootTimeout time.Duration
	// Egress is where the machine may connect to outside of the lab, which is
	// nowhere unless it says so: "*" is everywhere but this host and the metadata services
	// of clouds; a name, an address or a range of addresses, each with or without a port,
	// is there ("mirror.example.org:443", "10.0.0.0/8"); "host" is this host. docs/networks.md
	// has what each opens.
	Egress []string
	// StartCommand starts the machine in place of an image: a line of shell that
	// ends up in exec qemu… "$@", such as NixOS's run-NAME-vm (docs/foreign.md).
	// What it decides itself cannot be given with it: Memory, CPUs, NUMA, Type, Cmdline,
	// Display, Egress. Without a Name the machine is called NAME, or "machine".
	StartCommand string
	// AllowReboot lets the guest reboot by itself. Otherwise a guest that
	// resets ends, as with the NixOS driver; Machine.Reboot works either way.
	AllowReboot bool
	// Files are files that lie over those of the image, by their absolute path in the
	// guest, and Mount files and trees of the host, by their path in the guest as well.
	// The machine gets them at its first start, and what has changed of them on the host
	// whenever it goes on from a snapshot, such as in a fork. They are part of no image
	// and of no snapshot's key. Relative paths of the host begin at LabConfig.SourceDir.
	// See docs/files.md.
	Files map[string]File
	Mount map[string]string
	// BackendOptions are what only the machine's backend has, as a JSON object
	// (docs/microvms.md). Another backend refuses them.
	BackendOptions json.RawMessage `json:",omitempty"`
	// MockScript are the canned answers of a machine of the backend "mock", which
	// needs no image (docs/mock.md): JSON. Empty, or an empty object: its commands
	// are executed, in namespaces of this host.
	MockScript json.RawMessage `json:",omitempty"`
}

const (
	minMemory  = 64
	maxMemory  = 1 << 20
	maxCPUs    = 255
	maxNetwork = 255
)

var machineName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)

func (c *LabConfig) normalize() error {
	if c.Name == "" {
		c.Name = "lab"
	}
	if err := c.chooseSeed(); err != nil {
		return err
	}
	for n := range c.Networks {
		if n < 1 || n > maxNetwork {
			return &ConfigError{"lab", fmt.Sprintf("network %d is out of range; want 1 to %d", n, maxNetwork)}
		}
	}
	seen := map[string]bool{}
	for i := range c.Machines {
		m := &c.Machines[i]
		if err := m.normalize(); err != nil {
			return err
		}
		// Host names do not differ by case, and neither do the names in the
		// other machines' /etc/hosts.
		key := strings.ToLower(m.Name)
		if seen[key] {
			return &ConfigError{fmt.Sprintf("machine %q", m.Name), "there are two machines of this name; give one of them another name"}
		}
		seen[key] = true
	}
	return nil
}

// seedEnv repeats the random decisions of an earlier go test.
const seedEnv = "ATTEST_SEED"

func (c *LabConfig) chooseSeed() error {
	if text := os.Getenv(seedEnv); c.Seed == 0 && text != "" {
		seed, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return &ConfigError{seedEnv, fmt.Sprintf("%q is not a number between %d and %d", text, math.MinInt64, math.MaxInt64)}
		}
		c.Seed = seed
	}
	for c.Seed == 0 {
		c.Seed = rand.Int64()
	}
	return nil
}

func (m *MachineConfig) normalize() error {
	bad := func(format string, args ...any) error {
		return &ConfigError{fmt.Sprintf("machine %q", m.Name), fmt.Sprintf(format, args...)}
	}
	if m.Name == "" && m.StartCommand != "" {
		m.Name = cmp.Or((&vmm.Command{Line: m.StartCommand}).MachineName(), "machine")
	}
	if !machineName.MatchString(m.Name) {
		return bad("not a machine name: want letters, digits, - and _, at most 63, beginning with a letter or a digit (it is the host name too)")
	}
	var err error
	switch {
	case mocks(m.Backend):
		err = m.normalizeMock(bad)
	case m.StartCommand != "":
		err = m.normalizeForeign()
	default:
		err = m.normalizeOwn(bad)
	}
	if err != nil {
		return err
	}
	if m.Boot != "" {
		if _, err := m.Boot.resolve(); err != nil {
			return bad("%q is not a way to boot; want %s or %s", m.Boot, BootWarm, BootCold)
		}
	}
	if err := m.normalizeOverlays(); err != nil {
		return bad("%v", err)
	}
	if err := m.normalizeLogin(bad); err != nil {
		return err
	}
	if _, err := egress.ParseRules(m.Egress); err != nil {
		return bad("egress: %v", err)
	}
	if m.Networks == nil {
		m.Networks = []int{1}
	}
	for _, n := range m.Networks {
		if n < 1 || n > maxNetwork {
			return bad("network %d is out of range; want 1 to %d", n, maxNetwork)
		}
	}
	if ordered := slices.Sorted(slices.Values(m.Networks)); m.StartCommand != "" && len(slices.Compact(ordered)) < len(m.Networks) {
		return bad("a network is listed twice; which cards a start command gives its machine is its own affair")
	}
	if len(m.Networks) > maxCards {
		return bad("it has %d network cards; the limit is %d", len(m.Networks), maxCards)
	}
	if len(m.MACs) > len(m.Networks) {
		return bad("mac has %d addresses, and the machine has %d network cards", len(m.MACs), len(m.Networks))
	}
	_, err = m.macs()
	if err != nil {
		return bad("%v", err)
	}
	return nil
}

// maxCards is as many as there are places for on a PCI bus.
const maxCards = 16

// macs are the addresses of the cards that have one of their own.
func (m MachineConfig) macs() ([]net.HardwareAddr, error) {
	var out []net.HardwareAddr
	for _, text := range m.MACs {
		if text == "" {
			out = append(out, nil)
			continue
		}
		mac, err := net.ParseMAC(text)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return nil, fmt.Errorf("mac: %q is not an address of one network card, such as 52:54:00:00:00:01", text)
		}
		out = append(out, mac)
	}
	return out, nil
}

// needsImage reports whether the machine cannot be without the image that it lacks.
func (m MachineConfig) needsImage() bool {
	return m.Image == nil && m.StartCommand == "" && !mocks(m.Backend)
}

// normalizeOwn is normalize for a machine with an image.
func (m *MachineConfig) normalizeOwn(bad func(string, ...any) error) error {
	if m.needsImage() {
		return bad("it has neither an image nor a start command; give it one of the two")
	}
	if m.Memory == 0 {
		m.Memory = vmm.DefaultMemory
	}
	if m.Memory < minMemory || m.Memory > maxMemory {
		return bad("a memory of %d MiB is out of range; want %d to %d", m.Memory, minMemory, maxMemory)
	}
	if m.CPUs == 0 {
		m.CPUs = 1
	}
	if m.CPUs < 1 || m.CPUs > maxCPUs {
		return bad("%s: out of range; want 1 to %d", english.Plural(m.CPUs, "CPU", ""), maxCPUs)
	}
	if err := m.normalizeNUMA(bad); err != nil {
		return err
	}
	if err := m.normalizeDisks(bad); err != nil {
		return err
	}
	if m.firmware() != "" && m.Cmdline != "" {
		return bad("cmdline: the loader on the disk gives its kernel a command line of its own; leave out cmdline, or boot")
	}
	return m.normalizeRoot(bad)
}

// normalizeNUMA refuses nodes among which memory and processors cannot be divided.
func (m *MachineConfig) normalizeNUMA(bad func(string, ...any) error) error {
	switch {
	case m.NUMA == 0:
	case m.NUMA < 0:
		return bad("numa: %d nodes: out of range; want 1 to %d", m.NUMA, maxCPUs)
	case m.NUMA > m.CPUs:
		return bad("numa: %s need a CPU each, and the machine has %d; give it more", english.Plural(m.NUMA, "node", ""), m.CPUs)
	case m.CPUs%m.NUMA != 0:
		return bad("numa: %s are not the same number on each of %s; give it a multiple of that", english.Plural(m.CPUs, "CPU", ""), english.Plural(m.NUMA, "node", ""))
	case m.Memory/m.NUMA < minMemory:
		return bad("numa: %d MiB are less than %d MiB on each of %s; give it more memory", m.Memory, minMemory, english.Plural(m.NUMA, "node", ""))
	}
	return nil
}

// normalizeForeign is normalize for a machine with a start command, which decides
// most of what others are asked.
func (m *MachineConfig) normalizeForeign() error {
	for _, setting := range []struct {
		name  string
		given bool
	}{
		{"an image", m.Image != nil}, {"an amount of memory", m.Memory != 0}, {"a number of CPUs", m.CPUs != 0}, {"NUMA nodes", m.NUMA != 0}, {"a machine type", m.Type != ""},
		{"a kernel command line", m.Cmdline != ""}, {"a root", m.Root != ""}, {"the size of a root", m.RootSize != 0}, {"disks", len(m.Disks) > 0},
		{"MAC addresses", len(m.MACs) > 0}, {"a model of network cards", m.NIC != ""}, {"arguments of QEMU", len(m.QEMU) > 0}, {"a display", m.Display}, {"egress", len(m.Egress) > 0},
	} {
		if setting.given {
			return &ConfigError{fmt.Sprintf("machine %q", m.Name), fmt.Sprintf(
				"it has both a start command and %s; the start command decides that. Leave out one of the two", setting.name)}
		}
	}
	return nil
}

// bare reports whether the guest boots without attest's initramfs.
func (m MachineConfig) bare() bool { return m.firmware() != "" || m.initrd() != "" || m.ownKernel() }

// firmware is what starts the machine: "bios" or "uefi"; empty: a kernel is loaded for it.
func (m MachineConfig) firmware() string {
	if m.ownKernel() {
		return ""
	}
	d, _ := m.Image.(Disk)
	return d.Boot
}

// ownKernel reports whether the kernel of a disk's declaration starts what is on the disk.
func (m MachineConfig) ownKernel() bool {
	d, _ := m.Image.(Disk)
	return d.Boot == image.KernelBoot
}

// initrd is the path of an initrd that the kernel gets instead of attest's.
func (m MachineConfig) initrd() string {
	if m.Image == nil {
		return ""
	}
	return m.Image.spec().Kernel().Initrd
}

// foreign reports whether the guest has to be reached in a way that it offers itself.
func (m MachineConfig) foreign() bool { return m.StartCommand != "" || m.bare() }

// normalizeLogin takes the login from the image where the machine does not say it.
func (m *MachineConfig) normalizeLogin(bad func(string, ...any) error) error {
	if d, ok := m.Image.(Disk); ok && m.User == "" {
		m.User, m.Password = d.User, cmp.Or(m.Password, d.Password)
	}
	switch {
	case m.User == "" && m.Password != "":
		return bad("it has a password and no user; give both")
	case m.User != "" && !m.foreign():
		return bad("user and password are for a guest that does not boot with attest's initramfs: disk(…, boot=\"bios\"), boot=\"uefi\", initrd=…, or a start command; leave them out, or say how it boots")
	case strings.ContainsFunc(m.User+m.Password, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return bad("user and password are typed on the serial console, and cannot have control characters")
	}
	return nil
}

// defaultBackend can do everything.
const defaultBackend = "qemu"

// Boot is how machines start the first time.
type Boot string

const (
	// BootWarm restores a machine that has booted before, and gives it its identity
	// (docs/snapshots.md). What it is restored from is made when there is none,
	// and kept in the cache. It is the default.
	BootWarm Boot = "warm"
	// BootCold boots.
	BootCold Boot = "cold"
)

// BootEnv names the environment variable that says how machines start where
// HostConfig does not.
const BootEnv = "ATTEST_BOOT"

func (b Boot) resolve() (Boot, error) {
	switch b = cmp.Or(b, Boot(os.Getenv(BootEnv)), BootWarm); b {
	case BootWarm, BootCold:
		return b, nil
	}
	return b, &ConfigError{"boot", fmt.Sprintf("%q is not a way to start machines; want %s or %s", string(b), BootWarm, BootCold)}
}

// check refuses a configuration that no lab can be made of, with a *ConfigError.
func (c LabConfig) check() error {
	c.Machines = slices.Clone(c.Machines)
	if err := c.normalize(); err != nil {
		return err
	}
	for _, m := range c.Machines {
		if m.Backend == "" || m.Backend == "auto" {
			continue
		}
		if _, ok := vmm.Lookup(m.Backend); !ok {
			return &ConfigError{fmt.Sprintf("machine %q", m.Name), fmt.Sprintf("unknown backend %q; this attest has %s", m.Backend, strings.Join(vmm.Names(), ", "))}
		}
	}
	return nil
}

func (c MachineConfig) lookupBackend() (vmm.Backend, error) {
	b, ok := vmm.Lookup(c.Backend)
	if !ok {
		return nil, &ConfigError{fmt.Sprintf("machine %q", c.Name), fmt.Sprintf("unknown backend %q; this attest has %s", c.Backend, strings.Join(vmm.Names(), ", "))}
	}
	return b, nil
}

// mocks reports whether a backend of this name has mock machines, and no others.
func mocks(backend string) bool {
	b, _ := vmm.Lookup(backend)
	return vmm.Pretends(b)
}

// normalizeMock is normalize for a machine of a mock backend. What other backends
// would boot is left alone, so that a test file can be tried without them.
func (m *MachineConfig) normalizeMock(bad func(string, ...any) error) error {
	if m.StartCommand != "" {
		return &UnsupportedError{Machine: m.Name, Operation: "start_command", Backend: m.Backend, Reason: "a mock starts no VMM", Can: []string{"qemu"}}
	}
	if len(m.MockScript) > 0 {
		if _, err := mock.ParseScript(m.MockScript); err != nil {
			return bad("script: %v", err)
		}
		// A saved lab has it in other lines, and is to be the same.
		var compact bytes.Buffer
		if err := json.Compact(&compact, m.MockScript); err != nil {
			return bad("script: %v", err)
		}
		m.MockScript = compact.Bytes()
	}
	return nil
}
