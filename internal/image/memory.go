package image

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A root of ten thousand small files is unpacked and read again five to ten
// times faster in memory than on most disks, and is thrown away afterwards.
// Root can mount a tmpfs for it in the build's own mount namespace, so that it
// is gone with the build, however that ends.

const (
	leastMemory = 3 << 30 // below this much available memory builds use the disk
	mostMemory  = 8 << 30 // the size of a tmpfs, at most; and at most half of what is available
)

// memoryMount is a shell script that runs its arguments, with a tmpfs on TMPDIR
// if that can be had; empty if memory is short or a mount not allowed.
func memoryMount() string {
	available := memoryAvailable("/")
	if os.Geteuid() != 0 || available < leastMemory {
		return ""
	}
	size := min(available/2, mostMemory)
	return fmt.Sprintf(`mount -t tmpfs -o mode=0755,size=%dk attest-build "$TMPDIR" 2>/dev/null; exec "$@"`, size>>10)
}

// MemoryAvailable is how many bytes of memory this process and what it starts
// can use without swapping.
func MemoryAvailable() int64 { return memoryAvailable("/") }

// memoryAvailable is how many bytes this process can use without swapping:
// what the kernel says, or what a control group above it allows.
func memoryAvailable(root string) int64 {
	data, _ := os.ReadFile(filepath.Join(root, "proc/meminfo"))
	var available int64
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) >= 2 && fields[0] == "MemAvailable:" {
			kib, _ := strconv.ParseInt(fields[1], 10, 64)
			available = kib << 10
		}
	}
	data, _ = os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	for line := range strings.Lines(string(data)) {
		group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::") // version 2
		if !ok {
			continue
		}
		for dir := filepath.Clean(group); ; dir = filepath.Dir(dir) {
			base := filepath.Join(root, "sys/fs/cgroup", dir)
			limit, lerr := readNumber(filepath.Join(base, "memory.max"))
			used, uerr := readNumber(filepath.Join(base, "memory.current"))
			if lerr == nil && uerr == nil {
				available = min(available, limit-used)
			}
			if dir == "/" || dir == "." {
				break
			}
		}
	}
	return available
}

// oomKills is how many processes of this process's control group the kernel has
// killed because memory ran out; 0 where there is no such count. It is in
// memory.events, or in memory.oom_control of version 1 (the kernel's
// Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst).
func oomKills(root string) (n int64) {
	data, _ := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		file := filepath.Join("memory", filepath.Clean(fields[2]), "memory.oom_control")
		if fields[0] == "0" {
			file = filepath.Join(filepath.Clean(fields[2]), "memory.events")
		} else if fields[1] != "memory" {
			continue
		}
		events, _ := os.ReadFile(filepath.Join(root, "sys/fs/cgroup", file))
		for line := range strings.Lines(string(events)) {
			if count, ok := strings.CutPrefix(line, "oom_kill "); ok {
				killed, _ := strconv.ParseInt(strings.TrimSpace(count), 10, 64)
				n += killed
			}
		}
	}
	return n
}

func readNumber(name string) (int64, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(bytes.TrimSpace(data)), 10, 64)
}
