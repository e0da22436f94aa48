package operation

import (
	"encoding/json"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/machineconfig"
)

// sample is a value of a type that is no default.
func sample(t *testing.T, f Field) any {
	switch f.Type {
	case String:
		if f.Name == "boot" {
			return "cold"
		}
		return "x"
	case Bool:
		return true
	case Int:
		return 7
	case Ints:
		return []int{3}
	case Duration:
		return time.Minute
	case Strings:
		return []string{"x"}
	case Disks:
		return []attest.Disk{{Size: 512}}
	case Size:
		return int64(1 << 30)
	case Destinations:
		return []string{"*"}
	case Image:
		return attest.Debian{}
	case Files:
		return map[string]attest.File{"/etc/x": {Content: "x"}}
	case Paths:
		return map[string]string{"/opt/x": "x"}
	case "":
		return []byte(`{}`)
	}
	t.Fatalf("no sample of type %s", f.Type)
	return nil
}

// Every setting of a machine is in the table, once.
func TestFieldsAreComplete(t *testing.T) {
	set := map[string]string{}
	for _, f := range Fields {
		var c attest.MachineConfig
		f.set(&c, sample(t, f))
		v, changed := reflect.ValueOf(c), 0
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				continue
			}
			changed++
			name := v.Type().Field(i).Name
			if other, twice := set[name]; twice {
				t.Errorf("%s is set by %s%s and %s", name, f.Name, f.JSON, other)
			}
			set[name] = f.Name + f.JSON
		}
		if changed != 1 {
			t.Errorf("%s%s sets %d fields", f.Name, f.JSON, changed)
		}
	}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[attest.MachineConfig]()) {
		if set[field.Name] == "" {
			t.Errorf("MachineConfig.%s is not in the table of fields", field.Name)
		}
	}
}

// Both functions that make a machine have all settings, and set them alike.
func TestMachinesHaveAllFields(t *testing.T) {
	for _, o := range []*Operation{DeclareMachine, Find(Lab, "create_machine")} {
		named := []Named{
			{"name", "m"}, {"image", attest.Debian{}}, {"start_command", "run-m-vm"}, {"backend", "qemu"}, {"memory", int64(99)}, {"cpus", int64(2)}, {"numa", int64(2)},
			{"networks", []any{int64(2)}}, {"mac", "52:54:00:00:00:01"}, {"nic", "e1000"}, {"qemu", []any{"-rtc", "base=utc"}}, {"type", "microvm"}, {"cmdline", "quiet"}, {"user", "debian"}, {"password", "secret"}, {"root", "xfs"}, {"root_size", "2G"}, {"disks", []any{attest.Disk{Size: 512}}}, {"display", true}, {"egress", true}, {"allow_reboot", true},
			{"boot", "cold"}, {"boot_timeout", int64(7)}, {"snapshot", "saved"},
			{"files", map[string]any{"/etc/x": "x", "/etc/y": map[string]any{"path": "y", "mode": int64(0o755)}}}, {"mount", map[string]any{"/opt/x": "x"}},
		}
		a, err := o.Bind(nil, named)
		if err != nil {
			t.Fatal(err)
		}
		want := attest.MachineConfig{
			Name: "m", Image: attest.Debian{}, StartCommand: "run-m-vm", Backend: "qemu", Memory: 99, CPUs: 2, NUMA: 2, Networks: []int{2}, Type: "microvm",
			MACs: []string{"52:54:00:00:00:01"}, NIC: "e1000", QEMU: []string{"-rtc", "base=utc"},
			Cmdline: "quiet", User: "debian", Password: "secret", Root: "xfs", RootSize: 2 << 30, Disks: []attest.Disk{{Size: 512}}, Display: true, Egress: []string{"*"}, AllowReboot: true, Boot: attest.BootCold, BootTimeout: 7 * time.Second, Snapshot: "saved",
			Files: map[string]attest.File{"/etc/x": {Content: "x"}, "/etc/y": {Path: "y", Mode: 0o755}}, Mount: map[string]string{"/opt/x": "x"},
		}
		if diff := cmp.Diff(want, MachineConfigOf(a)); diff != "" {
			t.Errorf("%s (-want +got)\n%s", o.Name, diff)
		}
		if len(named) != len(o.Params) {
			t.Errorf("%s has %d arguments, and this test gives %d", o.Name, len(o.Params), len(named))
		}
		for _, tt := range []struct {
			name  string
			value any
			want  string
		}{
			{"boot", "lukewarm", `boot: "lukewarm" is not a way to start a machine; it is "warm" or "cold"`},
			{"root", "fat", `root: "fat" is not a file system that a root can have; it is one of overlay, ext4, xfs, btrfs`},
			{"root_size", int64(4), `root_size must be a size such as "512M" or "2G", not the number 4`},
			{"root_size", "4", `root_size: "4" is not a size such as "512M" or "2G": a whole number of K, M, G or T`},
			{"disks", "disk.img", `disks must be a list of disk(…), not the string "disk.img"`},
			{"egress", int64(1), "egress must be True, False or a list of destinations, not the number 1"},
			{"networks", "net1", `networks must be a list of numbers, such as [1, 2], not the string "net1"`},
			{"files", "x", `files must be a dict of paths in the guest and contents, not the string "x"`},
			{"files", map[string]any{"/x": map[string]any{"pth": "x"}}, `files: ["/x"]: there is no field "pth"; the fields are content, mode and path; did you mean path?`},
			{"files", map[string]any{"/x": map[string]any{"mode": "rwx"}}, `files: ["/x"]: mode must be permission bits such as 0o755 or "0755", not the string "rwx"`},
			{"files", map[string]any{"/x": int64(1)}, `files: ["/x"]: want a string, or a dict or struct with content, mode and path; not the number 1`},
			{"mount", map[string]any{"/x": int64(1)}, `mount: the value of "/x" must be a string, not the number 1`},
			{"memroy", int64(1), `there is no argument "memroy"; did you mean memory?`},
		} {
			if _, err := o.Bind(nil, []Named{{tt.name, tt.value}}); err == nil || err.Error() != o.Name+"(…): "+tt.want {
				t.Errorf("%s(%s=): %v", o.Name, tt.name, err)
			}
		}
	}
}

// The keys that all backends share are those of the machine configuration file.
func TestFieldsOfFiles(t *testing.T) {
	m := machineconfig.Machine{
		Name: "m", Backend: "qemu", VLANs: []int{2}, StartCommand: "x", AllowReboot: true, Memory: 99, CPUs: 2, SnapshotPath: "s", MockScript: []byte(`{}`),
		Files: map[string]any{"/etc/x": map[string]any{"path": "x", "mode": "0755"}}, Mount: map[string]string{"/opt/x": "x"},
		Further: map[string]any{
			"numa": json.Number("2"), "mac": []any{"52:54:00:00:00:01"}, "nic": "e1000", "qemu": []any{"-rtc", "base=utc"}, "type": "q35", "cmdline": "quiet", "user": "debian", "password": "secret", "root": "xfs", "root_size": "2G",
			"disks": []any{map[string]any{"size": "1M", "serial": "a"}}, "display": true, "egress": true, "boot": "cold", "boot_timeout": json.Number("1.5"),
		},
	}
	settings := m.Settings()
	settings["image"], settings["options"] = attest.Debian{}, []byte(`{"a":1}`)
	want := attest.MachineConfig{
		Name: "m", Backend: "qemu", Networks: []int{2}, StartCommand: "x", AllowReboot: true, Memory: 99, CPUs: 2, Snapshot: "s", MockScript: []byte(`{}`), Image: attest.Debian{}, BackendOptions: []byte(`{"a":1}`),
		Files: map[string]attest.File{"/etc/x": {Path: "x", Mode: 0o755}}, Mount: map[string]string{"/opt/x": "x"},
		NUMA: 2, MACs: []string{"52:54:00:00:00:01"}, NIC: "e1000", QEMU: []string{"-rtc", "base=utc"}, Type: "q35", Cmdline: "quiet", User: "debian", Password: "secret", Root: "xfs", RootSize: 2 << 30,
		Disks: []attest.Disk{{Size: 1 << 20, Serial: "a"}}, Display: true, Egress: []string{"*"}, Boot: attest.BootCold, BootTimeout: 1500 * time.Millisecond,
	}
	got, err := MachineConfigOfFile(settings)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for key, tt := range map[string]struct {
		value any
		want  string
	}{
		"root":      {"fat", `root: "fat" is not a file system that a root can have; it is one of overlay, ext4, xfs, btrfs`},
		"root_size": {json.Number("4"), `root_size must be a size such as "512M" or "2G", not the number 4`},
		"disks":     {[]any{map[string]any{"siez": "1M"}}, `disks/0: disk(…): there is no argument "siez"; did you mean size?`},
		"display":   {"yes", `display must be True or False, not the string "yes"`},
	} {
		settings := map[string]any{key: tt.value}
		if _, err := MachineConfigOfFile(settings); err == nil || err.Error() != tt.want {
			t.Errorf("%s: %v, want %s", key, err, tt.want)
		}
	}
	var keys []string
	for _, f := range Fields {
		if f.JSON != "" {
			keys = append(keys, f.JSON)
		}
	}
	slices.Sort(keys)
	if diff := cmp.Diff(keys, slices.Sorted(maps.Keys(settings))); diff != "" {
		t.Errorf("keys of the table, and of the file (-table +file)\n%s", diff)
	}
}

// The page about machines has the table.
func TestFieldsPageIsCurrent(t *testing.T) {
	const path = "../../docs/machines.md"
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	table := regexp.MustCompile(`(?s)(## Arguments\n.*?\n\n)(\| argument .*?\n)\n`)
	found := table.FindStringSubmatch(string(data))
	if found == nil {
		t.Fatalf("%s has no table of arguments", path)
	}
	if found[2] == FieldsPage() {
		return
	}
	if *update {
		page := strings.Replace(string(data), found[2], FieldsPage(), 1)
		if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("the table in %s is not that of the fields; go test ./internal/operation -update (-page +fields)\n%s", path, cmp.Diff(found[2], FieldsPage()))
}
