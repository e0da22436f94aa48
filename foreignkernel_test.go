package attest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	chfake "github.com/attest-vm/attest/internal/vmm/cloudhypervisor/fake"
	fcfake "github.com/attest-vm/attest/internal/vmm/firecracker/fake"
	"github.com/attest-vm/attest/internal/vmm/microvm/fake"
)

// A kernel and a root of somebody else on a microVM: what a test does goes through the root
// shell on the guest's vsock, where the agent cannot run, or shall not. It goes on after a
// reboot, and such a machine is not saved.
func TestForeignKernel(t *testing.T) {
	if out, err := exec.Command("unshare", "--user", "--map-root-user", "--mount", "--pid", "--mount-proc", "--fork", "mount", "-t", "tmpfs", "none", "/run").CombinedOutput(); err != nil {
		t.Skipf("no namespaces for the guest's shell: %v: %s", err, out)
	}
	dir := t.TempDir()
	disk := Disk{Format: "raw", Boot: "kernel", Path: filepath.Join(dir, "root"), Kernel: filepath.Join(dir, "vmlinux"), Initrd: filepath.Join(dir, "initrd")}
	for path, text := range map[string]string{
		disk.Path:   "hsqs" + strings.Repeat("\x00", 1<<20),
		disk.Kernel: "\x7fELF Linux version 6.1.0-fake (somebody@somewhere) ", disk.Initrd: "070701",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	manners := fake.Manners{Shell: true, Bash: true, Unheard: 2}
	for _, tt := range []struct {
		backend, upgrade string
		install          func()
	}{
		{"firecracker", "never", func() { fcfake.Install(t, fcfake.Options{Manners: manners}) }},
		{"cloud-hypervisor", "auto", func() { chfake.Install(t, chfake.Options{Manners: manners}) }},
	} {
		t.Run(tt.backend, func(t *testing.T) {
			tt.install()
			t.Setenv(UpgradeEnv, tt.upgrade)
			l, err := testHost.NewLab(limited(t), LabConfig{OutDir: t.TempDir(), Machines: []MachineConfig{{Name: "f", Backend: tt.backend, Image: disk, Memory: minMemory, Boot: BootCold}}})
			if err != nil {
				t.Fatal(err)
			}
			closeLab(t, l)
			m, ctx := l.Machine("f"), limited(t)
			if out, err := m.Succeed(ctx, "echo $((6 * 7)); id -u; echo kept > /tmp/kept"); err != nil || out != "42\n0\n" {
				t.Fatalf("got %q, %v", out, err)
			}
			if out, err := m.Succeed(ctx, "cat /tmp/kept"); err != nil || out != "kept\n" {
				t.Errorf("got %q, %v", out, err)
			}
			var unsupported *UnsupportedError
			if err := m.SnapshotCreate(ctx, "here"); !errors.As(err, &unsupported) || !strings.Contains(err.Error(), "a root shell on its vsock") {
				t.Errorf("it could be saved: %v", err)
			}
			if err := m.Crash(ctx); err != nil {
				t.Fatal(err)
			}
			if out, err := m.Succeed(ctx, "test -e /tmp/kept || echo fresh"); err != nil || out != "fresh\n" {
				t.Errorf("after a crash: %q, %v", out, err)
			}
		})
	}
}
