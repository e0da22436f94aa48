package test

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest"
)

// TestStressNetworkAttacks has a machine attack the network that it shares with others,
// and its way out: with forged frames, a flood of questions for names, and fragments.
// The others go on afterwards, attest's memory stays, and what the rules do not open
// stays closed.
func TestStressNetworkAttacks(t *testing.T) {
	attacks := map[string]*attack{}
	modes := []struct{ mode, card, what string }{
		{"frames", "eth1", "forged frames of one machine against others"},
		{"dns", "eth0", "flood of DNS queries"},
		{"fragments", "eth0", "fragments of packets"},
	}
	for _, m := range modes {
		attacks[m.mode] = newAttack(t, m.what)
	}
	closed := newAttack(t, "addresses that the rules of a way out do not open")
	program := hostileProgram(t)
	attacker := small("attacker")
	attacker.Egress = []string{"mirror.example.org", "10.0.0.0/8", "host:1"}
	lab := attest.New(t, attacker, small("victim"), small("peer"))
	evil, victim, peer := lab.Machine("attacker"), lab.Machine("victim"), lab.Machine("peer")
	evil.CopyFromHost(program, "/root/hostile")
	peer.Succeed("true")
	victim.Succeed("ping -c 1 peer")
	before := residentMemory(t)
	for _, m := range modes {
		out := evil.Succeed(fmt.Sprintf("/root/hostile network %s 20 %s", m.mode, m.card), attest.Timeout(5*time.Minute))
		frames, err := strconv.Atoi(strings.TrimSpace(out))
		if err == nil && frames < 1000 {
			err = fmt.Errorf("only %d frames were sent", frames)
		}
		if err == nil {
			_, err = victim.Machine.WaitUntilSucceeds(t.Context(), "ping -c 3 -W 5 peer")
		}
		if err == nil {
			_, err = evil.Machine.Succeed(t.Context(), "true")
		}
		after := residentMemory(t)
		if err == nil && after > before+64 {
			err = fmt.Errorf("this process has grown from %d to %d MiB", before, after)
		}
		t.Logf("%s: %d frames; %d MiB before, %d MiB after", m.what, frames, before, after)
		attacks[m.mode].count(frames, m.mode, err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0") // what the host has for itself
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	reached := make(chan net.Addr, 100)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			reached <- conn.RemoteAddr()
			conn.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	for _, address := range []string{
		"10.0.2.2/" + port, "fec0::2/" + port, "127.0.0.1/" + port, "169.254.169.254/80", "100.100.100.200/80", "168.63.129.16/80",
		"192.0.0.192/80", "fd00:ec2::254/80", "::ffff:169.254.169.254/80", "64:ff9b::a9fe:a9fe/80", "2002:a9fe:a9fe::/80", "192.168.1.1/80", "1.1.1.1/53",
	} {
		_, err := evil.Machine.Fail(t.Context(), fmt.Sprintf("timeout 20 bash -c 'exec 3<>/dev/tcp/%s'", address), attest.Timeout(time.Minute))
		closed.try(address, err)
	}
	select {
	case from := <-reached:
		t.Errorf("the host's own service was reached from %v", from)
	default:
	}
}
