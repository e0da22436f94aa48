package vde

import (
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// BenchmarkClients sends frames from one VDE client to another, through attest's
// switch and through vde_switch. An operation is one frame. What is under way is
// less than either loses; the sending and receiving is in the time.
func BenchmarkClients(b *testing.B) {
	for name, dir := range map[string]func(testing.TB) string{
		"attest":     func(t testing.TB) string { return newLAN(t).hub.Dir() },
		"vde_switch": startVDESwitch,
	} {
		b.Run(name, func(b *testing.B) {
			dir := dir(b)
			from, to := plugIn(b, dir, "from"), plugIn(b, dir, "to")
			for _, c := range []*client{from, to} {
				c.data.SetDeadline(time.Now().Add(10 * time.Minute))
			}
			// Both are learned, so nothing is flooded.
			to.send(frame(2, "hello"))
			from.expect(frame(2, "hello"))
			f := append([]byte{2, 0, 0, 0, 0, 2}, frame(1, strings.Repeat("x", 1500))[6:]...)
			const under = 32
			window := make(chan struct{}, under)
			b.SetBytes(int64(len(f)))
			b.ResetTimer()
			go func() {
				for range b.N {
					window <- struct{}{}
					from.data.Write(f)
				}
			}()
			buf := make([]byte, 2000)
			for range b.N {
				if _, err := to.data.Read(buf); err != nil {
					b.Fatal(err)
				}
				<-window
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "frames/s")
		})
	}
}

func startVDESwitch(t testing.TB) string {
	path, err := exec.LookPath("vde_switch")
	if err != nil {
		t.Skip(err)
	}
	dir := filepath.Join(shortDir(t), "sw")
	cmd := exec.Command(path, "-s", dir)
	in, err := cmd.StdinPipe() // it ends with its standard input
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = io.Discard
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if conn, err := net.Dial("unix", filepath.Join(dir, "ctl")); err == nil {
			conn.Close()
			return dir
		}
		if time.Now().After(deadline) {
			t.Fatal("vde_switch does not listen")
		}
	}
}
