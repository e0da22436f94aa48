package cloudhypervisor

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/attest-vm/attest/internal/vmm/microvm"
)

const apiBase = "/api/v1"

// What is sent.
type (
	vmConfig struct {
		CPUs    cpusConfig    `json:"cpus"`
		Memory  memoryConfig  `json:"memory"`
		Payload payloadConfig `json:"payload"`
		Disks   []diskConfig  `json:"disks,omitempty"`
		Nets    []netConfig   `json:"net,omitempty"`
		RNG     rngConfig     `json:"rng"`
		Serial  consoleConfig `json:"serial"`
		Console consoleConfig `json:"console"`
		Vsock   vsockConfig   `json:"vsock"`
		PVPanic bool          `json:"pvpanic"`
	}
	cpusConfig struct {
		Boot int `json:"boot_vcpus"`
		Max  int `json:"max_vcpus"`
	}
	memoryConfig struct {
		Size  int64        `json:"size"` // in bytes, beside the zones
		Zones []zoneConfig `json:"zones"`
	}
	zoneConfig struct {
		ID     string `json:"id"`
		Size   int64  `json:"size"` // in bytes
		File   string `json:"file"`
		Shared bool   `json:"shared"`
	}
	payloadConfig struct {
		Kernel    string `json:"kernel"`
		Cmdline   string `json:"cmdline"`
		Initramfs string `json:"initramfs,omitempty"`
	}
	diskConfig struct {
		Path     string `json:"path"`
		Type     string `json:"image_type"`
		ReadOnly bool   `json:"readonly"`
		Serial   string `json:"serial,omitempty"`

		Limiter *microvm.RateLimiter `json:"rate_limiter_config,omitempty"`
	}
	netConfig struct {
		ID  string `json:"id"`
		TAP string `json:"tap"`
		MAC string `json:"mac,omitempty"`
	}
	rngConfig struct {
		Source string `json:"src"`
	}
	consoleConfig struct {
		Mode   string `json:"mode"`
		Socket string `json:"socket,omitempty"`
	}
	vsockConfig struct {
		ID     string `json:"id"`
		CID    int    `json:"cid"`
		Socket string `json:"socket"`
	}
	snapshotConfig struct {
		URL string `json:"destination_url"`
	}
	restoreConfig struct {
		URL string `json:"source_url"`
	}
)

// Files of a snapshot.
const (
	configFile = "config.json"
	stateFile  = "state.json"
	rangesFile = "memory-ranges"
)

// chain is why a request was refused: errors from the outermost to the innermost.
func chain(body []byte) string {
	var errors []string
	if json.Unmarshal(body, &errors) == nil {
		if len(errors) > 1 && errors[0] == "Error from API" {
			errors = errors[1:] // which says nothing
		}
		if text := strings.TrimSpace(strings.Join(errors, ": ")); text != "" {
			return text
		}
	}
	if text := strings.TrimSpace(string(body)); text != "" {
		return text
	}
	return "it gives no reason"
}

// A saved is the device part of a vmm.State.
type saved struct {
	Config json.RawMessage `json:"config"`
	State  json.RawMessage `json:"state"`
}

// changed sets a value deep in a JSON object, and keeps everything else as it is. A step
// of the path is a key, or 0 for the first element of a list.
func changed(object json.RawMessage, value any, path ...any) (json.RawMessage, error) {
	if len(path) == 0 {
		return json.Marshal(value)
	}
	if _, isIndex := path[0].(int); isIndex {
		var list []json.RawMessage
		if err := json.Unmarshal(object, &list); err != nil {
			return nil, err
		}
		if len(list) == 0 {
			return nil, fmt.Errorf("an empty list")
		}
		var err error
		if list[0], err = changed(list[0], value, path[1:]...); err != nil {
			return nil, err
		}
		return json.Marshal(list)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(object, &fields); err != nil {
		return nil, err
	}
	key := path[0].(string)
	inner, ok := fields[key]
	if !ok {
		return nil, fmt.Errorf("no %q", key)
	}
	b, err := changed(inner, value, path[1:]...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	fields[key] = b
	return json.Marshal(fields)
}

// cloned is a saved machine that maps the memory in a file privately.
func cloned(device []byte, file string) (*saved, error) {
	var s saved
	err := json.Unmarshal(device, &s)
	if err == nil {
		s.Config, err = changed(s.Config, file, "memory", "zones", 0, "file")
	}
	if err == nil {
		s.Config, err = changed(s.Config, false, "memory", "zones", 0, "shared")
	}
	if err != nil {
		return nil, fmt.Errorf("the saved machine is not one of cloud-hypervisor's: %w", err)
	}
	return &s, nil
}

// withoutRanges is the state of a machine whose memory is in the file of its zone, and
// not in one of cloud-hypervisor's own (MemoryManagerSnapshotData in its
// vmm/src/memory_manager.rs).
func withoutRanges(state json.RawMessage) (json.RawMessage, error) {
	path := []any{"snapshots", "memory-manager", "snapshot_data", "state"}
	inner, err := at(state, path...)
	var text string
	if err == nil {
		err = json.Unmarshal(inner, &text)
	}
	var manager json.RawMessage
	if err == nil {
		manager, err = changed(json.RawMessage(text), map[string][]int{"data": {}}, "memory_ranges")
	}
	if err == nil {
		state, err = changed(state, string(manager), path...)
	}
	if err != nil {
		return nil, fmt.Errorf("the state of the saved machine: %w", err)
	}
	return state, nil
}

// at is the value deep in an object.
func at(object json.RawMessage, path ...any) (json.RawMessage, error) {
	for _, key := range path {
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(object, &fields); err != nil {
			return nil, err
		}
		inner, ok := fields[key.(string)]
		if !ok {
			return nil, fmt.Errorf("no %q", key)
		}
		object = inner
	}
	return object, nil
}
