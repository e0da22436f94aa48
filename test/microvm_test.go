package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest"
)

// The VMMs of TestMicroVM, which are not part of any package here.
var microVMs = []struct{ backend, env string }{
	{"firecracker", "FIRECRACKER"},
	{"cloud-hypervisor", "CLOUD_HYPERVISOR"},
}

// kernelOf is the uncompressed kernel of a release in the image cache.
func kernelOf(t *testing.T, release string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	all, err := filepath.Glob(filepath.Join(cache, "attest", "kernel", "*", "meta.json"))
	for _, path := range all {
		var meta struct{ Kernel struct{ Release string } }
		if b, err := os.ReadFile(path); err == nil && json.Unmarshal(b, &meta) == nil && meta.Kernel.Release == release {
			return filepath.Join(filepath.Dir(path), "vmlinux")
		}
	}
	t.Fatalf("no kernel %s in the cache (%v): %v", release, err, all)
	return ""
}

// microVMParts are what is tested of a VMM, each in a fork of the guest in which a machine has
// booted once: scripts of testdata/microvm, and their arguments behind the backend.
var microVMParts = []struct{ name, script string }{
	{"commands", "run.sh BACKEND --run test_commands one_test.star"},
	{"checkpoint", "run.sh BACKEND --run test_checkpoint one_test.star"},
	{"pair", "pair.sh BACKEND"},
	{"outward", "outward.sh BACKEND"},
	{"matrix", "matrix.sh BACKEND"},
	{"power_off", "run.sh BACKEND --run test_power_off one_test.star"},
	{"reboot", "run.sh BACKEND --run test_reboot one_test.star"},
	{"panic", "panic.sh BACKEND"},
	{"unanswered", "unanswered.sh BACKEND"},
	{"crash", "run.sh BACKEND --run test_crash one_test.star"},
	{"kill", "kill.sh BACKEND"},
	{"view", "view.sh BACKEND"},
	{"foreign", "foreign.sh BACKEND"},
	{"bad", "bad.sh BACKEND"},
	{"bench", "bench.sh BACKEND"},
}

// jailerOf is the jailer to test a Firecracker with: JAILER names it, or it is beside the
// Firecracker. Empty: there is none.
func jailerOf(firecracker string) string {
	path := os.Getenv("JAILER")
	if path == "" {
		path = filepath.Join(filepath.Dir(firecracker), "jailer")
		if _, err := os.Stat(path); err != nil {
			return ""
		}
	}
	return path
}

// The real VMMs run in a guest of attest's that has a KVM of its own: QEMU emulates a
// processor that has one. attest itself is in there, too, and runs test files. The first
// boots a machine and keeps its snapshot, from which the parts begin.
//
// MICROVM_STATE names a directory in which that guest is kept then, and from which later
// runs begin, so that each part can be a run of its own:
//
//	-run TestMicroVM/firecracker/pair
func TestMicroVM(t *testing.T) {
	for _, vmm := range microVMs {
		t.Run(vmm.backend, func(t *testing.T) {
			if os.Getenv(vmm.env) == "" {
				t.Skipf("%s names no %s to test with (docs/microvms.md)", vmm.env, vmm.backend)
			}
			t.Parallel()
			booted := bootedMicroVM(t, vmm.backend)
			for _, part := range microVMParts {
				if part.name == "bench" && measured(vmm.backend) {
					continue
				}
				t.Run(part.name, func(t *testing.T) {
					said := runMicroVM(t, booted.Fork(t).Machine("outer"), vmm.backend, part.script)
					if part.name == "pair" {
						differ(t, said, 4)
					}
				})
			}
			if vmm.backend == "firecracker" {
				t.Run("jailer", func(t *testing.T) {
					jailer := jailerOf(os.Getenv(vmm.env))
					if jailer == "" {
						t.Skip("JAILER names no jailer to test with, and there is none beside FIRECRACKER (docs/microvms.md)")
					}
					for _, part := range []string{"tests", "look", "kill", "saved", "pair", "foreign"} {
						t.Run(part, func(t *testing.T) {
							outer := booted.Fork(t).Machine("outer")
							outer.CopyFromHost(jailer, "/srv/bin/jailer")
							said := runMicroVM(t, outer, vmm.backend, "jailer.sh BACKEND "+part)
							if part == "pair" {
								differ(t, said, 4)
							}
						})
					}
				})
			}
		})
	}
}

// measured reports whether a backend is measured beside one before it.
func measured(backend string) bool {
	for _, vmm := range microVMs {
		if os.Getenv(vmm.env) != "" {
			return vmm.backend != backend
		}
	}
	return false
}

// bootedMicroVM is the outer guest, in which a machine has booted and its snapshot is in the
// cache.
func bootedMicroVM(t *testing.T, backend string) *attest.TestSnapshot {
	t.Helper()
	dir := os.Getenv("MICROVM_STATE")
	if dir != "" {
		dir = filepath.Join(dir, backend)
		if _, err := os.Stat(dir); err == nil {
			return attest.OpenLab(t, dir).Snapshot()
		}
	}
	lab := attest.New(t, attest.MachineConfig{
		Name: "outer", Memory: 3000, Image: attest.Debian{Packages: []string{"cpio", "curl", "iputils-ping", "socat"}}, BootTimeout: 20 * time.Minute,
	})
	m := lab.Machine("outer")
	copies := map[string]string{
		attestBinary: "bin/attest", agentBinary: "bin/attest-agent",
		kernelOf(t, strings.TrimSpace(m.Succeed("uname -r"))): "vmlinux", "testdata/microvm": "microvm", // for prepare.sh
	}
	for _, vmm := range microVMs { // the part bench measures all of them
		if path := os.Getenv(vmm.env); path != "" {
			copies[path] = "bin/" + vmm.backend
		}
	}
	for source, target := range copies {
		m.CopyFromHost(source, "/srv/"+target)
	}
	m.Succeed("bash /srv/microvm/prepare.sh", attest.Timeout(20*time.Minute))
	t.Log(m.Succeed(". /srv/microvm/common.sh "+backend+"; $backend --version; attest doctor || true", attest.Timeout(10*time.Minute)))
	if said := runMicroVM(t, m, backend, "run.sh BACKEND --run test_boot one_test.star"); !strings.Contains(said, "PASS") {
		t.Fatal("no machine booted")
	}
	booted := lab.Snapshot()
	if dir != "" {
		booted.Save(dir)
	}
	return booted
}

// runMicroVM runs a script of testdata/microvm in the outer guest, and returns what it said.
func runMicroVM(t *testing.T, m *attest.TestMachine, backend, script string) string {
	t.Helper()
	m.CopyFromHost("testdata/microvm", "/srv") // as they are now, in a guest that was kept
	begun := time.Now()
	r := m.Execute("bash /srv/microvm/"+strings.ReplaceAll(script, "BACKEND", backend), attest.Timeout(3*time.Hour))
	t.Logf("%s took %v and said:\n%s", script, time.Since(begun).Round(time.Second), r.Stdout)
	if r.ExitCode != 0 {
		t.Errorf("exit code %d", r.ExitCode)
	}
	return r.Stdout
}

// differ checks that clones have printed so many random numbers, of which no two are equal.
func differ(t *testing.T, said string, want int) {
	t.Helper()
	seen := map[string]bool{}
	for line := range strings.Lines(said) {
		if number, ok := strings.CutPrefix(line, "random "); ok {
			if seen[number] {
				t.Errorf("two clones have the random number %s", number)
			}
			seen[number] = true
		}
	}
	if len(seen) != want {
		t.Errorf("%d random numbers, want %d", len(seen), want)
	}
}
