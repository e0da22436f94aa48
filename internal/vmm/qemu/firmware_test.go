package qemu

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/vmm"
)

// A directory that is named has any of the pairs that distributions have, and nothing
// else is looked at.
func TestFirmwareOfADirectory(t *testing.T) {
	write := func(names ...string) string {
		dir := t.TempDir()
		for _, name := range names {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	for _, tt := range []struct {
		files []string
		want  vmm.UEFI // relative; zero: nothing is found
	}{
		{[]string{"OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", "OVMF_CODE.fd", "OVMF_VARS.fd"}, vmm.UEFI{Code: "OVMF_CODE_4M.fd", Vars: "OVMF_VARS_4M.fd"}},
		{[]string{"FV/OVMF_CODE.fd", "FV/OVMF_VARS.fd"}, vmm.UEFI{Code: "FV/OVMF_CODE.fd", Vars: "FV/OVMF_VARS.fd"}},
		{[]string{"edk2-x86_64-code.fd", "edk2-i386-vars.fd"}, vmm.UEFI{Code: "edk2-x86_64-code.fd", Vars: "edk2-i386-vars.fd"}},
		{[]string{"OVMF_CODE.secboot.fd", "OVMF_CODE.fd", "OVMF_VARS_4M.fd"}, vmm.UEFI{}},
	} {
		dir := write(tt.files...)
		t.Setenv(FirmwareEnv, dir)
		got, err := (&backend{}).UEFI()
		switch {
		case tt.want == vmm.UEFI{}:
			if err == nil || !strings.Contains(err.Error(), FirmwareEnv+"="+dir) || !strings.Contains(err.Error(), "apt-get install ovmf") {
				t.Errorf("%v: %+v, %v", tt.files, got, err)
			}
		case err != nil || got.Code != filepath.Join(dir, tt.want.Code) || got.Vars != filepath.Join(dir, tt.want.Vars):
			t.Errorf("%v: %+v, %v", tt.files, got, err)
		}
	}
}

// startBare starts a machine whose guest brings nothing of attest's.
func startBare(t *testing.T, hw *vmm.Hardware) (*bare, *bufio.Reader) {
	t.Helper()
	host := newHost(t)
	hw.Bare = true
	vm, err := (&backend{}).Start(t.Context(), host, vmm.Config{Name: "web", Dir: host.Supervisor.Dir(), Boot: hw})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		vm.Kill()
		vm.Console().Close()
	})
	return vm.(*bare), bufio.NewReader(vm.Console())
}

// A UEFI firmware writes the variables of its machine, and nothing of the host's.
func TestUEFI(t *testing.T) {
	u, err := (&backend{}).UEFI()
	if err != nil {
		t.Fatalf("OVMF is needed for this test: %v", err)
	}
	fresh, err := os.ReadFile(u.Vars)
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(t.TempDir(), "variables")
	if err := os.WriteFile(own, fresh, 0o600); err != nil {
		t.Fatal(err)
	}
	disk := bootSector().print("this is the BIOS\n").halt().writeDisk(t)
	_, console := startBare(t, &vmm.Hardware{Memory: 128, UEFI: &vmm.UEFI{Code: u.Code, Vars: own}, Disks: []vmm.Disk{{Serial: "root", Path: disk, ReadOnly: true}}})
	// It says that no loader is on the disk.
	for said := ""; !strings.Contains(said, "BdsDxe"); {
		text, err := console.ReadString(' ')
		if said += text; err != nil || strings.Contains(said, "this is the BIOS") {
			t.Fatalf("%q, %v", said, err)
		}
	}
	if written, err := os.ReadFile(own); err != nil || string(written) == string(fresh) {
		t.Errorf("it has written no variables (%v)", err)
	}
	if now, err := os.ReadFile(u.Vars); err != nil || string(now) != string(fresh) {
		t.Errorf("the variables of the host are others now (%v)", err)
	}
}

// The door of a bare machine ends with it.
func TestBareMachine(t *testing.T) {
	disk := bootSector().print("hello\n").halt().writeDisk(t)
	m, console := startBare(t, &vmm.Hardware{Memory: 16, Disks: []vmm.Disk{{Serial: "root", Path: disk, ReadOnly: true}}})
	if said, err := console.ReadString('\n'); said != "hello\n" {
		t.Fatalf("%q, %v", said, err)
	}
	shell, upload := m.Backdoor()
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []interface {
		Read([]byte) (int, error)
		SetReadDeadline(time.Time) error
	}{shell, upload} {
		c.SetReadDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			t.Errorf("it goes on: %v", err)
		}
	}
}

// Where a machine's variables are is no part of what it is.
func TestFingerprintOfUEFI(t *testing.T) {
	dir := t.TempDir()
	code := filepath.Join(dir, "code")
	print := func(u vmm.UEFI) string {
		t.Helper()
		text, err := (&backend{}).Fingerprint(vmm.Host{Accel: "tcg"}, vmm.Config{Boot: &vmm.Hardware{Bare: true, UEFI: &u}})
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	if err := os.WriteFile(code, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	first := print(vmm.UEFI{Code: code, Vars: "a"})
	if print(vmm.UEFI{Code: code, Vars: "b"}) != first {
		t.Error("the path of the variables counts")
	}
	if err := os.WriteFile(code, []byte("two"), 0o600); err != nil {
		t.Fatal(err)
	}
	if print(vmm.UEFI{Code: code, Vars: "a"}) == first {
		t.Error("another firmware does not count")
	}
}
