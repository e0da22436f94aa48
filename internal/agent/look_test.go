package agent

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/wire"
)

// A kernel may lack counters, and files.
func TestMemory(t *testing.T) {
	dir := t.TempDir()
	if m := memory(dir); m != (wire.Memory{}) {
		t.Errorf("without files: %+v", m)
	}
	for name, text := range map[string]string{
		"meminfo":         "MemTotal:         245760 kB\nMemFree:          1 kB\nMemAvailable:       8192 kB\n",
		"pressure/memory": "some avg10=70.00 avg60=1.00 avg300=0.00 total=7\nfull avg10=45.40 avg60=1.00 avg300=0.00 total=5\n",
		"vmstat":          "nr_free_pages 1\noom_kill 3\noom_kill_disable 9\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if m := memory(dir); m != (wire.Memory{Total: 245760, Available: 8192, Stalled: 45.4, Killed: 3}) {
		t.Errorf("got %+v", m)
	}
}

// What is not known of units is said, unless there is no systemd.
func TestUnitsUnknown(t *testing.T) {
	dir := t.TempDir()
	if units, unknown := troubledUnits(t.Context(), filepath.Join(dir, "none"), time.Minute); len(units) > 0 || unknown != "" {
		t.Errorf("no systemd: %v, %q", units, unknown)
	}
	silent := filepath.Join(dir, "silent")
	l, err := net.Listen("unix", silent)
	if err != nil {
		t.Fatal(err)
	}
	if units, unknown := troubledUnits(t.Context(), silent, 50*time.Millisecond); len(units) > 0 || unknown != "systemd had not answered after 50ms" {
		t.Errorf("a silent one: %v, %q", units, unknown)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if units, unknown := troubledUnits(t.Context(), silent, time.Minute); len(units) > 0 || unknown == "" {
		t.Errorf("one that is gone: %v, %q", units, unknown)
	}
}
