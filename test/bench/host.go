package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"

	"github.com/attest-vm/attest/internal/accel"
)

// Host is where a run took place.
type Host struct {
	CPU        string `json:"cpu"`
	CPUs       int    `json:"cpus"`
	VMM        string `json:"vmm"` // with its version and accelerator
	Why        string `json:"why"` // that accelerator
	LoadBefore string `json:"load_before"`
	LoadAfter  string `json:"load_after"`
}

// Guest is what ran in it.
type Guest struct {
	System string `json:"system"`
	Kernel string `json:"kernel"`
	Memory int    `json:"memory_mib"`
	CPUs   int    `json:"cpus"`
}

func (g Guest) String() string {
	return fmt.Sprintf("%s, Linux %s, %d MiB, %d vCPU", g.System, g.Kernel, g.Memory, g.CPUs)
}

var qemuVersion = regexp.MustCompile(`version ([0-9.]+)`)

func describeHost(ctx context.Context) (Host, error) {
	probe, err := accel.Detect(ctx)
	if err != nil {
		return Host{}, err
	}
	out, _ := exec.Command("qemu-system-x86_64", "--version").Output() // a missing one is reported by the first boot
	version := ""
	if m := qemuVersion.FindSubmatch(out); m != nil {
		version = " " + string(m[1])
	}
	return Host{
		CPU: cmp.Or(cpuModel(), runtime.GOARCH), CPUs: runtime.NumCPU(),
		VMM: "QEMU" + version + " under " + strings.ToUpper(probe.Accel()), Why: probe.Reason, LoadBefore: load(),
	}, nil
}

func cpuModel() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// load is the host's load average of the last minute.
func load() string {
	text, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(text), " ")
	return cmp.Or(first, "unknown")
}
