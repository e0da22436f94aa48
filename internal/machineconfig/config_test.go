package machineconfig

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	got, err := Parse("lab.json", []byte(`{
		"machines": [
			{"name": "server", "backend": "qemu", "start_command": "/run-server-vm", "vlans": [1]},
			{"name": "client", "backend": "qemu", "image": {"debian": {}}, "mem_size_mib": 512, "snapshot_path": null,
			 "files": {"/etc/a": "a", "/etc/b": {"path": "b", "mode": "0600"}}, "mount": {"/opt/app": "build"}},
			{"name": "micro", "backend": "firecracker", "kernel_image_path": "/vmlinux", "rootfs_path": "/root.ext4",
			 "tap_interfaces": [["eth0", "tap0", "AA:FC:00:01:01:01"]], "entropy": false}
		],
		"vlans": [1, 2],
		"global_timeout": 90
	}`))
	if err != nil {
		t.Fatal(err)
	}
	base := Machine{VLANs: []int{1, 2}, CPUs: 1, VsockCID: 3, VsockPort: 1234, Entropy: true, IOEngine: "Sync", CacheType: "Unsafe"}
	server, client, micro := base, base, base
	server.Name, server.Backend, server.StartCommand, server.VLANs = "server", "qemu", "/run-server-vm", []int{1}
	server.CPUs = 0
	client.Name, client.Backend, client.Image, client.Memory = "client", "qemu", json.RawMessage(`{"debian":{}}`), 512
	client.Files = map[string]any{"/etc/a": "a", "/etc/b": map[string]any{"path": "b", "mode": "0600"}}
	client.Mount = map[string]string{"/opt/app": "build"}
	micro.Name, micro.Backend, micro.KernelImage, micro.Rootfs = "micro", "firecracker", "/vmlinux", "/root.ext4"
	micro.TAPs, micro.Entropy = []TAP{{"eth0", "tap0", "AA:FC:00:01:01:01"}}, false
	want := &File{Path: "lab.json", Machines: []Machine{server, client, micro}, VLANs: []int{1, 2}, GlobalTimeout: 90 * time.Second}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseErrors(t *testing.T) {
	qemu := func(rest string) string {
		return `{"machines": [{"name": "a", "backend": "qemu", "start_command": "x"` + rest + `}]}`
	}
	for _, test := range []struct{ name, json, want string }{
		{"syntax", "{\n \"machines\": [,]\n}", "machine configuration lab.json: not JSON: line 2, column 15: invalid character ',' looking for beginning of value"},
		{"trailing", `{} {}`, "machine configuration lab.json: unexpected data after the JSON object"},
		{"no object", `[]`, "machine configuration lab.json: want an object, not an array"},
		{"unknown top key", `{"machine": []}`, "machine configuration lab.json: /machine: unknown key; known keys are global_timeout, machines, vlans"},
		{"unknown key", qemu(`, "kernel_image_path": "x"`), `machine configuration lab.json: machine "a": /machines/0/kernel_image_path: unknown key; known keys are allow_reboot, backend, boot, boot_timeout, cmdline, disks, display, egress, files, image, mac, mem_size_mib, mount, name, nic, numa, password, qemu, root, root_size, snapshot_path, start_command, type, user, vcpu_count, vlans`},
		{"pointer escapes", qemu(`, "a/b~c": 1`), `machine configuration lab.json: machine "a": /machines/0/a~1b~0c: unknown key; known keys are allow_reboot, backend, boot, boot_timeout, cmdline, disks, display, egress, files, image, mac, mem_size_mib, mount, name, nic, numa, password, qemu, root, root_size, snapshot_path, start_command, type, user, vcpu_count, vlans`},
		{"wrong type", qemu(`, "vcpu_count": "2"`), `machine configuration lab.json: machine "a": /machines/0/vcpu_count: want a positive whole number, not the string "2"`},
		{"boolean for a number", qemu(`, "mem_size_mib": true`), `machine configuration lab.json: machine "a": /machines/0/mem_size_mib: want a positive whole number, not the boolean true`},
		{"fraction", qemu(`, "mem_size_mib": 1.5`), `machine configuration lab.json: machine "a": /machines/0/mem_size_mib: want a positive whole number, not the number 1.5`},
		{"no name", `{"machines": [{"backend": "qemu"}]}`, `machine configuration lab.json: /machines/0: "name" is missing`},
		{"bad name", `{"machines": [{"name": "-a", "backend": "qemu"}]}`, `machine configuration lab.json: machine "-a": /machines/0/name: not a machine name: want letters, digits, - and _, beginning with a letter or a digit`},
		{"no backend", `{"machines": [{"name": "a"}]}`, `machine configuration lab.json: machine "a": /machines/0: "backend" is missing; want qemu, firecracker, cloud-hypervisor or mock`},
		{"unknown backend", `{"machines": [{"name": "a", "backend": "vmware"}]}`, `machine configuration lab.json: machine "a": /machines/0/backend: unknown backend "vmware"; want qemu, firecracker, cloud-hypervisor or mock`},
		{"processors beside a start command", qemu(`, "vcpu_count": 1`), `machine configuration lab.json: machine "a": /machines/0/vcpu_count: "start_command" already determines the processors; leave one of the two out`},
		{"neither", `{"machines": [{"name": "a", "backend": "qemu"}]}`, `machine configuration lab.json: machine "a": /machines/0: want either "start_command" or "image"`},
		{"no kernel", `{"machines": [{"name": "a", "backend": "firecracker", "rootfs_path": "r"}]}`, `machine configuration lab.json: machine "a": /machines/0: "kernel_image_path" is missing (or "image")`},
		{"twice", `{"machines": [{"name": "a", "backend": "mock"}, {"name": "a", "backend": "mock"}]}`, `machine configuration lab.json: machine "a": /machines/1/name: another machine has the same name`},
		{"vlan", `{"vlans": [1, "x"]}`, `machine configuration lab.json: /vlans/1: want a positive whole number, not the string "x"`},
		{"pmem", `{"machines": [{"name": "a", "backend": "firecracker", "image": {}, "pmem_image_paths": ["/a", 1]}]}`, `machine configuration lab.json: machine "a": /machines/0/pmem_image_paths/1: want a string, not the number 1`},
		{"limit", `{"machines": [{"name": "a", "backend": "firecracker", "image": {}, "disk_bytes_per_second": 0}]}`, `machine configuration lab.json: machine "a": /machines/0/disk_bytes_per_second: want a positive whole number, not the number 0`},
		{"timeout", `{"global_timeout": -1}`, `machine configuration lab.json: /global_timeout: want a positive number of seconds, not the number -1`},
		{"file", qemu(`, "files": {"/etc/x": 1}`), `machine configuration lab.json: machine "a": /machines/0/files/~1etc~1x: want a string or an object, not the number 1`},
		{"field of a file", qemu(`, "files": {"/x": {"source": "x"}}`), `machine configuration lab.json: machine "a": /machines/0/files/~1x/source: unknown key; known keys are content, mode, path`},
		{"mount", qemu(`, "mount": {"/x": {}}`), `machine configuration lab.json: machine "a": /machines/0/mount/~1x: want a string, not an object`},
		{"tap", `{"machines": [{"name": "a", "backend": "cloud-hypervisor", "kernel_image_path": "k", "rootfs_path": "r", "tap_interfaces": [["x"]]}]}`, `machine configuration lab.json: machine "a": /machines/0/tap_interfaces/0: want [interface, host device, MAC address]`},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Parse("lab.json", []byte(test.json))
			var configError *Error
			if !errors.As(err, &configError) {
				t.Fatalf("got %v, want an *Error", err)
			}
			if err.Error() != test.want {
				t.Errorf("got\n  %s\nwant\n  %s", err, test.want)
			}
		})
	}
}

// TestEveryKeyIsDocumented compares the keys with docs/machine-config.md.
func TestEveryKeyIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/machine-config.md")
	if err != nil {
		t.Fatal(err)
	}
	for key := range readers {
		if !strings.Contains(string(page), "`"+key+"`") {
			t.Errorf("docs/machine-config.md lacks %s", key)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"machines": [{"name": "a", "backend": "mock", "script": {}}], "vlans": [1]}`))
	f.Add([]byte(`{"machines": [{"name": "a", "backend": "qemu", "image": null, "start_command": "x"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse("f", data)
		if (file == nil) == (err == nil) {
			t.Fatalf("got %v and %v", file, err)
		}
	})
}

// What only one backend has travels to that backend, under the keys of the file.
func TestOptions(t *testing.T) {
	for text, want := range map[string]string{
		`"backend": "firecracker", "firecracker_bin": "fc", "entropy": false`:       `{"entropy":false,"firecracker_bin":"fc"}`,
		`"backend": "cloud-hypervisor", "cloud_hypervisor_bin": "ch"`:               `{"cloud_hypervisor_bin":"ch"}`,
		`"backend": "cloud-hypervisor", "vsock_port": 99, "store_image_path": "/s"`: `{"store_image_path":"/s","vsock_port":99}`,
		`"backend": "firecracker", "disk_ops_per_second": 50`:                       `{"disk_ops_per_second":50}`,
		`"backend": "firecracker", "jailer_bin": "jailer", "jailer_uid": 1000`:      `{"jailer_bin":"jailer","jailer_uid":1000}`,
		`"backend": "firecracker", "pmem_image_paths": ["/a", "/b"]`:                `{"pmem_image_paths":["/a","/b"]}`,
		`"backend": "cloud-hypervisor"`:                                             ``,
	} {
		f, err := Parse("lab.json", []byte(`{"machines": [{"name": "m", "image": {}, `+text+`}]}`))
		if err != nil {
			t.Fatal(err)
		}
		got, _ := f.Machines[0].Settings()["options"].([]byte)
		if string(got) != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
}
