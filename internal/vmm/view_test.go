package vmm

import (
	"debug/elf"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/supervise"
)

// A VMM of which nobody knows what it needs sees all, and doctor says so.
func TestWhyVisible(t *testing.T) {
	if !supervise.CanView() {
		t.Skip(WhyVisible("/usr/bin/true", true))
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexec qemu\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	own, err := os.Executable() // needs no library, or the system's
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path      string
		dataFiles bool
		want      string
	}{
		{"/usr/bin/true", true, ""}, {"/usr/bin/true", false, ""}, {"/bin/true", true, ""},
		{"/usr/bin/ldd", true, "is a script"}, {"/usr/bin/ldd", false, "is a script"},
		{"/nix/store/x-qemu/bin/qemu-kvm", true, ""}, {"/nix/store/x/bin/firecracker", false, ""},
		{script, true, "not installed in /usr"}, {script, false, "is a script"},
		{own, true, "not installed in /usr"}, {own, false, ""},
		{filepath.Join(filepath.Dir(script), "none"), false, "is a script"},
	} {
		got := WhyVisible(tt.path, tt.dataFiles)
		if got != tt.want && (tt.want == "" || !strings.Contains(got, tt.want)) {
			t.Errorf("%s, data files %v: got %q", tt.path, tt.dataFiles, got)
		}
		if f := ViewFinding(got); f.OK != (tt.want == "") || f.OK == (f.Remedy != "") {
			t.Errorf("%s: %+v", tt.path, f)
		}
	}
}

// What a program of somebody's own takes from elsewhere would be missing.
func TestForeignLibraries(t *testing.T) {
	f, err := elf.Open("/usr/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := foreignLibraries("true", f); got != "" {
		t.Errorf("got %q", got)
	}
	system := libraries
	libraries = []string{t.TempDir()}
	defer func() { libraries = system }()
	if got := foreignLibraries("true", f); !strings.Contains(got, "true takes a library libc.so.6 that is not the system's") {
		t.Errorf("got %q", got)
	}
}

func TestView(t *testing.T) {
	v := View("/opt/vmm", Config{Dir: "/state/m"}, &Hardware{
		Kernel: "/cache/kernel", Initrd: "/cache/initrd",
		Disks:     []Disk{{Path: "/cache/base", ReadOnly: true}, {Path: "/state/m/rw", Backing: []Backing{{Path: "/saved/rw"}}}},
		SlotDisks: []SlotDisk{{Disk: Disk{Path: "/state/m/later"}}},
	})
	for _, path := range []string{"/opt/vmm", "/cache/kernel", "/cache/initrd", "/cache/base", "/saved/rw", "/usr"} {
		if !slices.Contains(v.Read, path) || slices.Contains(v.Write, path) {
			t.Errorf("%s is not to be read", path)
		}
	}
	for _, path := range []string{"/state/m", "/state/m/rw", "/state/m/later", "/dev/kvm"} {
		if !slices.Contains(v.Write, path) {
			t.Errorf("%s is not to be written", path)
		}
	}
	if slices.Contains(v.Read, "") {
		t.Error("the directory of the process is to be read")
	}
}
