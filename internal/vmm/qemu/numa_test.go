package qemu

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/attest-vm/attest/internal/vmm"
)

// described is what a table says, a line for each processor and range of memory.
func described(t *testing.T, table []byte) (lines []string) {
	t.Helper()
	var sum byte
	for _, b := range table {
		sum += b
	}
	if sum != 0 || string(table[:4]) != "SRAT" || int(binary.LittleEndian.Uint32(table[4:])) != len(table) {
		t.Fatalf("not a table: %x", table)
	}
	for rest := table[48:]; len(rest) > 0; rest = rest[rest[1]:] {
		le := binary.LittleEndian
		switch {
		case rest[0] == 0 && rest[1] == 16 && rest[4] == 1: // a processor that is there
			lines = append(lines, fmt.Sprintf("APIC %d: node %d", rest[3], rest[2]))
		case rest[0] == 1 && rest[1] == 40 && rest[28] == 1: // memory that is there
			base, size := le.Uint64(rest[8:]), le.Uint64(rest[16:])
			lines = append(lines, fmt.Sprintf("%d to %d MiB: node %d", base>>20, (base+size)>>20, le.Uint32(rest[2:])))
		default:
			t.Fatalf("an entry %x", rest)
		}
	}
	return lines
}

func TestSRAT(t *testing.T) {
	for name, tt := range map[string]struct {
		hw   vmm.Hardware
		want string
	}{
		"two":              {vmm.Hardware{NUMA: 2, CPUs: 2, Memory: 512}, "APIC 0: node 0, APIC 1: node 1, 0 to 256 MiB: node 0, 256 to 512 MiB: node 1"},
		"one":              {vmm.Hardware{NUMA: 1, Memory: 512}, "APIC 0: node 0, 0 to 512 MiB: node 0"},
		"three cores each": {vmm.Hardware{NUMA: 2, CPUs: 6, Memory: 512}, "APIC 0: node 0, APIC 1: node 0, APIC 2: node 0, APIC 4: node 1, APIC 5: node 1, APIC 6: node 1, 0 to 256 MiB: node 0, 256 to 512 MiB: node 1"},
		"what is left":     {vmm.Hardware{NUMA: 3, CPUs: 3, Memory: 1000}, "APIC 0: node 0, APIC 1: node 1, APIC 2: node 2, 0 to 332 MiB: node 0, 332 to 664 MiB: node 1, 664 to 1000 MiB: node 2"},
		"at the hole":      {vmm.Hardware{NUMA: 2, CPUs: 2, Memory: 2815}, "APIC 0: node 0, APIC 1: node 1, 0 to 1406 MiB: node 0, 1406 to 2815 MiB: node 1"},
		"beyond the hole":  {vmm.Hardware{NUMA: 2, CPUs: 2, Memory: 2816}, "APIC 0: node 0, APIC 1: node 1, 0 to 1408 MiB: node 0, 1408 to 2048 MiB: node 1, 4096 to 4864 MiB: node 1"},
		"above 4 GiB":      {vmm.Hardware{NUMA: 2, CPUs: 2, Memory: 8192}, "APIC 0: node 0, APIC 1: node 1, 0 to 2048 MiB: node 0, 4096 to 6144 MiB: node 0, 6144 to 10240 MiB: node 1"},
	} {
		if diff := cmp.Diff(strings.Split(tt.want, ", "), described(t, srat(&tt.hw))); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
}

func TestNodesRefused(t *testing.T) {
	for want, hw := range map[string]*vmm.Hardware{
		"2 NUMA nodes is not supported by backend qemu: the machine type microvm has none": {Type: "microvm", NUMA: 2, CPUs: 2},
		"3 CPUs cannot be divided by 2":                   {NUMA: 2, CPUs: 3},
		"can have 524288 MiB together, and it has 524289": {NUMA: 1, Memory: 512<<10 + 1},
		"give each node 1, 2, 4 or another power of two":  {NUMA: 17, CPUs: 255},
	} {
		if err := (&backend{}).Check(vmm.Config{Boot: hw}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// A QEMU takes the table as attest writes it, and goes on with it from a snapshot; a machine
// with other nodes is another machine.
func TestNodes(t *testing.T) {
	hw := &vmm.Hardware{NUMA: 2, CPUs: 4, Memory: 128}
	m := start(t, vmm.Config{Boot: hw, Paused: true}).machine
	topology, err := m.MonitorCommand(t.Context(), "info hotpluggable-cpus")
	if err != nil || strings.Count(topology, `socket-id: "1"`) != 2 || strings.Contains(topology, `socket-id: "2"`) {
		t.Errorf("%s, %v", topology, err)
	}
	seen := map[string]bool{}
	for _, nodes := range []int{0, 1, 2, 4} {
		other := *hw
		other.NUMA = nodes
		print, err := (&backend{}).Fingerprint(vmm.Host{}, vmm.Config{Boot: &other})
		if err != nil {
			t.Fatal(err)
		}
		seen[print] = true
	}
	if len(seen) != 4 {
		t.Errorf("%d fingerprints", len(seen))
	}
	if bytes.Equal(srat(hw), srat(&vmm.Hardware{NUMA: 4, CPUs: 4, Memory: 128})) {
		t.Error("the same table")
	}
}
