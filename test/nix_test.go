package test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
)

// TestNixBuild has Nix build what nix/ makes, with the programs of this host: disks, snapshots
// of two guests behind start scripts, a test that goes on from these, budgets of that, and a
// test that fails. The guests have the units that the instrumentation generates, attest's
// agent among their programs, and the disks of a machine on a microVM beside their own.
func TestNixBuild(t *testing.T) {
	t.Parallel()
	nix := newNix(t)

	disks := nix.build("images.minimal", "images.shared")
	root, store := filepath.Join(disks[0], "rootfs.ext4"), filepath.Join(disks[1], "store.erofs")
	nix.arguments["startScript"] = strings.Replace(newForeignGuestOf(t, nix.instrumented(foreignImage, agentBinary)).text("nix", "", "@CARDS@",
		// The guest's own are all disks of virtio-blk.
		`-device virtio-scsi-pci,id=scsi -drive file="$TMPDIR/root",format=raw,if=none,id=root -device scsi-hd,bus=scsi.0,drive=root`,
		"-drive file="+store+",format=raw,if=none,id=store,read-only=on -device scsi-hd,bus=scsi.0,drive=store"),
		"set -eu\n", "set -eu\n[ -e $TMPDIR/root ] || { cp --sparse=always "+root+" $TMPDIR/root; chmod u+w $TMPDIR/root; }\n", 1)

	dir := nix.build("passes")[0]
	report, err := os.ReadFile(filepath.Join(dir, "junit.xml"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(report), `tests="6" failures="0"`) {
		t.Errorf("the report is\n%s", report)
	}
	if st, err := os.Stat(filepath.Join(dir, "report.html")); err != nil || st.Size() == 0 {
		t.Errorf("report.html: %v", err)
	}
	events, err := os.ReadFile(filepath.Join(dir, "events.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, machine := range []string{"client", "server"} {
		if !regexp.MustCompile(`(?m)^.*"machine":"` + machine + `","state":"starting","detail":"` + event.FromSnapshot + `"`).Match(events) {
			t.Errorf("%s was not started from its snapshot:\n%s", machine, events)
		}
	}
	nix.budgets()

	_, err = nix.run("nix-build", "--no-out-link", "--keep-failed", "-A", "fails")
	if err == nil || !strings.Contains(err.Error(), "there is nothing to see") || !strings.Contains(err.Error(), "exit code 1") {
		t.Errorf("a test that fails: %v", err)
	}
	kept, _ := filepath.Glob(filepath.Join(nix.dir, "tmp", "*", "report", "junit.xml"))
	if len(kept) != 1 {
		t.Errorf("its report is %v", kept)
	}
}

// instrumented is the image with the units of the instrumentation, and attest's agent, a file,
// among its programs.
func (n *nixHost) instrumented(image attest.Debian, agent string) attest.Debian {
	n.t.Helper()
	out, err := n.run("nix-instantiate", "--eval", "--strict", "--json", "-A", "node")
	if err != nil {
		n.t.Fatal(err)
	}
	var node struct {
		Units map[string]nixUnit
		Hosts string
	}
	if err := json.Unmarshal(out, &node); err != nil {
		n.t.Fatal(err)
	}
	if len(node.Units) != 2 {
		n.t.Errorf("%d units", len(node.Units))
	}
	image.Files, image.Run = maps.Clone(image.Files), slices.Clone(image.Run)
	for name, u := range node.Units {
		image.Files["/usr/local/lib/"+name] = attest.File{Mode: 0o755, Content: "#!/bin/bash -e\n" + // as NixOS runs a unit's script
			agentInStore.ReplaceAllString(u.Script, "/usr/local/bin/attest-agent")}
		image.Files["/etc/systemd/system/"+name+".service"] = attest.File{Content: u.text(name)}
		image.Run = append(image.Run, "systemctl enable "+name+".service")
	}
	image.Files["/etc/hosts"] = attest.File{Content: "127.0.0.1 localhost\n" + node.Hosts}
	image.Files["/usr/local/bin/attest-agent"] = attest.File{Mode: 0o755, Path: agent}
	return image
}

// agentInStore is where units find the agent.
var agentInStore = regexp.MustCompile(`/\S+/bin/attest-agent`)

// budgets has what a test took compared with budgets.
func (n *nixHost) budgets() {
	n.t.Helper()
	for name, columns := range map[string]string{"summary.tsv": `passes\ttotal\t\d+\t3600000\tok`, "phases.tsv": `passes\tserver\tready\t\d+`} {
		text, err := os.ReadFile(filepath.Join(n.build("budget")[0], name))
		if err != nil || !regexp.MustCompile(`(?m)^`+columns+`$`).Match(text) {
			n.t.Errorf("%s is %q, %v", name, text, err)
		}
	}
	if _, err := n.run("nix-build", "--no-out-link", "-A", "overBudget"); err == nil || !strings.Contains(err.Error(), "ms, its budget is 1 ms") {
		n.t.Errorf("a budget that is exceeded: %v", err)
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
	service := map[string]any{}
	maps.Copy(service, u.ServiceConfig)
	if u.Script != "" {
		service["ExecStart"] = "/usr/local/lib/" + name
	}
	section("Service", nil, service)
	section("Install", map[string][]string{"WantedBy": u.WantedBy}, nil)
	return b.String()
}

// A nixHost runs Nix with a store of its own.
type nixHost struct {
	t         *testing.T
	dir       string
	file      string            // what is evaluated
	arguments map[string]string // of the function that the file is
	env       []string          // beside the environment
	sandbox   []string          // what builds see of the host, if not all
}

func newNix(t *testing.T) *nixHost {
	for _, program := range []string{"nix-build", "nix-instantiate"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v; scripts/setup test installs it", err)
		}
	}
	n := &nixHost{t: t, dir: t.TempDir(), file: "testdata/nix/lab.nix"}
	n.arguments = map[string]string{"attestDir": n.dir}
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

// build builds attributes of the file, and returns their paths.
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
	file, err := filepath.Abs(n.file)
	if err != nil {
		n.t.Fatal(err)
	}
	args = append(slices.Clone(args), file)
	for name, value := range n.arguments {
		args = append(args, "--argstr", name, value)
	}
	sandbox := "sandbox = false\n"
	if len(n.sandbox) > 0 {
		sandbox = "sandbox = true\nsandbox-fallback = false\nsandbox-paths = " + strings.Join(n.sandbox, " ") + "\n"
	}
	cmd := exec.CommandContext(n.t.Context(), name, args...)
	cmd.Env = append(append(os.Environ(), n.env...), "HOME="+n.dir, "TMPDIR="+filepath.Join(n.dir, "tmp"), "NIX_REMOTE=",
		"NIX_STORE_DIR="+filepath.Join(n.dir, "store"), "NIX_STATE_DIR="+filepath.Join(n.dir, "state"), "NIX_LOG_DIR="+filepath.Join(n.dir, "log"),
		"NIX_CONFIG="+sandbox+"build-users-group =\nsystem-features = nixos-test kvm\nsubstituters =\nmax-jobs = 2\n")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", name, err, stderr.String())
	}
	return out, err
}
