package test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/vmm/firecracker/fake"
	microvm "github.com/attest-vm/attest/internal/vmm/microvm/fake"
)

// TestNixTAP has Nix build tests in its sandbox whose machines have TAPs, which are in namespaces
// of attest's own: of all devices of networks the sandbox has /dev/net/tun alone. Without that the
// build fails, and says what is missing and how to get it.
func TestNixTAP(t *testing.T) {
	needNix(t)
	nix := newNix(t)
	vmm := fake.Install(t, fake.Options{Manners: microvm.Manners{Shell: true, Bash: true}})
	if err := os.Symlink(vmm, filepath.Join(nix.dir, "bin/firecracker")); err != nil {
		t.Fatal(err)
	}
	nix.arguments["vmmDir"] = nix.dir
	nix.build("taps.mock.driver", "taps.microVM.driver") // by more of the host than tests see of it
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	host := append(programsOfHost(t), filepath.Join(nix.dir, "bin"), filepath.Dir(vmm), filepath.Dir(attestBinary), self)

	nix.sandbox = host
	for attribute, missing := range map[string]string{
		"taps.mock":    "mock machines of processes",
		"taps.microVM": "a network card on this host is not supported by backend firecracker",
	} {
		_, err := nix.run("nix-build", "--no-out-link", "-A", attribute)
		const why, remedy = "open /dev/net/tun: no such file or directory", "in a build of Nix, have extra-sandbox-paths = /dev/net/tun in nix.conf"
		if err == nil {
			t.Errorf("%s passes without /dev/net/tun", attribute)
			continue
		}
		for _, want := range []string{missing, why, remedy} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s without /dev/net/tun: there is no %q in %v", attribute, want, err)
			}
		}
		if line := liveTree.FindString(err.Error()); line != "" {
			t.Errorf("the log of the build has a line of what is redrawn on a terminal: %q", line)
		}
	}

	nix.sandbox = append(host, "/dev/net/tun")
	for _, dir := range nix.build("taps.mock", "taps.microVM") {
		report, err := os.ReadFile(filepath.Join(dir, "junit.xml"))
		if err != nil || !strings.Contains(string(report), `failures="0"`) {
			t.Errorf("the report is %s (%v)", report, err)
		}
	}
}

// liveTree is the first line of the tree that a terminal shows.
var liveTree = regexp.MustCompile(`(?m)^starting +[0-9.]+s`)

// programsOfHost are the paths of a sandbox that has this host's programs.
func programsOfHost(t *testing.T) []string {
	t.Helper()
	paths := []string{"/usr"}
	for _, dir := range []string{"/bin", "/sbin", "/lib", "/lib64"} {
		target, err := filepath.EvalSymlinks(dir)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, dir+"="+target)
	}
	return paths
}
