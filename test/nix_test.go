package test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/attest-vm/attest"
)

// TestNixBuild has Nix build tests of makeTest: two guests behind start scripts,
// with the unit that the instrumentation generates and with attest's agent among their
// programs; and one that fails.
func TestNixBuild(t *testing.T) {
	t.Parallel()
	nix := newNix(t)
	out, err := nix.run("nix-instantiate", "--eval", "--strict", "--json", "-A", "node")
	if err != nil {
		t.Fatal(err)
	}
	var node struct {
		Units map[string]nixUnit
		Hosts string
	}
	if err := json.Unmarshal(out, &node); err != nil {
		t.Fatal(err)
	}
	image := foreignImage
	image.Files, image.Run = maps.Clone(image.Files), slices.Clone(image.Run)
	for name, u := range node.Units {
		image.Files["/usr/local/lib/"+name] = attest.File{Mode: 0o755, Content: "#!/bin/bash -e\n" + // as NixOS runs a unit's script
			strings.ReplaceAll(u.Script, filepath.Join(nix.dir, "bin"), "/usr/local/bin")}
		image.Files["/etc/systemd/system/"+name+".service"] = attest.File{Content: u.text(name)}
		image.Run = append(image.Run, "systemctl enable "+name+".service")
	}
	if len(node.Units) != 2 {
		t.Errorf("%d units", len(node.Units))
	}
	image.Files["/etc/hosts"] = attest.File{Content: "127.0.0.1 localhost\n" + node.Hosts}
	image.Files["/usr/local/bin/attest-agent"] = attest.File{Mode: 0o755, Path: agentBinary}
	nix.startScript = newForeignGuestOf(t, image).text("nix", "", "@CARDS@")

	built, err := nix.run("nix-build", "--no-out-link", "-A", "passes")
	if err != nil {
		t.Fatal(err)
	}
	dir := strings.TrimSpace(string(built))
	report, err := os.ReadFile(filepath.Join(dir, "junit.xml"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(report), `tests="4" failures="0"`) {
		t.Errorf("the report is\n%s", report)
	}
	for _, name := range []string{"report.html", "events.jsonl"} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}

	_, err = nix.run("nix-build", "--no-out-link", "--keep-failed", "-A", "fails")
	if err == nil || !strings.Contains(err.Error(), "there is nothing to see") || !strings.Contains(err.Error(), "exit code 1") {
		t.Errorf("a test that fails: %v", err)
	}
	kept, _ := filepath.Glob(filepath.Join(nix.dir, "tmp", "*", "report", "junit.xml"))
	if len(kept) != 1 {
		t.Errorf("its report is %v", kept)
	}
}

// A nixUnit is a service as modules of NixOS define it.
type nixUnit struct {
	Script                            string
	WantedBy, Requires, After, Before []string
	UnitConfig, ServiceConfig         map[string]any
}

// text is the unit's file, whose script is in /usr/local/lib.
func (u nixUnit) text(name string) string {
	var b strings.Builder
	section := func(name string, lists map[string][]string, values map[string]any) {
		fmt.Fprintf(&b, "[%s]\n", name)
		for key, list := range lists {
			if len(list) > 0 {
				fmt.Fprintf(&b, "%s=%s\n", key, strings.Join(list, " "))
			}
		}
		for key, value := range values {
			fmt.Fprintf(&b, "%s=%v\n", key, value)
		}
	}
	section("Unit", map[string][]string{"Requires": u.Requires, "After": u.After, "Before": u.Before}, u.UnitConfig)
	section("Service", map[string][]string{"ExecStart": {"/usr/local/lib/" + name}}, u.ServiceConfig)
	section("Install", map[string][]string{"WantedBy": u.WantedBy}, nil)
	return b.String()
}

// A nixHost runs Nix with a store of its own.
type nixHost struct {
	t                *testing.T
	dir, startScript string
}

func newNix(t *testing.T) *nixHost {
	for _, program := range []string{"nix-build", "nix-instantiate"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v; scripts/setup test installs it", err)
		}
	}
	n := &nixHost{t: t, dir: t.TempDir()}
	for _, dir := range []string{"tmp", "bin"} {
		if err := os.Mkdir(filepath.Join(n.dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(attestBinary, filepath.Join(n.dir, "bin/attest")); err != nil {
		t.Fatal(err)
	}
	// What is in a store cannot be written to, and so not be removed.
	t.Cleanup(func() { exec.Command("chmod", "-R", "u+w", n.dir).Run() })
	return n
}

// build builds attributes of lab.nix, and returns their paths.
func (n *nixHost) build(attributes ...string) []string {
	n.t.Helper()
	args := []string{"--no-out-link"}
	for _, a := range attributes {
		args = append(args, "-A", a)
	}
	out, err := n.run("nix-build", args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return strings.Fields(string(out))
}

func (n *nixHost) run(name string, args ...string) ([]byte, error) {
	lab, err := filepath.Abs("testdata/nix/lab.nix")
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.CommandContext(n.t.Context(), name, append(args, lab, "--argstr", "attestDir", n.dir, "--argstr", "startScript", n.startScript)...)
	cmd.Env = append(os.Environ(), "HOME="+n.dir, "TMPDIR="+filepath.Join(n.dir, "tmp"), "NIX_REMOTE=",
		"NIX_STORE_DIR="+filepath.Join(n.dir, "store"), "NIX_STATE_DIR="+filepath.Join(n.dir, "state"), "NIX_LOG_DIR="+filepath.Join(n.dir, "log"),
		"NIX_CONFIG=sandbox = false\nbuild-users-group =\nsystem-features = nixos-test kvm\nsubstituters =\n")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", name, err, stderr.String())
	}
	return out, err
}
