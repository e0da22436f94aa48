package network

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// tshark is what Wireshark makes of a capture: a line for each packet with the
// fields that are asked for.
func tshark(t *testing.T, path string, fields ...string) []string {
	t.Helper()
	args := []string{"-r", path, "-T", "fields", "-E", "separator=|"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	cmd := exec.Command("tshark", args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark (scripts/setup test installs it): %v\n%s", err, stderr.String())
	}
	if text := strings.TrimSuffix(string(out), "\n"); text != "" {
		return strings.Split(text, "\n")
	}
	return nil
}

func TestCaptureIsReadByTshark(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.pcapng")
	onBench(t, 3, func(b *bench) {
		b.stations[2].Port.Close()
		b.settle()
		c, err := b.Capture(emptyFile(t, path), path)
		if err != nil {
			t.Fatal(err)
		}
		b.send(0, 1, "one")
		b.after(time.Second)
		f := b.begin(Rule{Name: "partition(a, b)", Effect: Down{}, Flows: Both(These("a"), These("b"))})
		b.send(0, 1, "two")
		f.Heal()
		b.after(time.Second)
		f = b.begin(Rule{Name: "down(b)", Effect: Down{}, Flows: []Flow{{From: These("b")}}})
		b.send(1, 0, "three")
		f.Heal()
		b.attach("late", 5)
		b.stations[3].out <- frameOf(macOf(0), macOf(5), "four")
		b.settle()
		if err := c.Close(); err != nil || c.Close() != nil {
			t.Error(err)
		}
		b.send(0, 1, "not captured")
	})
	got := tshark(t, path, "frame.time_relative", "frame.interface_name", "frame.interface_description", "frame.packet_flags_direction", "frame.comment")
	want := []string{
		"0.000000000|a eth1|net1: a/eth1|0x00000002|",
		"0.000000000|b eth1|net1: b/eth1|0x00000001|",
		"1.000000000|attest|faults of the network||fault 1 began: partition(a, b)",
		"1.000000000|a eth1|net1: a/eth1|0x00000002|",
		"1.000000000|b eth1|net1: b/eth1|0x00000001|lost to fault 1: partition(a, b)",
		"1.000000000|attest|faults of the network||fault 1 ended: partition(a, b)",
		"2.000000000|attest|faults of the network||fault 2 began: down(b)",
		"2.000000000|b eth1|net1: b/eth1|0x00000002|lost to fault 2: down(b)",
		"2.000000000|attest|faults of the network||fault 2 ended: down(b)",
		"2.000000000|late eth1|net1: late/eth1|0x00000002|",
		"2.000000000|a eth1|net1: a/eth1|0x00000001|",
	}
	// In virtual time what comes at one time is in the order of its records: a
	// frame is recorded as sent when it has been received.
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	shown := tshark(t, path, "_ws.col.Protocol", "_ws.col.Info")
	if !slices.Contains(shown, "Syslog|USER.INFO: fault 1 began: partition(a, b)") {
		t.Errorf("packets are shown as\n%s", strings.Join(shown, "\n"))
	}
}

// A frame that one fault of its sender holds back and another one loses then was
// captured long ago: its end is a line.
func TestCaptureOfFramesThatAreLostLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.pcapng")
	onBench(t, 2, func(b *bench) {
		c, err := b.Capture(emptyFile(t, path), path)
		if err != nil {
			t.Fatal(err)
		}
		b.begin(Rule{Name: "delay(a)", Effect: Delay{Mean: time.Second}, Flows: []Flow{{From: These("a")}}})
		b.begin(Rule{Name: "down(a)", Effect: Down{}, Flows: []Flow{{From: These("a")}}})
		b.send(0, 1, "one")
		b.after(2 * time.Second)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	got := tshark(t, path, "frame.time_relative", "frame.interface_name", "frame.comment")
	want := []string{
		"0.000000000|attest|fault 1 began: delay(a)",
		"0.000000000|attest|fault 2 began: down(a)",
		"0.000000000|a eth1|",
		"1.000000000|attest|a frame of 17 bytes that a eth1 had sent, and a fault held back, is lost to fault 2: down(a)",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A capture is blocks one after the other at any moment, the last of them perhaps
// cut off: it can be read when the process was killed.
func TestCaptureCanBeReadAtAnyTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.pcapng")
	b := NewFabric(1)
	c, err := b.Capture(emptyFile(t, path), path)
	if err != nil {
		t.Fatal(err)
	}
	m := attach(t, b.Switch(1), 2)
	for i := range 200 {
		f := frameOf(broadcast, macOf(0), fmt.Sprintf("%*d", i*7, i))
		m[0].send(f)
		m[1].expect(f)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		checkBlocks(t, text)
	}
	b.Close()
	text, _ := os.ReadFile(path)
	if n, cut := checkBlocks(t, text); n != 2*200 || cut != 0 {
		t.Errorf("%d packets and %d bytes, want %d", n, cut, 2*200)
	}
	if c.Missed() != 0 {
		t.Errorf("%d frames were missed", c.Missed())
	}
}

// checkBlocks counts packets and the bytes of a last block that is not whole. It
// fails on what is no block, and on a packet of an interface that is not there
// yet.
func checkBlocks(t *testing.T, b []byte) (packets, cut int) {
	t.Helper()
	ifaces := uint32(0)
	for len(b) > 0 {
		if len(b) < 8 {
			return packets, len(b)
		}
		n := binary.LittleEndian.Uint32(b[4:])
		if int(n) > len(b) && n < 4096 {
			return packets, len(b)
		}
		if n%4 != 0 || int(n) > len(b) || binary.LittleEndian.Uint32(b[n-4:]) != n {
			t.Fatalf("a block of %d bytes, where %d are left", n, len(b))
		}
		switch binary.LittleEndian.Uint32(b) {
		case blockInterface:
			ifaces++
		case blockPacket:
			if i := binary.LittleEndian.Uint32(b[8:]); i >= ifaces {
				t.Fatalf("a packet of interface %d of %d", i, ifaces)
			}
			packets++
		}
		b = b[n:]
	}
	return packets, 0
}

// A disk that does not keep up loses frames of the capture and nothing else; how
// many is on the next packet.
func TestCaptureDoesNotWait(t *testing.T) {
	c := &Capture{ifaces: map[nicKey]int{{}: notes}, missed: map[int]uint64{}}
	c.ready.L = &c.mu
	big := make([]byte, 60000)
	for range maxCaptureBytes/len(big) + 10 {
		c.add(nil, packet{data: big})
	}
	missed := c.Missed()
	if missed < 5 || missed > 15 || len(c.blocks) > maxCaptureBytes+len(big) {
		t.Errorf("%d missed, %d bytes wait", missed, len(c.blocks))
	}
	c.blocks, c.packets = nil, nil // written
	c.add(nil, packet{data: []byte("x")})
	var b pcapng
	b.packet(packet{data: []byte("x"), dropped: missed})
	if got := c.blocks; !bytes.Equal(got[28:], b[28:]) {
		t.Errorf("after the gap: %x, want %x", got, b)
	}
}

func TestCaptureOfClosedFabric(t *testing.T) {
	f := NewFabric(1)
	f.Close()
	if _, err := f.Capture(emptyFile(t, filepath.Join(t.TempDir(), "x")), "x"); err == nil {
		t.Error("a capture of a closed fabric")
	}
}

func emptyFile(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
