package microvm

import (
	"strings"

	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/wire"
)

// VsockArgument tells a guest of attest's that the host comes by vsock.
const VsockArgument = wire.VsockArgument

// DisksArgument tells a guest of attest's which disk is which, by their order.
func DisksArgument(disks []vmm.Disk) string {
	serials := make([]string, len(disks))
	for i, d := range disks {
		serials[i] = d.Serial
	}
	return wire.DisksArgument + "=" + strings.Join(serials, ",")
}

// AgentPort is the vsock port of attest's agent.
const AgentPort = wire.VsockPort
