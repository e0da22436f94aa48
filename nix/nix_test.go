// Package nix has no code: these tests evaluate the Nix files beside them.
package nix

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/attest-vm/attest/internal/machineconfig"
	"github.com/attest-vm/attest/internal/network"
)

var update = flag.Bool("update", false, "rewrite vendor.hash")

// nixCommand runs one of Nix' programs with a store of its own.
func nixCommand(t *testing.T, name string, args ...string) ([]byte, error) {
	t.Helper()
	program, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v; scripts/setup test installs it", err)
	}
	state := t.TempDir()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "NIX_STATE_DIR="+state, "NIX_LOG_DIR="+state, "HOME="+state, "NIX_CONFIG=", "NIX_STORE_DIR="+filepath.Join(state, "store"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", name, err, stderr.String())
	}
	return out, err
}

// files are all Nix files of the repository.
func files(t *testing.T) []string {
	t.Helper()
	files := []string{"../flake.nix", "../default.nix"}
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if filepath.Ext(path) == ".nix" {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestParse(t *testing.T) {
	if _, err := nixCommand(t, "nix-instantiate", append([]string{"--parse"}, files(t)...)...); err != nil {
		t.Error(err)
	}
}

// Debian has no nixfmt: this is for those who have it.
func TestFormat(t *testing.T) {
	nixfmt, err := exec.LookPath("nixfmt")
	if err != nil {
		t.Skip("no nixfmt to compare the files with what it makes of them")
	}
	if out, err := exec.CommandContext(t.Context(), nixfmt, append([]string{"--check"}, files(t)...)...).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// An evaluation is what tests/evaluate.nix comes to.
type evaluation struct {
	QEMU, Starlark, Firecracker, Split evaluated
	Old                                map[string]configuration
	Function                           string
	Modules                            map[string]framework
	Outputs                            map[string][]string
	Users                              struct {
		MakeTest configuration
		Module   framework
		Line     string
	}
	Checks                          map[string]configuration
	Examples                        map[string]map[string]configuration // by name and language
	Bench, Budget, Package, Version string
	WithDebian                      string // how a package with what builds Debian images is installed
	Arguments                       struct {
		Names                     []string
		Without, WithoutOnMicroVM evaluated
		Given                     map[string]evaluated
	}
	OfANode      evaluated
	Options      map[string]evaluated // by the name of one that the nodes set
	SnapshotKeys map[string]string
	AArch64      map[string]evaluated // by backend
	Platforms    map[string][]string  // what a system's packages and checks are for
	Tests        []string             // of the package
}

type configuration struct {
	Machines      []json.RawMessage
	VLANs         []int
	GlobalTimeout int
}

type evaluated struct {
	Name, Mine                  string
	Meta                        struct{ Description string }
	Config                      configuration
	Features                    []string
	Script, Driver, Interactive string
	Text                        string // of the test's script
	Machines                    map[string]node
	VMs, Rootfs, Snapshots      map[string]string
}

type node struct {
	ExtraHosts                           string
	Interfaces                           map[string]map[string]struct{ Addresses []address }
	DefaultGateway                       *string
	UseDHCP, DHCPCD                      bool
	KernelParams, KernelModules, Modules []string
	FileSystems                          map[string]struct {
		Device, FsType string
		Overlay        struct {
			LowerDir          []string
			UpperDir, WorkDir string
		}
	}
	Units map[string]struct {
		Script, Exec string
		Before       []string
		Enable       *bool
	}
	QEMU, Packages []string
	Memory, Cores  int
	Journal        string // the terminal that the journal goes to
	Firewall       bool
}

// A framework is a test of NixOS' framework of some era with attest's module.
type framework struct {
	Driver string // what makes it
	Node   struct {
		UseNixStoreImage  bool
		SharedDirectories int
		Agent             bool
	}
}

type address struct {
	Address      string
	PrefixLength int
}

// libraries are those with which everything is evaluated.
func libraries(t *testing.T) map[string]string {
	all := map[string]string{"ours": ""}
	if lib := os.Getenv("NIXPKGS_LIB"); lib != "" {
		all["nixpkgs"] = lib
	} else {
		t.Log("NIXPKGS_LIB names no lib of nixpkgs: evaluated with the small one of tests/ alone")
	}
	return all
}

func TestEvaluate(t *testing.T) {
	for name, lib := range libraries(t) {
		t.Run(name, func(t *testing.T) {
			out, err := nixCommand(t, "nix-instantiate", "--eval", "--readonly-mode", "--strict", "--json", "--expr",
				fmt.Sprintf("import %s { nixpkgsLib = %q; }", absolute(t, "tests/evaluate.nix"), lib))
			if err != nil {
				t.Fatal(err)
			}
			var e evaluation
			if err := json.Unmarshal(out, &e); err != nil {
				t.Fatal(err)
			}
			t.Run("qemu", func(t *testing.T) { e.qemu(t) })
			t.Run("firecracker", func(t *testing.T) { e.firecracker(t) })
			t.Run("split", func(t *testing.T) { e.split(t) })
			t.Run("old", func(t *testing.T) { e.old(t) })
			t.Run("modules", func(t *testing.T) { e.modules(t) })
			t.Run("flake", func(t *testing.T) { e.flake(t) })
			t.Run("aarch64", func(t *testing.T) { e.aarch64(t) })
			t.Run("arguments", func(t *testing.T) { e.arguments(t) })
			t.Run("options", func(t *testing.T) { e.options(t) })
			t.Run("snapshots", func(t *testing.T) { e.snapshots(t) })
			if e.Function != "assert 'server'\n" {
				t.Errorf("a test script that is a function came to %q", e.Function)
			}
		})
	}
}

// Nix itself evaluates all outputs of the flake for both systems, with the packages of tests/ in the
// place of nixpkgs.
func TestFlake(t *testing.T) {
	dir := t.TempDir()
	// As much of the repository as its outputs are evaluated from.
	err := os.CopyFS(filepath.Join(dir, "nix"), os.DirFS("."))
	for _, name := range []string{"cmd", "internal", "scripts"} {
		err = errors.Join(err, os.Mkdir(filepath.Join(dir, name), 0o755))
	}
	for _, name := range []string{"flake.nix", "default.nix", "LICENSE", "go.mod", "go.sum"} {
		text, readErr := os.ReadFile(filepath.Join("..", name))
		err = errors.Join(err, readErr, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nixCommand(t, "nix", "--extra-experimental-features", "nix-command flakes", "flake", "check", "--no-build", "--no-write-lock-file",
		"--override-input", "nixpkgs", "path:"+dir+"/nix/tests", "path:"+dir); err != nil {
		t.Error(err)
	}
}

// What makes no sense is refused with the name of the test and of what is wrong.
func TestRefused(t *testing.T) {
	for args, want := range map[string]string{
		`{ backend = "xen"; }`:                                       `attest: test t: unknown backend "xen"; want qemu, firecracker, cloud-hypervisor`,
		`{ backend = "nspawn"; }`:                                    `attest: test t: containers (systemd-nspawn) are not supported; a node is a machine on qemu, firecracker, cloud-hypervisor`,
		`{ containers.box = { }; }`:                                  `attest: test t: containers (systemd-nspawn) are not supported; a node is a machine on qemu, firecracker, cloud-hypervisor`,
		`{ test = "def test_x(): pass"; }`:                           `attest: test t: give either testScript (Python) or test (Starlark)`,
		`{ testScript = null; }`:                                     `attest: test t: give either testScript (Python) or test (Starlark)`,
		`{ nodes = { }; }`:                                           `attest: test t: it has no nodes`,
		`{ hugePages = true; }`:                                      `attest: test t: hugePages is for firecracker`,
		`{ entropy = false; }`:                                       `attest: test t: entropy = false is for firecracker; a machine on qemu has a source of random numbers always`,
		`{ splitStore = true; }`:                                     `attest: test t: splitStore is for firecracker and cloud-hypervisor`,
		`{ memorysize = 512; }`:                                      `called with unexpected argument 'memorysize'`,
		`{ nodes.server.testing.vlan = 1; }`:                         "The option `testing.vlan' does not exist.",
		`{ nodes.server.testing.vlans = "1"; }`:                      `the option testing.vlans is not of type list of int`,
		`(ours.nixos-test-driver.override { enableNspawn = true; })`: `attest: containers (systemd-nspawn) are not supported: make them nodes, or let this test have NixOS' own driver`,
		`(ours.perfBudget { checks.web = { test = ours.attest; budget = { }; }; })`:   `attest: perf-budget: check web has no budget`,
		`(ours.makeSnapshot { name = "s"; machine = { name = "s"; }; units = "x"; })`: `called with unexpected argument 'units'`,
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			made := args
			if strings.HasPrefix(args, "{") {
				made = `(ours.makeTest ({ name = "t"; nodes.server = { }; testScript = ""; } // ` + args + `))`
			}
			_, err := nixCommand(t, "nix-instantiate", "--eval", "--readonly-mode", "--expr",
				fmt.Sprintf("let lib = import %s; pkgs = import %s { inherit lib; }; ours = import %s { inherit pkgs; }; in %s.drvPath",
					absolute(t, "tests/lib.nix"), absolute(t, "tests/pkgs.nix"), absolute(t, "."), made))
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v; want %s", err, want)
			}
		})
	}
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// read has attest's own reader read a configuration.
func read(t *testing.T, c configuration) *machineconfig.File {
	t.Helper()
	text, err := json.Marshal(map[string]any{"machines": c.Machines, "vlans": c.VLANs, "global_timeout": c.GlobalTimeout})
	if err != nil {
		t.Fatal(err)
	}
	f, err := machineconfig.Parse("machines.json", text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return f
}

func (e evaluation) qemu(t *testing.T) {
	f := read(t, e.QEMU.Config)
	var machines []network.Machine
	for _, m := range f.Machines {
		machines = append(machines, network.Machine{Name: m.Name, Networks: m.VLANs})
		if m.Backend != "qemu" || !strings.HasSuffix(m.StartCommand, "/bin/run-"+m.Name+"-vm") || !strings.HasPrefix(m.StartCommand, e.QEMU.VMs[m.Name]) {
			t.Errorf("%s: started by %q on %s", m.Name, m.StartCommand, m.Backend)
		}
	}
	plan(t, machines, e.QEMU.Machines, 1)
	for name, n := range e.QEMU.Machines {
		if b := n.Units["backdoor"]; !strings.Contains(b.Script, `echo "Spawning backdoor root shell..."`) {
			t.Errorf("%s: the backdoor is %q", name, b.Script)
		}
		if a := n.Units["attest-agent"]; !strings.Contains(a.Script, "exec -a attest-install /run/attest/agent") || !slices.Contains(a.Before, "backdoor.service") {
			t.Errorf("%s: the agent's unit is %+v", name, a)
		}
		if _, ok := n.Units["vsock-backdoor"]; ok {
			t.Errorf("%s: it has a backdoor on vsock", name)
		}
		if u := n.Units["serial-getty@ttyS0"]; u.Enable == nil || *u.Enable {
			t.Errorf("%s: somebody logs in on the console", name)
		}
		if !slices.Contains(n.KernelParams, "console=ttyS0") || !slices.Contains(n.KernelParams, "no_timer_check") {
			t.Errorf("%s: its kernel has %v", name, n.KernelParams)
		}
		if n.UseDHCP || n.DHCPCD || n.DefaultGateway != nil {
			t.Errorf("%s: it waits for DHCP (%v, %v) or has a gateway (%v)", name, n.UseDHCP, n.DHCPCD, n.DefaultGateway)
		}
	}
	planned, _ := network.Plan(machines)
	for _, m := range planned {
		var want []string
		for _, i := range m.Interfaces {
			want = append(want, fmt.Sprintf(`-netdev vde,id=vlan%d,sock="$QEMU_VDE_SOCKET_%[1]d"`, i.Network),
				fmt.Sprintf("-device virtio-net-pci,netdev=vlan%d,mac=%s", i.Network, i.MAC))
		}
		if diff := cmp.Diff(want, e.QEMU.Machines[m.Name].QEMU, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: %s", m.Name, diff)
		}
	}
	if diff := cmp.Diff([]string{"nixos-test", "kvm"}, e.QEMU.Features); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(e.QEMU.Driver, "/bin/attest check ") || !strings.Contains(e.QEMU.Driver, "test.py") || !strings.Contains(e.Starlark.Driver, "test.star") {
		t.Errorf("drivers:\n%s\n%s", e.QEMU.Driver, e.Starlark.Driver)
	}
	if strings.Contains(e.QEMU.Driver, "--interactive") || !strings.Contains(e.QEMU.Interactive, "--interactive") {
		t.Errorf("drivers:\n%s\n%s", e.QEMU.Driver, e.QEMU.Interactive)
	}
}

// plan compares addresses and names with what attest itself would give. A card of
// VMMs that have none of their own is the first.
func plan(t *testing.T, machines []network.Machine, nodes map[string]node, first int) {
	t.Helper()
	planned, err := network.Plan(machines)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range planned {
		var hosts strings.Builder
		for _, h := range planned.Hosts(m.Name) {
			fmt.Fprintln(&hosts, h.Addr, h.Name)
		}
		n := nodes[m.Name]
		// The text is one definition of several, so a newline may end it.
		if diff := cmp.Diff(hosts.String(), strings.TrimRight(n.ExtraHosts, "\n")+"\n"); diff != "" {
			t.Errorf("%s: /etc/hosts: %s", m.Name, diff)
		}
		if len(n.Interfaces) != len(m.Interfaces) {
			t.Errorf("%s: %d interfaces, want %d", m.Name, len(n.Interfaces), len(m.Interfaces))
		}
		for i, want := range m.Interfaces {
			got := n.Interfaces[fmt.Sprint("eth", first+i)]
			if diff := cmp.Diff([]address{{want.IPv4.Addr().String(), want.IPv4.Bits()}}, got["ipv4"].Addresses); diff != "" {
				t.Errorf("%s: %s", m.Name, diff)
			}
			if diff := cmp.Diff([]address{{want.IPv6.Addr().String(), want.IPv6.Bits()}}, got["ipv6"].Addresses); diff != "" {
				t.Errorf("%s: %s", m.Name, diff)
			}
		}
	}
}

func (e evaluation) firecracker(t *testing.T) {
	var machines []network.Machine
	for _, m := range read(t, e.Firecracker.Config).Machines {
		machines = append(machines, network.Machine{Name: m.Name, Networks: m.VLANs, MicroVM: true})
		if m.Backend != "firecracker" || m.Memory != 384 || m.CPUs != 2 || m.HugePages != "2M" || m.Entropy || m.StoreImage != "" ||
			m.KernelImage != "/nix/store/kernel-dev/vmlinux" || !strings.HasSuffix(m.Rootfs, "-attest-root-"+m.Name+"/rootfs.ext4") ||
			!strings.Contains(m.KernelArgs, "/store/") || !strings.Contains(m.KernelArgs, " init=") || !strings.Contains(m.KernelArgs, "reboot=k") {
			t.Errorf("%+v", m)
		}
	}
	plan(t, machines, e.Firecracker.Machines, 0)
	for name, n := range e.Firecracker.Machines {
		if _, ok := n.Units["vsock-backdoor"]; !ok {
			t.Errorf("%s: it has no backdoor on vsock", name)
		}
		for _, module := range []string{"virtio_mmio", "virtio_pci", "vmw_vsock_virtio_transport", "erofs"} {
			if !strings.Contains(strings.Join(n.Modules, " "), module) {
				t.Errorf("%s: no module %s in %v", name, module, n.Modules)
			}
		}
		if root := n.FileSystems["/"]; root.Device != "/dev/vda" || root.FsType != "ext4" {
			t.Errorf("%s: its root is %+v", name, root)
		}
	}
	if len(e.Firecracker.VMs) != 0 || len(e.Firecracker.Rootfs) != 3 || !strings.Contains(e.Firecracker.Rootfs["server"], "store-paths") {
		t.Errorf("%v\n%v", e.Firecracker.VMs, e.Firecracker.Rootfs)
	}
}

func (e evaluation) split(t *testing.T) {
	for _, m := range read(t, e.Split.Config).Machines {
		if m.Backend != "cloud-hypervisor" || !strings.HasSuffix(m.StoreImage, "-attest-store-t/store.erofs") || !strings.HasSuffix(m.SnapshotPath, "-attest-snapshot-"+m.Name+"/"+m.Name) {
			t.Errorf("%+v", m)
		}
		if fs := e.Split.Machines[m.Name].FileSystems["/nix/.ro-store"]; fs.Device != "/dev/vdb" || fs.FsType != "erofs" {
			t.Errorf("%s: its store is %+v", m.Name, fs)
		}
		o := e.Split.Machines[m.Name].FileSystems["/nix/store"].Overlay
		if diff := cmp.Diff([]string{"/nix/.ro-store", "/nix/.rw-store/upper", "/nix/.rw-store/work"}, append(o.LowerDir, o.UpperDir, o.WorkDir)); diff != "" {
			t.Errorf("%s: its store lies over %s", m.Name, diff)
		}
		if strings.Contains(e.Split.Rootfs[m.Name], "cp -a") {
			t.Errorf("%s: its root has a store:\n%s", m.Name, e.Split.Rootfs[m.Name])
		}
		if !strings.Contains(e.Split.Snapshots[m.Name], "attest snapshot build") {
			t.Errorf("%s: its snapshot is made by\n%s", m.Name, e.Split.Snapshots[m.Name])
		}
	}
	if !strings.Contains(e.Split.Driver, "--verbose") {
		t.Errorf("the driver has no argument of its test:\n%s", e.Split.Driver)
	}
}

// On another processor machines have another kernel, and most of them another console.
func (e evaluation) aarch64(t *testing.T) {
	if diff := cmp.Diff(map[string][]string{"x86_64-linux": {"x86_64-linux"}, "aarch64-linux": {"aarch64-linux"}}, e.Platforms); diff != "" {
		t.Errorf("packages and checks are for %s", diff)
	}
	consoles := map[string]string{"qemu": "ttyAMA0", "firecracker": "ttyS0", "cloud-hypervisor": "ttyAMA0"}
	for backend, console := range consoles {
		test := e.AArch64[backend]
		for _, m := range read(t, test.Config).Machines {
			if backend == "qemu" {
				if !strings.HasSuffix(m.StartCommand, "/bin/run-"+m.Name+"-vm") {
					t.Errorf("%s on %s is started by %q", m.Name, backend, m.StartCommand)
				}
			} else if m.KernelImage != "/nix/store/kernel/Image" || !slices.Contains(strings.Fields(m.KernelArgs), "console="+console) || strings.Contains(m.KernelArgs, "i8042") {
				t.Errorf("%s on %s boots %s with %q", m.Name, backend, m.KernelImage, m.KernelArgs)
			}
		}
		for name, n := range test.Machines {
			getty := n.Units["serial-getty@"+console]
			if !slices.Contains(n.KernelParams, "console="+console) || slices.Contains(n.KernelParams, "no_timer_check") || n.Journal != "/dev/"+console || getty.Enable == nil || *getty.Enable {
				t.Errorf("%s on %s: its kernel has %v, its journal goes to %s, and its console's getty is %+v", name, backend, n.KernelParams, n.Journal, getty)
			}
			if b, ok := n.Units["backdoor"]; ok != (backend == "qemu") || ok && !strings.Contains(b.Script, "2>/dev/"+console+";") {
				t.Errorf("%s on %s: the backdoor is %q", name, backend, b.Script)
			}
			for _, d := range n.QEMU {
				if strings.HasPrefix(d, "-device ") && !strings.HasPrefix(d, "-device virtio-net-pci,") {
					t.Errorf("%s has the device %s", name, d)
				}
			}
		}
		if len(test.Machines) != 3 {
			t.Errorf("%d machines on %s", len(test.Machines), backend)
		}
	}
}

func (e evaluation) old(t *testing.T) {
	for backend, c := range e.Old {
		for _, m := range read(t, c).Machines {
			if m.Backend != backend {
				t.Errorf("%s is on %s", backend, m.Backend)
			}
			if backend == "qemu" {
				continue
			}
			if want := map[string]int{"firecracker": 512, "cloud-hypervisor": 256}[backend]; m.Memory != want || len(m.VLANs) != 0 {
				t.Errorf("%+v", m)
			}
		}
	}
	if len(e.Old) != 3 {
		t.Errorf("%d of 3", len(e.Old))
	}
}

// In each era of NixOS' framework attest's driver is run, and machines can be saved.
func (e evaluation) modules(t *testing.T) {
	if len(e.Modules) != 3 {
		t.Errorf("%d eras", len(e.Modules))
	}
	for era, f := range e.Modules {
		if !strings.Contains(f.Driver, "nixos-test-driver") {
			t.Errorf("%s: the driver is made by\n%s", era, f.Driver)
		}
		if n := f.Node; !n.UseNixStoreImage || n.SharedDirectories != 0 || !n.Agent {
			t.Errorf("%s: a node has %+v", era, n)
		}
	}
	if old := e.Modules["before"]; !strings.Contains(old.Driver, "--set startScripts") || !strings.Contains(old.Driver, "/bin/run-server-vm") || !strings.Contains(old.Driver, "--set vlans '1 2'") {
		t.Errorf("before there was an option: %s", old.Driver)
	}
}

// What the flake gives, and what all its checks and examples come to.
func (e evaluation) flake(t *testing.T) {
	want := map[string][]string{
		"apps": {"default"}, "formatter": {"aarch64-linux", "x86_64-linux"}, "devShells": {"default"}, "lib": {"makeDriver", "makeRootfs", "makeSharedStoreImage", "makeSnapshot", "makeStoreImage", "makeTest", "perfBudget"},
		"nixosModules": {"test", "testInstrumentation"}, "overlays": {"default"}, "packages": {"attest", "bench", "default", "nixos-test-driver"},
		"checks": {
			"cloud-hypervisor-network", "cloud-hypervisor-prebuilt", "cloud-hypervisor-smoke", "cloud-hypervisor-snapshot", "cloud-hypervisor-split",
			"firecracker-network", "firecracker-prebuilt", "firecracker-smoke", "firecracker-snapshot", "firecracker-split",
			"integration", "integration-multi-vm", "make-test-multi", "make-test-smoke", "starlark",
		},
	}
	if diff := cmp.Diff(want, e.Outputs); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want["checks"], e.Tests); diff != "" {
		t.Errorf("the package's tests: %s", diff)
	}
	if diff := cmp.Diff(e.QEMU.Config, e.Users.MakeTest); diff != "" {
		t.Errorf("the flake's makeTest makes another test: %s", diff)
	}
	if diff := cmp.Diff(e.Modules["settable"].Node, e.Users.Module.Node); diff != "" || !strings.Contains(e.Users.Module.Driver, "nixos-test-driver") {
		t.Errorf("the flake's module is another one: %s\n%s", diff, e.Users.Module.Driver)
	}
	if !strings.Contains(e.Users.Line, "nixos-test-driver") {
		t.Errorf("one line makes the driver by\n%s", e.Users.Line)
	}
	for name, c := range e.Checks {
		backend, _, ok := strings.Cut(name, "-")
		for _, m := range read(t, c).Machines {
			if ok && (backend == "firecracker" || backend == "cloud") && !strings.HasPrefix(m.Backend, backend) {
				t.Errorf("check %s: %s is on %s", name, m.Name, m.Backend)
			}
			if strings.HasSuffix(name, "-prebuilt") != (m.SnapshotPath != "") {
				t.Errorf("check %s: it starts from %q", name, m.SnapshotPath)
			}
		}
	}
	examples := map[string]int{"module-smoke": 1, "cli-integration": 2, "policy-reload": 3, "three-machines": 3, "four-machines": 4}
	for name, machines := range examples {
		for _, language := range []string{"python", "starlark"} {
			if got := len(read(t, e.Examples[name][language]).Machines); got != machines {
				t.Errorf("example %s in %s: %d machines, want %d", name, language, got, machines)
			}
		}
	}
	if len(e.Examples) != len(examples) {
		t.Errorf("%d examples", len(e.Examples))
	}
	for what, script := range map[string]string{"bench": e.Bench, "perf-budget": e.Budget} {
		if !strings.Contains(script, "budget.py") {
			t.Errorf("%s is\n%s", what, script)
		}
	}
	if !strings.Contains(e.Package, "nixos-test-driver") || !strings.Contains(e.Package, "installManPage") {
		t.Errorf("the package is installed by\n%s", e.Package)
	}
	const mmdebstrap = "/nix/store/mmdebstrap/bin"
	if strings.Contains(e.Package, mmdebstrap) || !strings.Contains(e.WithDebian, mmdebstrap) {
		t.Errorf("mmdebstrap is there always, or never:\n%s\n%s", e.Package, e.WithDebian)
	}
	if !strings.Contains(e.Version, "VERSION=0-dev ") {
		t.Errorf("the package is built by\n%s", e.Version)
	}
}

// The hash is that of the directory which buildGoModule makes: what it has to find.
func TestVendorHash(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vendor")
	cmd := exec.CommandContext(t.Context(), "go", "mod", "vendor", "-o", dir)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := nixCommand(t, "nix-hash", "--type", "sha256", dir)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := hex.DecodeString(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	got := "sha256-" + base64.StdEncoding.EncodeToString(sum) + "\n"
	if *update {
		if err := os.WriteFile("vendor.hash", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("vendor.hash")
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("nix/vendor.hash is %swant %s(go test ./nix -update writes it)", want, got)
	}
}

// Budgets are kept, exceeded, or name what there is not.
func TestBudget(t *testing.T) {
	dir := t.TempDir()
	events := filepath.Join(dir, "events.jsonl")
	if err := os.WriteFile(events, []byte(`{"type":"run_started","seq":1}
{"type":"machine_state","machine":"a","state":"ready","after_s":4.5}
{"type":"machine_state","machine":"b","state":"ready","after_s":5.25}
{"type":"subtest_finished","test":"test_x","subtest":"it serves","name":"it serves","status":"passed","duration_s":0.25}
{"type":"test_finished","test":"test_x","status":"passed","duration_s":0.5}
{"type":"run_finished","status":"passed","duration_s":7}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		budget, summary, says string
		code                  int
	}{
		{`{"total": 7000, "boot": 5250, "test_x": 500, "test_x/it serves": 250}`, "c\tboot\t5250\t5250\tok\nc\ttest_x\t500\t500\tok\nc\ttest_x/it serves\t250\t250\tok\nc\ttotal\t7000\t7000\tok\n", "", 0},
		{`{"boot": 5249}`, "c\tboot\t5250\t5249\tover\n", "c: boot took 5250 ms, its budget is 5249 ms", 1},
		{`{"test_y": 1}`, "", "c: the budget names 'test_y', and the run has only boot, test_x, test_x/it serves, total", 2},
	} {
		budgets := filepath.Join(dir, "budgets.json")
		if err := os.WriteFile(budgets, fmt.Appendf(nil, `{"c": {"events": %q, "budget": %s}}`, events, tt.budget), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "python3", "budget.py", budgets, filepath.Join(dir, "out"))
		said, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != tt.code || strings.TrimSpace(string(said)) != tt.says {
			t.Errorf("%s: exit code %d: %s", tt.budget, cmd.ProcessState.ExitCode(), said)
		}
		summary, err := os.ReadFile(filepath.Join(dir, "out/summary.tsv"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff("check\twhat\tms\tbudget_ms\tverdict\n"+tt.summary, string(summary)); diff != "" {
			t.Error(diff)
		}
	}
	phases, err := os.ReadFile(filepath.Join(dir, "out/phases.tsv"))
	if err != nil || string(phases) != "check\tmachine\tstate\tms\nc\ta\tready\t4500\nc\tb\tready\t5250\n" {
		t.Errorf("%q, %v", phases, err)
	}
}
