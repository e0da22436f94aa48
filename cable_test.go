package attest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

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
			ports := portsOf(lab, "a")
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

// A VMM that is started again for the same machine hands in another TAP: the cable
// leads there from then on, and stays pulled.
func TestTAPIsReplaced(t *testing.T) {
	stage := newStage(t, mock.Options{TAP: true})
	lab := stage.open(t, LabConfig{Machines: []MachineConfig{{Name: "a", Backend: stage.backend, Boot: BootCold}}})
	ctx := limited(t)
	if err := lab.StartAll(ctx); err != nil {
		t.Fatal(err)
	}
	a := stage.started(t, 1)
	before := portsOf(lab, "a")
	if err := lab.Machine("a").Block(ctx); err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	if err := a.Config().NICs[0].Link.TAP(os.NewFile(uintptr(fds[1]), "tap")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-before[0].Done():
	case <-ctx.Done():
		t.Fatal("the first port did not end")
	}
	after := portsOf(lab, "a")
	if len(before) != 1 || len(after) != 1 || after[0] == before[0] {
		t.Fatalf("ports before and after: %v, %v", before, after)
	}
	if !lab.network.fabric.Down("a", a.Config().NICs[0].ID) {
		t.Error("the cable is plugged in again")
	}
}

// portsOf are the ports of a machine on the first network.
func portsOf(lab *Lab, machine string) []*network.Port {
	return slices.DeleteFunc(lab.network.fabric.Switch(1).Ports(), func(p *network.Port) bool { return !strings.Contains(fmt.Sprint(p), ": "+machine+"/") })
}
