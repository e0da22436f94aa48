package qemu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"

	"github.com/attest-vm/attest/internal/vmm"
)

// A machine's nodes are not QEMU's own (-numa): each of those has a memory backend of its
// own, and the memory of attest's machines is one file, which clones share. A guest learns
// its nodes from an ACPI table, the SRAT, and attest writes that. All of the memory is as
// fast, as on a host that has no nodes.

// maxNodeMemory, in MiB, is where QEMU begins to put memory elsewhere for some processors
// (hw/i386/pc.c, AMD's hole below 1 TiB).
const maxNodeMemory = 512 << 10

// maxAPIC is the largest number of a processor that needs no x2APIC.
const maxAPIC = 254

// checkNUMA refuses nodes that a machine cannot have.
func checkNUMA(hw *vmm.Hardware) error {
	switch cpus := max(hw.CPUs, 1); {
	case hw.NUMA == 0:
	case hw.Type == "microvm":
		return errors.New("the machine type microvm has none")
	case hw.NUMA < 0 || cpus%hw.NUMA != 0:
		return fmt.Errorf("%d CPUs cannot be divided by %d", cpus, hw.NUMA)
	case megabytes(hw) > maxNodeMemory:
		return fmt.Errorf("the nodes can have %d MiB together, and it has %d", maxNodeMemory, megabytes(hw))
	case apic(hw, cpus-1) > maxAPIC:
		return fmt.Errorf("its processors would get numbers above %d; give each node 1, 2, 4 or another power of two", maxAPIC)
	}
	return nil
}

// nodes gives the machine its nodes. Each is a socket: a kernel warns of processors on
// different nodes that share a cache.
func (c *command) nodes(h invocation) {
	if h.hw.NUMA == 0 {
		return
	}
	c.add("-acpitable", fmt.Sprintf("file=/proc/self/fd/%d", c.fd(h.srat)))
}

// processors is the machine's count of CPUs, and how they are laid out.
func processors(hw *vmm.Hardware) string {
	cpus := max(hw.CPUs, 1)
	if hw.NUMA == 0 {
		return itoa(cpus)
	}
	return fmt.Sprintf("%d,sockets=%d,cores=%d,threads=1", cpus, hw.NUMA, cpus/hw.NUMA)
}

// apic is the APIC's number of the i-th CPU: the socket's, and below it the core's in as
// many bits as all cores of a socket need (QEMU include/hw/i386/topology.h).
func apic(hw *vmm.Hardware, i int) int {
	cores := max(hw.CPUs, 1) / hw.NUMA
	return i/cores<<bits.Len(uint(cores-1)) | i%cores
}

// What q35 puts below 4 GiB of its memory: all of it if it is less than mostBelow, and
// otherwise as much as restBelow. The rest begins at 4 GiB (QEMU hw/i386/pc_q35.c).
const (
	mostBelow = 0xb0000000
	restBelow = 0x80000000
	above     = 1 << 32
)

// A memoryRange is a part of a node's memory, by its physical addresses.
type memoryRange struct{ base, size uint64 }

// nodeMemory are the ranges of the i-th node.
func nodeMemory(hw *vmm.Hardware, i int) (ranges []memoryRange) {
	const align = 2 // MiB; no large page is on two nodes
	all, node := megabytes(hw), megabytes(hw)/hw.NUMA/align*align
	from, to := uint64(i*node)<<20, uint64((i+1)*node)<<20
	if i == hw.NUMA-1 {
		to = uint64(all) << 20
	}
	below := uint64(all) << 20
	if below >= mostBelow {
		below = restBelow
	}
	if from < below {
		ranges = append(ranges, memoryRange{from, min(to, below) - from})
	}
	if from = max(from, below); from < to {
		ranges = append(ranges, memoryRange{above + from - below, to - from})
	}
	return ranges
}

// An acpiHeader begins every table (ACPI 6.5, 5.2.6).
type acpiHeader struct {
	Signature       [4]byte
	Length          uint32
	Revision        uint8
	Checksum        uint8 // the sum of all bytes of the table is 0
	OEM             [6]byte
	OEMTable        [8]byte
	OEMRevision     uint32
	Creator         [4]byte
	CreatorRevision uint32
}

const acpiLength, acpiChecksum = 4, 9 // where they are in it

// srat is the System Resource Affinity Table (ACPI 6.5, 5.2.16).
func srat(hw *vmm.Hardware) []byte {
	const enabled = 1
	var table bytes.Buffer
	put := func(v any) { binary.Write(&table, binary.LittleEndian, v) }
	put(acpiHeader{
		Signature: [4]byte([]byte("SRAT")), Revision: 3, OEM: [6]byte([]byte("ATTEST")), OEMTable: [8]byte([]byte("ATTEST  ")), OEMRevision: 1,
		Creator: [4]byte([]byte("ATST")), CreatorRevision: 1,
	})
	put(struct {
		One uint32
		_   uint64
	}{One: 1})
	cpus := max(hw.CPUs, 1)
	for i := range cpus {
		put(struct {
			Type, Length, Node, APIC uint8
			Flags                    uint32
			_                        [8]byte
		}{Type: 0, Length: 16, Node: uint8(i / (cpus / hw.NUMA)), APIC: uint8(apic(hw, i)), Flags: enabled})
	}
	for i := range hw.NUMA {
		for _, r := range nodeMemory(hw, i) {
			put(struct {
				Type, Length uint8
				Node         uint32
				_            uint16
				Base, Size   uint64
				_            uint32
				Flags        uint32
				_            uint64
			}{Type: 1, Length: 40, Node: uint32(i), Base: r.base, Size: r.size, Flags: enabled})
		}
	}
	t := table.Bytes()
	binary.LittleEndian.PutUint32(t[acpiLength:], uint32(len(t)))
	var sum byte
	for _, b := range t {
		sum += b
	}
	t[acpiChecksum] = -sum
	return t
}

// newSRAT is a file with the table of a machine's nodes; nil if it has none.
func newSRAT(hw *vmm.Hardware) (*os.File, error) {
	if hw.NUMA == 0 {
		return nil, nil
	}
	f, err := vmm.MemoryFile("attest-srat")
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(srat(hw), 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
