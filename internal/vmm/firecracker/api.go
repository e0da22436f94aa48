package firecracker

import (
	"encoding/json"
	"strings"

	"github.com/attest-vm/attest/internal/vmm/microvm"
)

// What is sent. A field that not every version since the oldest has is left out where it is
// empty, and is filled only for versions that have it.

type machineConfig struct {
	VCPUs     int    `json:"vcpu_count"`
	Memory    int    `json:"mem_size_mib"`
	HugePages string `json:"huge_pages,omitempty"`
}

type bootSource struct {
	Kernel  string `json:"kernel_image_path"`
	Initrd  string `json:"initrd_path,omitempty"`
	Cmdline string `json:"boot_args"`
}

type drive struct {
	ID        string `json:"drive_id"`
	Path      string `json:"path_on_host"`
	Root      bool   `json:"is_root_device"`
	ReadOnly  bool   `json:"is_read_only"`
	CacheType string `json:"cache_type,omitempty"`
	IOEngine  string `json:"io_engine,omitempty"`

	Limiter *microvm.RateLimiter `json:"rate_limiter,omitempty"`
}

// pmem is of versions from pmemSince on.
type pmem struct {
	ID       string `json:"id"`
	Path     string `json:"path_on_host"`
	Root     bool   `json:"root_device"`
	ReadOnly bool   `json:"read_only"`
}

type networkInterface struct {
	ID  string `json:"iface_id"`
	TAP string `json:"host_dev_name"`
	MAC string `json:"guest_mac,omitempty"`
}

type vsock struct {
	CID  int    `json:"guest_cid"`
	Path string `json:"uds_path"`
}

type action struct {
	Type string `json:"action_type"`
}

type vmState struct {
	State string `json:"state"`
}

const (
	paused  = "Paused"
	resumed = "Resumed"
)

type snapshotCreate struct {
	Type   string `json:"snapshot_type"`
	State  string `json:"snapshot_path"`
	Memory string `json:"mem_file_path"`
}

type snapshotLoad struct {
	State  string        `json:"snapshot_path"`
	Memory memoryBackend `json:"mem_backend"`
	Resume bool          `json:"resume_vm"`
}

type memoryBackend struct {
	Type string `json:"backend_type"`
	Path string `json:"backend_path"`
}

// faultMessage is why a request was refused.
func faultMessage(body []byte) string {
	var fault struct {
		Message string `json:"fault_message"`
	}
	if json.Unmarshal(body, &fault) == nil && fault.Message != "" {
		return strings.TrimSpace(fault.Message)
	}
	if text := strings.TrimSpace(string(body)); text != "" {
		return text
	}
	return "it gives no reason"
}

// Versions that differ in what matters here.
var (
	oldest     = microvm.Version{1, 7, 0}
	pciSince   = microvm.Version{1, 13, 0} // --enable-pci
	pmemSince  = microvm.Version{1, 14, 0} // /pmem
	soundSince = microvm.Version{1, 14, 0} // a vsock on which nothing is damaged that guests with newer kernels send (#5475)
	bzSince    = microvm.Version{1, 17, 0} // kernels that are a bzImage
	thpSince   = microvm.Version{1, 17, 0} // huge_pages Transparent
	deafSince  = microvm.Version{1, 16, 0} // pause and resume without a snapshot leave a vsock that nobody hears (#6100)
	deafBefore = microvm.Version{1, 17, 0}
	lostSince  = microvm.Version{1, 16, 0} // a vsock that is dead after a restore (#5969)
	lostBefore = microvm.Version{1, 16, 1}
)

// newerSince is the first of these kernels.
var newerSince = microvm.Version{6, 17, 0}

func within(v, since, before microvm.Version) bool { return !v.Before(since) && v.Before(before) }
