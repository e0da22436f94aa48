package starlark

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
	"github.com/attest-vm/attest/internal/vmm"
)

// lacking is what takes a capability away from a mock. No mock has disks that come and go.
var lacking = map[vmm.Capability]string{
	vmm.CanPause: "pausing", vmm.CanSave: "saving", vmm.CanReset: "reset", vmm.CanType: "keyboard", vmm.CanPoint: "pointer", vmm.CanShow: "screen", vmm.CanCapture: "screen",
	vmm.CanRead: "screen", vmm.CanListen: "input", vmm.CanInteract: "monitor", vmm.CanTell: "events", vmm.CanPlug: "", vmm.CanWake: "sleep", vmm.CanPress: "power",
}

// calls are calls of all operations that not every machine has.
var calls = map[string]string{
	"snapshot_create": `"x"`, "snapshot_restore": `"x"`, "reboot": "", "wait_for_reboot": "", "pause": "", "resume": "", "suspend": "", "wake": "", "press_power_button": "", "execute_with_reboots": `"x"`,
	"send_console": `"x"`, "send_monitor_command": `"x"`, "qmp_command": `"x"`, "wait_for_qmp_event": `"x"`,
	"send_key": `"a"`, "send_chars": `"a"`, "mouse_move": "1, 1", "mouse_click": "", "drag": "[1, 1], [2, 2]",
	"screenshot": `"x"`, "get_screen_text": "", "get_screen_text_variants": "", "wait_for_text": `"x"`,
	"assert_screen": `"x"`, "wait_for_screen": `"x"`, "find_on_screen": `"x"`,
	"plug": `"x"`, "unplug": `"x"`, "break_disk": `"x"`, "heal_disk": `"x"`,
}

// without is a mock that lacks some groups.
func without(t *testing.T, groups []string) attest.MachineConfig {
	t.Helper()
	text, err := json.Marshal(map[string]any{"console": "", "without": groups})
	if err != nil {
		t.Fatal(err)
	}
	return attest.MachineConfig{Name: "m", Backend: "mock", MockScript: text}
}

// special are the operations that not every machine has.
func special() []*operation.Operation {
	return slices.DeleteFunc(operation.All(operation.Machine), func(o *operation.Operation) bool { return o.Needs == "" })
}

// Each operation that needs something which the VMM lacks is refused by name, before anything
// starts; so is each file that calls one.
func TestLacksEverything(t *testing.T) {
	for _, o := range special() {
		arguments, ok := calls[o.Name]
		if !ok {
			t.Errorf("how is %s called?", o.Name)
			continue
		}
		path := filepath.Join(t.TempDir(), "x.star")
		if err := os.WriteFile(path, fmt.Appendf(nil, "def main(): m.%s(%s)\n", o.Name, arguments), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := Load(t.Context(), path, script.Options{Machines: []attest.MachineConfig{without(t, []string{"all"})}})
		if want := "m: " + o.Name + " is not supported by backend mock"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		} else if s := attest.StatusOf(err); s != attest.Unsupported {
			t.Errorf("%v: status %s", err, s)
		}
	}
}

// A VMM lacks what it is said to lack, whatever the set, and nothing else.
func TestLacksAnySet(t *testing.T) {
	groups := []string{"pausing", "saving", "reset", "keyboard", "pointer", "screen", "input", "monitor", "events"}
	for set := range 1 << len(groups) {
		var lacks []string
		for i, g := range groups {
			if set>>i&1 == 1 {
				lacks = append(lacks, g)
			}
		}
		m := without(t, lacks)
		for _, o := range special() {
			if o.Needs == vmm.CanPlug {
				continue
			}
			err := access.Supports(t.Context(), m, o.Name, o.Needs)
			if refused := err != nil && strings.Contains(err.Error(), "not supported by backend mock"); refused != (slices.Contains(lacks, lacking[o.Needs]) || o.Needs == vmm.CanSave && slices.Contains(lacks, "pausing")) {
				t.Errorf("without %v: %s: %v", lacks, o.Name, err)
			}
		}
	}
}
