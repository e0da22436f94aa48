package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
	"github.com/attest-vm/attest/internal/suite"
)

// images have every argument of every function that makes an image.
var images = map[string][]map[string]any{
	"debian": {
		{"suite": "trixie", "packages": []any{"nginx"}, "files": map[string]any{"/etc/a": "a", "/etc/b": map[string]any{"path": "x", "mode": "0755"}}, "run": []any{"true"},
			"kernel": "debian:linux-image-amd64", "cmdline": "quiet", "root": "xfs", "root_size": "2G", "title": "t"},
		{"kernel": "x", "modules": "x"},
		{"kernel": "x", "initrd": "x"},
	},
	"rootfs": {{"path": "x", "kernel": "x", "modules": "x", "cmdline": "quiet", "root": "ext4", "root_size": "64M", "title": "t"}, {"path": "x", "kernel": "x", "initrd": "x"}},
	"disk": {
		{"path": "x", "format": "raw", "boot": "uefi", "user": "root", "password": "pw", "title": "t"},
		{"path": "x", "kernel": "x", "modules": "x", "cmdline": "quiet"},
		{"path": "x", "kernel": "x", "initrd": "x"},
		{"size": "1M", "serial": "a", "bus": "scsi", "shared": "s"},
		{"path": "x", "serial": "b", "read_only": true},
	},
}

// Test files in Starlark and Python and the machine configuration make the same machines
// of the same images.
func TestFrontEndsMakeTheSameImages(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.WriteFile("x", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	var machines []any
	for _, f := range operation.ImageFunctions {
		given := map[string]bool{}
		for i, arguments := range images[f.Name] {
			var call []string
			for _, name := range slices.Sorted(maps.Keys(arguments)) {
				call = append(call, name+"="+literal(arguments[name]))
				given[name] = true
			}
			name := fmt.Sprintf("%s%d", f.Name, i)
			image := fmt.Sprintf("%s(%s)", f.Name, strings.Join(call, ", "))
			m := map[string]any{"name": name, "backend": "qemu", "boot": "cold"}
			if arguments["serial"] != nil { // beside a root
				fmt.Fprintf(&text, "%s = machine(image=debian(), disks=[%s], backend=\"qemu\", boot=\"cold\")\n", name, image)
				m["image"], m["disks"] = map[string]any{"debian": map[string]any{}}, []any{arguments}
			} else {
				fmt.Fprintf(&text, "%s = machine(image=%s, backend=\"qemu\", boot=\"cold\")\n", name, image)
				m["image"] = map[string]any{f.Name: arguments}
			}
			machines = append(machines, m)
		}
		for _, p := range f.Params {
			if !given[p.Name] {
				t.Errorf("this test does not give %s(%s=)", f.Name, p.Name)
			}
		}
	}
	text.WriteString("def main():\n    pass\n")
	config, err := json.Marshal(map[string]any{"machines": machines})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"x.star": text.String(), "x.py": text.String(), "lab.json": string(config)} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := suite.ConfiguredMachines("lab.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range script.Languages() {
		f, err := l.Load(t.Context(), filepath.Join(dir, "x"+l.Ending), script.Options{})
		if err != nil {
			t.Errorf("%s: %v", l.Name, err)
			continue
		}
		if diff := cmp.Diff(withPaths(dir, want), withPaths(dir, f.Machines())); diff != "" {
			t.Errorf("the machine configuration, and %s (-want +got)\n%s", l.Name, diff)
		}
	}
}

// literal is a value as Starlark and Python have it.
func literal(v any) string {
	switch v := v.(type) {
	case bool:
		return map[bool]string{true: "True", false: "False"}[v]
	case []any:
		var parts []string
		for _, x := range v {
			parts = append(parts, literal(x))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case map[string]any:
		var parts []string
		for _, k := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, strconv.Quote(k)+": "+literal(v[k]))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	return strconv.Quote(v.(string))
}

// withPaths is machines as a text, in which a path that begins at the directory does not
// differ from one that is absolute.
func withPaths(dir string, machines []attest.MachineConfig) string {
	var b strings.Builder
	for _, m := range machines {
		fmt.Fprintf(&b, "%+v %#v %#v\n", m.Name, m.Image, m.Disks)
	}
	return strings.ReplaceAll(b.String(), dir+"/", "")
}
