package agent

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

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
