package qemu

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// FuzzState: a device state that somebody made up is refused, or taken apart without a
// byte lost.
func FuzzState(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte("\x00\x00\x00\x05pre"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Add(joinState([]byte("prefix"), []byte("devices")))
	f.Add(joinState([]byte(`{"memory": 4096, "shared": true, "print": "qemu"}`), joinState(nil, nil)))
	f.Add(joinState([]byte(`{"memory": -1}`), nil))
	f.Fuzz(func(t *testing.T, state []byte) {
		prefix, devices, err := splitState(state)
		if err == nil && !bytes.Equal(joinState(prefix, devices), state) {
			t.Errorf("%q became %q and %q", state, prefix, devices)
		}
		saved, _, err := splitScript(state)
		if err == nil && saved.Memory <= 0 {
			t.Errorf("a memory of %d bytes is saved", saved.Memory)
		}
	})
}

// FuzzBeforeDevices: whatever a QEMU writes, what is kept is what comes before its
// devices, or nothing.
func FuzzBeforeDevices(f *testing.F) {
	device := "\x04\x00\x00\x00\x01\x05timer and more"
	f.Add([]byte("QEVM\x00\x00\x00\x03"+device), []byte(device))
	f.Add([]byte(device+device), []byte(device))
	f.Add([]byte(device), []byte{})
	f.Add([]byte(device), []byte{sectionFull})
	f.Add([]byte(device), []byte("\x04\x00\x00\x00\x01\xffshort"))
	f.Fuzz(func(t *testing.T, stream, devices []byte) {
		prefix, err := beforeDevices(stream, devices)
		if err != nil {
			return
		}
		rest, ok := bytes.CutPrefix(stream, prefix)
		if n := min(len(devices), sectionHeader+int(devices[5])); !ok || !bytes.HasPrefix(rest, devices[:n]) {
			t.Errorf("%q before %q in %q", prefix, devices, stream)
		}
	})
}

// FuzzExamination: nothing that a foreign QEMU answers hides a disk or a memory that
// cannot be saved.
func FuzzExamination(f *testing.F) {
	f.Add([]byte(`[{"drv": "qcow2", "file": "disk", "image": {"backing-filename": "/base"}}, {"drv": "file", "ro": true, "file": "/"}]`),
		"Block Name PSize\r\npc.ram 4 KiB\r\n", "qemu\x00-drive\x00file=/tmp/x")
	f.Add([]byte(`[null, {"image": null}]`), "", "")
	f.Add([]byte(`[{"drv": "file", "file": "\u0000"}]`), "\r\n\r\n\t\r\n", "\x00\x00")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, answer []byte, blocks, cmdline string) {
		var nodes []blockNode
		if json.Unmarshal(answer, &nodes) == nil {
			outside, reason := stateDisks(nodes, dir)
			if i := slices.IndexFunc(outside, func(path string) bool { return !filepath.IsAbs(path) || within(path, dir) }); i >= 0 {
				t.Errorf("%q is outside of %s", outside[i], dir)
			}
			if _, with := stateDisks(append(nodes, blockNode{Driver: "file", File: "/"}), dir); with == "" {
				t.Errorf("a disk elsewhere is not seen behind %s (%q)", answer, reason)
			}
		}
		if sharesMemory(blocks + "\nvga.vram 4 KiB") {
			t.Errorf("a screen's memory is not seen behind %q", blocks)
		}
		argv := strings.Split(cmdline, "\x00")
		unsavable(argv)
		if reason, doubt := unsavable(append([]string{"qemu"}, append(argv, "-tpmdev")...)); reason == "" || doubt && !strings.Contains(reason, "9p") {
			t.Errorf("a TPM is not seen behind %q: %q", argv, reason)
		}
		if got := normalise(argv, map[string]string{dir: "$STATE"}); len(got) != len(argv) {
			t.Errorf("%q became %q", argv, got)
		}
	})
}
