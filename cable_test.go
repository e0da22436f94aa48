package attest

import (
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/network"
	"github.com/attest-vm/attest/internal/vmm/mock"
)

// frameTo is an Ethernet frame with a number.
func frameTo(to, from net.HardwareAddr, n byte) []byte {
	frame := append(append(append([]byte{}, to...), from...), 0x88, 0xb5, n) // an EtherType for experiments
	return append(frame, make([]byte, 60-len(frame))...)
}

// Two machines on different plugs talk through a switch, through a fault of one of
// them, and into a capture.
func TestPlugs(t *testing.T) {
	plugs := map[string]mock.Options{"tap": {TAP: true}, "stream": {}}
	for _, plug := range []string{"tap", "stream"} {
		t.Run(plug, func(t *testing.T) {
			here, there := newStage(t, plugs[plug]), newStage(t, plugs["stream"])
			out := t.TempDir()
			lab := here.open(t, LabConfig{OutDir: out, Machines: []MachineConfig{
				{Name: "a", Backend: here.backend, Boot: BootCold}, {Name: "b", Backend: there.backend, Boot: BootCold},
			}})
			ctx := limited(t)
			capture, err := lab.Network().Capture(ctx, "x.pcapng")
			if err != nil {
				t.Fatal(err)
			}
			if err := lab.StartAll(ctx); err != nil {
				t.Fatal(err)
			}
			a, b := here.started(t, 1), there.started(t, 1)
			macA, macB := lab.Machine("a").address.Interfaces[0].MAC, lab.Machine("b").address.Interfaces[0].MAC
			nic := lab.Machine("a").address.Interfaces[0].Name
			sent := byte(0)
			talks := func(from, to *mock.Machine, source, target net.HardwareAddr) {
				t.Helper()
				sent++
				if err := from.Send(nic, frameTo(target, source, sent)); err != nil {
					t.Fatal(err)
				}
				for {
					select {
					case frame := <-to.Received(nic):
						if len(frame) > 14 && frame[12] == 0x88 && frame[14] == sent {
							return
						}
					case <-ctx.Done():
						t.Fatalf("frame %d did not arrive", sent)
					}
				}
			}
			talks(a, b, macA, macB)
			talks(b, a, macB, macA)
			fault, err := lab.Network().Down(ctx, lab.Machine("a"))
			if err != nil {
				t.Fatal(err)
			}
			for range 3 { // nobody may get these
				if err := a.Send(nic, frameTo(macB, macA, 0xff)); err != nil {
					t.Fatal(err)
				}
			}
			if err := fault.Heal(ctx); err != nil {
				t.Fatal(err)
			}
			talks(a, b, macA, macB)
			talks(b, a, macB, macA)

			// The cable goes with the machine, on each plug.
			ports := lab.network.fabric.Switch(1).Ports()
			ports = slices.DeleteFunc(ports, func(p *network.Port) bool { return !strings.Contains(fmt.Sprint(p), ": a/") })
			if err := lab.Machine("a").Crash(ctx); err != nil || len(ports) != 1 {
				t.Fatal(ports, err)
			}
			select {
			case <-ports[0].Done():
			case <-ctx.Done():
				t.Fatal("the port did not end")
			}
			if err := lab.Machine("a").Start(ctx); err != nil {
				t.Fatal(err)
			}
			talks(here.started(t, 2), b, macA, macB)
			if err := capture.Stop(ctx); err != nil {
				t.Fatal(err)
			}
			if tshark, err := exec.LookPath("tshark"); err == nil {
				text, err := exec.Command(tshark, "-r", filepath.Join(out, "x.pcapng"), "-Y", "eth.type == 0x88b5", "-T", "fields", "-e", "eth.src").Output()
				if got := strings.Count(string(text), macA.String()); err != nil || got < 3 {
					t.Errorf("the capture has %d frames of a, %v:\n%s", got, err, text)
				}
			}
		})
	}
}
