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

// The real VMMs run in a guest of attest's that has a KVM of its own: QEMU emulates a
// processor that has one. attest itself is in there, too, and runs a test file.
func TestMicroVM(t *testing.T) {
	for _, vmm := range microVMs {
		t.Run(vmm.backend, func(t *testing.T) {
			binary := os.Getenv(vmm.env)
			if binary == "" {
				t.Skipf("%s names no %s to test with (docs/microvms.md)", vmm.env, vmm.backend)
			}
			outer := attest.MachineConfig{
				Name: "outer", Memory: 3000, Image: attest.Debian{Packages: []string{"iputils-ping"}}, BootTimeout: 20 * time.Minute,
				Mount: map[string]string{"/srv/bin/" + vmm.backend: binary, "/srv/bin/attest": attestBinary, "/srv/bin/attest-agent": agentBinary},
			}
			m := attest.New(t, outer).Machine("outer")
			m.CopyFromHost(kernelOf(t, strings.TrimSpace(m.Succeed("uname -r"))), "/srv/vmlinux")
			m.CopyFromHost("testdata/microvm", "/srv/microvm")
			m.Succeed("bash /srv/microvm/prepare.sh", attest.Timeout(20*time.Minute))
			m.Succeed(`sed -i "s|MODULES|\"/srv/modules/lib/modules/$(uname -r)\"|" /srv/microvm/lab_test.star`)
			run := m.Execute("export PATH=/srv/bin:$PATH ATTEST_ACCEL=kvm XDG_CACHE_HOME=/srv/cache; attest doctor; cd /srv/microvm && attest run -v -j 1 --timeout 3h --backend "+vmm.backend+" lab_test.star 2>&1",
				attest.Timeout(3*time.Hour))
			t.Logf("attest in the guest said:\n%s", run.Stdout)
			if run.ExitCode != 0 {
				t.Errorf("exit code %d", run.ExitCode)
			}
			// Whatever ended here has left nothing.
			m.Fail("pgrep -x " + vmm.backend[:min(len(vmm.backend), 15)]) // that is all the kernel keeps of a name
		})
	}
}
