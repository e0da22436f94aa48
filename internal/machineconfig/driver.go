package machineconfig

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Driver is a configuration of the NixOS test driver: what its --config has, or its older flags.
type Driver struct {
	Path          string
	VMs           []DriverVM // in the order of their names
	Containers    []string   // names
	VLANs         []int      // of all machines: each start script connects to those that it knows
	GlobalTimeout time.Duration
	SSHBackdoor   bool
	TestScript    string
}

// A DriverVM is a machine of a Driver.
type DriverVM struct{ Name, StartScript string }

// ReadDriver reads the JSON that the NixOS test driver takes as --config. Keys that it does
// not know are ignored, as that driver does; its errors are an *Error, or the file system's.
func ReadDriver(path string) (*Driver, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("driver configuration: %w", err)
	}
	return ParseDriver(path, data)
}

// HasMachines reports whether a file is a machine configuration of attest's own, good or bad.
func HasMachines(path string) bool {
	data, err := os.ReadFile(path)
	var top struct{ Machines json.RawMessage }
	return err == nil && json.Unmarshal(data, &top) == nil && top.Machines != nil
}

// ParseDriver reads the content of such a file; path is for errors.
func ParseDriver(path string, data []byte) (*Driver, error) {
	top, err := decode(path, data)
	if err != nil {
		return nil, err
	}
	d := &Driver{Path: path, GlobalTimeout: time.Hour}
	r := reader{file: path}
	root := r.object("", top)
	if r.err == nil {
		r.driverEra(root)
	}
	r.take(root, "vms", func(v any) { r.driverVMs(d, v) })
	r.take(root, "containers", func(v any) { d.Containers = slices.Sorted(maps.Keys(r.object("/containers", v))) })
	r.take(root, "vlans", func(v any) { d.VLANs = r.vlans("/vlans", v) })
	r.take(root, "global_timeout", func(v any) { d.GlobalTimeout = r.isoDuration("/global_timeout", v) })
	r.take(root, "enable_ssh_backdoor", func(v any) { d.SSHBackdoor = r.bool("/enable_ssh_backdoor", v) })
	r.take(root, "test_script", func(v any) { d.TestScript = r.string("/test_script", v) })
	if r.err != nil {
		return nil, r.err
	}
	return d, nil
}

// driverEra refuses a file that is not a configuration of that driver at all.
func (r *reader) driverEra(root map[string]any) {
	switch {
	case root["vms"] != nil || root["containers"] != nil:
	case root["machines"] != nil:
		r.fail("", `it has "machines": this is a machine configuration of attest; run it with attest run --machine-config`)
	default:
		r.fail("", fmt.Sprintf(`it has neither "vms" nor "containers", so it is not a configuration of a known NixOS test driver; it has %s`, keysOf(root)))
	}
}

func keysOf(o map[string]any) string {
	if len(o) == 0 {
		return "no keys"
	}
	return strings.Join(slices.Sorted(maps.Keys(o)), ", ")
}

func (r *reader) driverVMs(d *Driver, v any) {
	vms := r.object("/vms", v)
	for _, key := range slices.Sorted(maps.Keys(vms)) {
		at := "/vms/" + escape(key)
		r.name = key
		vm := DriverVM{Name: key}
		o := r.object(at, vms[key])
		r.take(o, "name", func(v any) { vm.Name = r.string(at+"/name", v) })
		r.take(o, "start_script", func(v any) { vm.StartScript = r.string(at+"/start_script", v) })
		if vm.StartScript == "" {
			r.fail(at, `"start_script" is missing`)
		}
		d.VMs = append(d.VMs, vm)
		r.name = ""
	}
}

// iso is a duration of ISO 8601 without years and months, whose length varies.
var iso = regexp.MustCompile(`^P(?:([0-9.]+)W)?(?:([0-9.]+)D)?(?:T(?:([0-9.]+)H)?(?:([0-9.]+)M)?(?:([0-9.]+)S)?)?$`)

// isoDuration reads a number of seconds, or a duration of ISO 8601.
func (r *reader) isoDuration(at string, v any) time.Duration {
	text, ok := v.(string)
	if !ok {
		return r.seconds(at, v)
	}
	parts := iso.FindStringSubmatch(text)
	total := 0.0
	for i, seconds := range []float64{7 * 24 * 3600, 24 * 3600, 3600, 60, 1} {
		if parts == nil || parts[i+1] == "" {
			continue
		}
		n, err := strconv.ParseFloat(parts[i+1], 64)
		if err != nil {
			total = math.NaN()
		}
		total += n * seconds
	}
	if !(total > 0 && total <= 1e9) {
		r.want(at, "a positive number of seconds, or a duration such as \"PT1H\"", v)
		return 0
	}
	return time.Duration(total * float64(time.Second))
}
