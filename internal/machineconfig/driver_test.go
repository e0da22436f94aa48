package machineconfig

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseDriver(t *testing.T) {
	got, err := ParseDriver("c.json", []byte(`{
		"vms": {"server": {"name": "server", "start_script": "/run-server-vm"}, "client": {"start_script": "/run-client-vm", "later": 1}},
		"containers": {"box": {"name": "box", "start_script": "/run-box-nspawn"}},
		"vlans": [1, 2], "global_timeout": 90, "enable_ssh_backdoor": true, "test_script": "/script", "of_later_versions": {}
	}`))
	want := &Driver{
		Path: "c.json", VMs: []DriverVM{{"client", "/run-client-vm"}, {"server", "/run-server-vm"}}, Containers: []string{"box"},
		VLANs: []int{1, 2}, GlobalTimeout: 90 * time.Second, SSHBackdoor: true, TestScript: "/script",
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for text, want := range map[string]time.Duration{
		`"PT1H"`: time.Hour, `"PT1M30S"`: 90 * time.Second, `"P1DT0.5S"`: 24*time.Hour + time.Second/2, `1.5`: 1500 * time.Millisecond,
	} {
		d, err := ParseDriver("c.json", []byte(`{"vms": {}, "global_timeout": `+text+`}`))
		if err != nil || d.GlobalTimeout != want {
			t.Errorf("%s: got %v, %v", text, d, err)
		}
	}
}

func TestParseDriverErrors(t *testing.T) {
	const prefix = "machine configuration c.json: "
	for text, want := range map[string]string{
		`{"machines": []}`:                      `it has "machines": this is a machine configuration of attest; run it with attest run --machine-config`,
		`{"nodes": {}, "v": 3}`:                 `it has neither "vms" nor "containers", so it is not a configuration of a known NixOS test driver; it has nodes, v`,
		`{}`:                                    `it has neither "vms" nor "containers", so it is not a configuration of a known NixOS test driver; it has no keys`,
		`{"vms": []}`:                           "/vms: want an object, not an array",
		`{"vms": {"a": {}}}`:                    `machine "a": /vms/a: "start_script" is missing`,
		`{"vms": {"a": {"name": 1}}}`:           `machine "a": /vms/a/name: want a string, not the number 1`,
		`{"vms": {}, "vlans": ["1"]}`:           `/vlans/0: want a positive whole number, not the string "1"`,
		`{"vms": {}, "global_timeout": "soon"}`: `/global_timeout: want a positive number of seconds, or a duration such as "PT1H", not the string "soon"`,
		`{"vms": {}, "global_timeout": "PT"}`:   `/global_timeout: want a positive number of seconds, or a duration such as "PT1H", not the string "PT"`,
		`{"vms": {}} x`:                         "unexpected data after the JSON object",
		`{`:                                     "not JSON: unexpected EOF",
	} {
		_, err := ParseDriver("c.json", []byte(text))
		var configError *Error
		if !errors.As(err, &configError) || err.Error() != prefix+want {
			t.Errorf("%s:\ngot  %v\nwant %s", text, err, prefix+want)
		}
	}
}

func FuzzParseDriver(f *testing.F) {
	f.Add([]byte(`{"vms": {"a": {"name": "a", "start_script": "x"}}, "vlans": [1], "global_timeout": "PT1H"}`))
	f.Add([]byte(`{"containers": {"a": null}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := ParseDriver("f", data)
		if (d == nil) == (err == nil) {
			t.Fatalf("got %v and %v", d, err)
		}
	})
}
