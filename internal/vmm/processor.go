package vmm

import (
	"os"
	"strings"
)

// Processor is what the guest may see of the host's.
func Processor() string {
	cpuinfo, _ := os.ReadFile("/proc/cpuinfo")
	var lines []string
	for line := range strings.Lines(string(cpuinfo)) {
		key, _, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "model name", "stepping", "flags":
			lines = append(lines, strings.TrimSpace(line))
		case "":
			return strings.Join(lines, "\n")
		}
	}
	return strings.Join(lines, "\n")
}
