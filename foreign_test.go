package attest

import (
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/vmm"
)

func TestNameOfStartCommand(t *testing.T) {
	for command, want := range map[string]string{
		"/nix/store/x-nixos-vm/bin/run-server-vm": "server",
		"/tmp/run-1/bin/run-web-1-vm":             "web-1",
		"env A=b ./run-db-vm":                     "db",
		"run-vm":                                  "",
		"./run-db-vm --fast":                      "",
		"qemu.sh":                                 "",
	} {
		if got := (&vmm.Command{Line: command}).MachineName(); got != want {
			t.Errorf("%s: got %q, want %q", command, got, want)
		}
	}
}

// What the start command decides cannot be given beside it.
func TestStartCommandAlone(t *testing.T) {
	for setting, c := range map[string]MachineConfig{
		"an image": {Image: Debian{}}, "an amount of memory": {Memory: 256}, "a number of CPUs": {CPUs: 1}, "a machine type": {Type: "q35"},
		"a kernel command line": {Cmdline: "quiet"}, "a display": {Display: true}, "egress": {Egress: []string{"*"}},
	} {
		c.StartCommand = "/bin/run-box-vm"
		err := LabConfig{Machines: []MachineConfig{c}}.check()
		if err == nil || StatusOf(err) != Invalid || !strings.Contains(err.Error(), `machine "box": it has both a start command and `+setting+`;`) {
			t.Errorf("%s: got %v", setting, err)
		}
	}
	lab := LabConfig{Machines: []MachineConfig{{StartCommand: "x"}, {StartCommand: "/bin/run-box-vm", AllowReboot: true, Networks: []int{2}, Boot: BootCold}}}
	if err := lab.normalize(); err != nil || lab.Machines[0].Name != "machine" || lab.Machines[1].Name != "box" {
		t.Errorf("got %v, %+v", err, lab.Machines)
	}
}
