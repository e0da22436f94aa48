package test

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var withNix = flag.Bool("nix", false, "run the tests that have Nix build attest, and what it makes with that")

func needNix(t *testing.T) {
	t.Helper()
	if !*withNix {
		t.Skip("make test-nix has Nix build attest; it takes minutes")
	}
}

// withGo gives builds this host's Go, and what that has fetched and built.
func (n *nixHost) withGo() {
	n.t.Helper()
	out, err := exec.Command("go", "env", "-json", "GOROOT", "GOCACHE", "GOMODCACHE", "GOPROXY", "GOSUMDB").Output()
	if err != nil {
		n.t.Fatal(err)
	}
	var env map[string]string
	if err := json.Unmarshal(out, &env); err != nil {
		n.t.Fatal(err)
	}
	n.arguments["goRoot"] = env["GOROOT"]
	for name, value := range env {
		n.env = append(n.env, name+"="+value)
	}
}

// TestNixPackage has Nix build the packages of default.nix, by the host's Go with the modules
// that vendor.hash names, and looks at what is in them.
func TestNixPackage(t *testing.T) {
	needNix(t)
	nix := newNix(t)
	nix.file, nix.arguments = "testdata/nix/package.nix", map[string]string{"nixpkgsLib": os.Getenv("NIXPKGS_LIB")}
	nix.withGo()
	built := nix.build("attest", "attest.agent", "nixos-test-driver")
	attest, agent, driver := built[0], built[1], built[2]

	// What the wrapper adds is all that they find.
	run := func(path string, args ...string) string {
		t.Helper()
		cmd := exec.Command(path, args...)
		cmd.Env, cmd.Dir = []string{"PATH=", "HOME=" + t.TempDir(), "XDG_RUNTIME_DIR=" + t.TempDir()}, t.TempDir()
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("%s %q: %v\n%s", path, args, err, stderr.String())
		}
		if names, _ := os.ReadFile(filepath.Join(cmd.Dir, "driver-symbols")); len(names) > 0 {
			return string(names)
		}
		return string(out)
	}
	for _, tt := range []struct {
		path, args, want string
	}{
		{attest, "bin/attest --version", "attest 0-dev\n"},
		{attest, "bin/nixos-test-driver --help", "nixos-test-driver takes the flags"},
		{attest, "bin/generate-driver-symbols", "start_all"},
		{driver, "bin/nixos-test-driver --help", "nixos-test-driver takes the flags"},
		{driver, "bin/generate-driver-symbols", "start_all"},
	} {
		args := strings.Fields(tt.args)
		if got := run(filepath.Join(tt.path, args[0]), args[1:]...); !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.args, got, tt.want)
		}
	}
	for _, want := range []struct{ path, content string }{
		{filepath.Join(attest, "share/man/man1/attest.1"), `.TH "ATTEST" "1"`},
		{filepath.Join(attest, "share/man/man1/attest-run.1"), "junit"},
		{filepath.Join(attest, "share/bash-completion/completions/attest.bash"), "complete -o default"},
		{filepath.Join(attest, "share/fish/vendor_completions.d/attest.fish"), "complete -c attest"},
		{filepath.Join(attest, "share/zsh/site-functions/_attest"), "#compdef attest"},
		{filepath.Join(driver, "lib/python3/site-packages/test_driver/machine.pyi"), "def succeed"},
		{filepath.Join(agent, "bin/attest-agent"), "\x7fELF"},
	} {
		if content, err := os.ReadFile(want.path); err != nil || !strings.Contains(string(content), want.content) {
			t.Errorf("%s: there is no %q in its %d bytes (%v)", want.path, want.content, len(content), err)
		}
	}

	// The tools are those of the package, and what attest is made of does not name where it was built.
	found := run(filepath.Join(attest, "bin/attest"), "doctor", "--json")
	for _, tool := range []string{"e2fsprogs/bin/mkfs.ext4", "qemu/bin/qemu-system-x86_64", "tesseract/bin/tesseract"} {
		if !strings.Contains(found, "-"+tool) {
			t.Errorf("it does not find %s: %s", tool, found)
		}
	}
	program, err := os.ReadFile(filepath.Join(attest, "bin/.attest-wrapped"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(program), nix.dir) {
		t.Errorf("attest has paths below %s", nix.dir)
	}

	// A hash that is not that of the modules is what Nix says it is.
	_, err = nix.run("nix-build", "--no-out-link", "-A", "wrongHash")
	if err == nil || !strings.Contains(err.Error(), "hash mismatch in fixed-output derivation") {
		t.Errorf("with a wrong vendorHash: %v", err)
	}
}
