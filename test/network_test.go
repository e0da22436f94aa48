package test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/event"
)

// netTools is what guests measure their networks with.
var netTools = attest.Debian{Packages: []string{"busybox", "iperf3", "iputils-ping", "udhcpc"}}

// TestNetwork tries the faults of networks on three machines that stay up.
func TestNetwork(t *testing.T) {
	t.Parallel()
	lab := attest.NewLab(t, attest.LabConfig{Name: "network", OutDir: t.TempDir(), Machines: []attest.MachineConfig{
		{Name: "a", Image: netTools, Memory: 256, Networks: []int{1, 2}},
		{Name: "b", Image: netTools, Memory: 256, Networks: []int{1, 2}},
		{Name: "c", Image: netTools, Memory: 256},
	}})
	lab.StartAll()
	net := faulty{lab.Lab.Network(), lab.Machine("a").Machine, lab.Machine("b").Machine, lab.Machine("c").Machine}
	net.expectReach(t, "a-b a-c")
	for _, test := range []struct {
		name string
		run  func(faulty, *testing.T)
	}{
		{"names", faulty.names},
		{"partition", faulty.partition},
		{"isolate and bridge", faulty.isolate},
		{"drop", faulty.drop},
		{"delay", faulty.delay},
		{"duplicate and reorder", faulty.reorder},
		{"corrupt", faulty.corrupt},
		{"rate", faulty.rate},
		{"match and network", faulty.match},
		{"during", faulty.during},
		{"capture", faulty.capture},
		{"mistakes", faulty.mistakes},
		{"block", faulty.block},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.run(net, t)
			if err := net.Heal(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// A faulty network is one of a, b and c. c is on network 1 only.
type faulty struct {
	*attest.Network
	a, b, c *attest.Machine
}

// reaches reports whether a machine gets an answer to a ping.
func reaches(t *testing.T, from *attest.Machine, to string) bool {
	t.Helper()
	return tried{from, t}.execute("ping -c 3 -i 0.2 -w 2 "+to).ExitCode == 0
}

// expectReach checks who reaches whom: "a-b" is that a reaches b. After a fault
// is healed an answer may take as long as the guest needs to ask for it again.
func (n faulty) expectReach(t *testing.T, want string) {
	t.Helper()
	for pair := range strings.FieldsSeq(want) {
		from, to, ok := strings.Cut(pair, "-")
		if !ok {
			from, to, _ = strings.Cut(pair, "/")
		}
		m := map[string]*attest.Machine{"a": n.a, "b": n.b, "c": n.c}[from]
		if ok {
			tried{m, t}.succeed("until ping -c 1 -w 2 "+to+"; do :; done", attest.Timeout(2*time.Minute))
		} else if reaches(t, m, to) {
			t.Errorf("%s reaches %s", from, to)
		}
	}
}

// begun fails the test if a fault did not begin.
func begun(t *testing.T) func(*attest.Fault, error) *attest.Fault {
	return func(f *attest.Fault, err error) *attest.Fault {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
}

func heal(t *testing.T, f *attest.Fault) {
	t.Helper()
	if err := f.Heal(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Machines reach each other by name, and by each of their addresses on both
// networks, over IPv4 and IPv6.
func (n faulty) names(t *testing.T) {
	a, b := tried{n.a, t}, tried{n.b, t}
	for _, m := range []tried{a, b} {
		m.succeed("systemd-run --unit=greets systemd-socket-activate --accept --inetd -l '[::]:7777' echo hello from " + m.Name())
		listens(t, m.Machine, 7777)
		if got, want := m.succeed("hostname; cat /etc/hostname"), m.Name()+"\n"+m.Name()+"\n"; got != want {
			t.Errorf("%s is called %q", m.Name(), got)
		}
	}
	for _, pair := range [][2]tried{{a, b}, {b, a}} {
		from, to := pair[0], pair[1]
		if len(to.Addresses()) != 4 {
			t.Errorf("addresses of %s: %v", to.Name(), to.Addresses())
		}
		hosts := []string{to.Name()}
		for _, address := range to.Addresses() {
			hosts = append(hosts, address.String())
		}
		for _, host := range hosts {
			if got := from.succeed("timeout 60 cat < /dev/tcp/" + host + "/7777"); got != "hello from "+to.Name()+"\n" {
				t.Errorf("%s, from %s: %q", host, from.Name(), got)
			}
		}
		from.succeed("for family in -4 -6; do ping $family -c 1 -w 60 " + to.Name() + "; done")
	}
}

func (n faulty) partition(t *testing.T) {
	ctx := t.Context()
	f := begun(t)(n.Partition(ctx, n.a, attest.Group{n.b}))
	n.expectReach(t, "a/b b/a a-c c-b")
	heal(t, f)
	n.expectReach(t, "a-b b-a")

	// What a sends b is lost, what b sends a arrives. They have to know each other's
	// address: neither could ask for it.
	n.expectReach(t, "b-192.168.1.1")
	f = begun(t)(n.Partition(ctx, n.a, n.b, attest.OneWay()))
	const inEchos = "awk '/^Icmp: [0-9]/ {print $10}' /proc/net/snmp"
	heard := func(m *attest.Machine) int { return number(t, tried{m, t}.succeed(inEchos)) }
	a, b := heard(n.a), heard(n.b)
	for _, m := range []*attest.Machine{n.a, n.b} {
		for _, to := range []string{"192.168.1.1", "192.168.1.2"} {
			tried{m, t}.execute("ping -c 3 -i 0.2 -W 2 " + to)
		}
	}
	// Each pings itself, too.
	tried{n.a, t}.succeed(fmt.Sprintf("until [ $(%s) -ge %d ]; do sleep 0.1; done", inEchos, a+6), attest.Timeout(time.Minute))
	if a, b = heard(n.a)-a, heard(n.b)-b; a != 6 || b != 3 {
		t.Errorf("a heard %d pings, b %d; want 6 and 3", a, b)
	}
	heal(t, f)
	n.expectReach(t, "a-b")
}

func (n faulty) isolate(t *testing.T) {
	f := begun(t)(n.Isolate(t.Context(), n.a))
	n.expectReach(t, "a/b a/c c/a b-c")
	heal(t, f)
	n.expectReach(t, "a-b a-c")
	f = begun(t)(n.Bridge(t.Context(), attest.Group{n.a, n.b, n.c}))
	n.expectReach(t, "a/c c/a a-b c-b")
	heal(t, f)
	f = begun(t)(n.MajoritiesRing(t.Context(), attest.Group{n.a, n.b, n.c}))
	n.expectReach(t, "a/b b/c c/a") // each hears one, and is heard by another
	heal(t, f)
	n.expectReach(t, "a-b b-c c-a")
}

func number(t *testing.T, text string) int {
	t.Helper()
	i, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

var (
	answered = regexp.MustCompile(`icmp_seq=(\d+) ttl=\d+ time=([\d.]+) ms`)
	twice    = regexp.MustCompile(`\(DUP!\)`)
)

// An answer is one line of ping.
type answer struct {
	seq int
	ms  float64
}

func answers(out string) (list []answer) {
	for _, m := range answered.FindAllStringSubmatch(out, -1) {
		seq, _ := strconv.Atoi(m[1])
		ms, _ := strconv.ParseFloat(m[2], 64)
		list = append(list, answer{seq, ms})
	}
	return list
}

// sees waits until a fault was asked about as many frames as were sent: when ping is
// back, the last ones may still be in the guest's VMM.
func sees(t *testing.T, f *attest.Fault, frames int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); f.Frames() < frames; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%v saw %d frames, and %d were sent", f, f.Frames(), frames)
		}
	}
}

// ping asks and returns the answers, also if there are none. With -c alone it asks
// so often, and leaves two round trips after the last question, so that on a busy
// host it misses answers; with a deadline, too (-w), it asks until it has so
// many answers.
func ping(t *testing.T, from *attest.Machine, args string) []answer {
	t.Helper()
	return answers(tried{from, t}.execute("ping " + args).Stdout)
}

func (n faulty) drop(t *testing.T) {
	const sent = 200
	f := begun(t)(n.Drop(t.Context(), n.a, 0.3, attest.Direction(attest.Outgoing), attest.Match("icmp")))
	got := len(ping(t, n.a, "-c 200 -i 0.01 -W 5 b"))
	sees(t, f, sent)
	if f.Frames() != sent || got == 0 || got > sent-f.Affected() || f.Affected() < 30 || f.Affected() > 90 {
		t.Errorf("%d of %d pings were answered; the fault saw %d and dropped %d", got, sent, f.Frames(), f.Affected())
	}
	if f.String() != `drop(a, rate=0.3, direction="out", match="icmp")` {
		t.Errorf("it is called %v", f)
	}
	heal(t, f)
	flaky := begun(t)(n.Flaky(t.Context(), n.a, attest.Peer(n.b), attest.Match("icmp")))
	got = len(ping(t, n.a, "-c 200 -i 0.01 -W 5 b"))
	if got > sent-flaky.Affected() || flaky.Affected() == 0 || got == 0 {
		t.Errorf("%d of %d pings were answered over a flaky link, which lost %d of %d frames", got, sent, flaky.Affected(), flaky.Frames())
	}
	if got := len(ping(t, n.a, "-c 20 -i 0.01 -w 60 c")); got < 20 {
		t.Errorf("%d of 20 pings to another machine were answered", got)
	}
}

// Both directions are delayed, so an answer takes twice as long.
func (n faulty) delay(t *testing.T) {
	f := begun(t)(n.Delay(t.Context(), n.a, 100*time.Millisecond, attest.Jitter(20*time.Millisecond), attest.Match("icmp")))
	got := ping(t, n.a, "-c 20 -i 0.05 -w 60 b")
	for i, x := range got {
		if x.ms < 160 || x.seq != i+1 {
			t.Errorf("answer %d came after %v ms in the place of %d", x.seq, x.ms, i+1)
		}
	}
	if len(got) < 20 || f.Affected() < 40 {
		t.Errorf("%d answers; the fault delayed %d frames", len(got), f.Affected())
	}
}

func (n faulty) reorder(t *testing.T) {
	f := begun(t)(n.Duplicate(t.Context(), n.b, 1, attest.Direction(attest.Outgoing), attest.Match("icmp")))
	out := tried{n.a, t}.succeed("ping -c 5 -i 0.2 -w 60 b")
	// ping ends with the first answer to its last question.
	if got := len(twice.FindAllString(out, -1)); got < 4 || f.Affected() < 5 {
		t.Errorf("%d answers came twice, of %d:\n%s", got, f.Affected(), out)
	}
	heal(t, f)
	f = begun(t)(n.Reorder(t.Context(), n.b, 0.3, attest.Gap(2), attest.Direction(attest.Outgoing), attest.Match("icmp")))
	var order []int
	for _, x := range ping(t, n.a, "-c 100 -i 0.01 -w 60 b") {
		order = append(order, x.seq)
	}
	if slices.IsSorted(order) || len(order) < 100 || f.Affected() < 10 {
		t.Errorf("%d answers, %d held back, in the order %v", len(order), f.Affected(), order)
	}
}

// The guest finds what is wrong with a packet and drops it.
func (n faulty) corrupt(t *testing.T) {
	const wrong = "cat /proc/net/snmp | awk '/^Icmp: [0-9]/ {icmp = $4} /^Ip: [0-9]/ {ip = $5 + $6} END {print icmp + ip}'" // InCsumErrors; InHdrErrors, InAddrErrors
	before := number(t, tried{n.b, t}.succeed(wrong))
	f := begun(t)(n.Corrupt(t.Context(), n.a, 1, attest.Direction(attest.Outgoing), attest.Match("icmp")))
	if got := ping(t, n.a, "-4 -s 1000 -c 20 -i 0.02 -W 2 192.168.1.2"); len(got) > 0 {
		t.Errorf("%d answers to corrupt pings", len(got))
	}
	sees(t, f, 20)
	if f.Affected() != 20 {
		t.Errorf("%d pings of 20 were changed", f.Affected())
	}
	// Most of the bits are in the payload.
	tried{n.b, t}.succeed(fmt.Sprintf("until [ $(%s) -ge %d ]; do sleep 0.1; done", wrong, before+15), attest.Timeout(time.Minute))
}

// Bytes over the time that the guest says it took, within a wide margin: a
// queue's worth more, and half of it for a busy host.
func (n faulty) rate(t *testing.T) {
	const bits = 1_000_000
	tried{n.b, t}.succeed("iperf3 -s -D")
	listens(t, n.b, 5201)
	f := begun(t)(n.Rate(t.Context(), n.a, bits, attest.Direction(attest.Outgoing)))
	var report struct {
		End struct {
			Sum struct {
				Bytes   float64
				Seconds float64
			} `json:"sum_received"`
		}
	}
	out := tried{n.a, t}.succeed("iperf3 -J -t 5 -c b")
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	sum := report.End.Sum
	most := bits / 8 * sum.Seconds * 1.1
	if sum.Bytes > most+128<<10 || sum.Bytes < most/3 || f.Frames() == 0 {
		t.Errorf("%.0f bytes in %.1f s, at most %.0f should fit through %d bit/s", sum.Bytes, sum.Seconds, most, bits)
	}
}

// listens waits until a server does.
func listens(t *testing.T, m *attest.Machine, port int) {
	t.Helper()
	if err := m.WaitForOpenPort(t.Context(), port, attest.Timeout(time.Minute)); err != nil {
		t.Fatal(err)
	}
}

func (n faulty) match(t *testing.T) {
	opens := func(port, seconds int) bool {
		return tried{n.a, t}.execute(fmt.Sprintf("timeout %d bash -c '</dev/tcp/192.168.1.2/%d'", seconds, port)).ExitCode == 0
	}
	tried{n.b, t}.succeed("iperf3 -s -D -p 7000")
	listens(t, n.b, 7000)
	f := begun(t)(n.Down(t.Context(), n.b, attest.Match("tcp:5201")))
	if opens(5201, 3) || !opens(7000, 60) || f.Frames() == 0 {
		t.Errorf("port 5201 is down; the fault saw %d frames", f.Frames())
	}
	n.expectReach(t, "a-b")
	heal(t, f)
	if !opens(5201, 60) {
		t.Error("port 5201 does not open when the fault is healed")
	}
	begun(t)(n.Down(t.Context(), n.b, attest.OnNetwork(2)))
	n.expectReach(t, "a-192.168.1.2 a/192.168.2.2")
}

// A fault of during ends with its function, whose error is the error; one that
// begins in there and is left is healed, too, and reported.
func (n faulty) during(t *testing.T) {
	var bus event.Bus
	var said []string
	bus.Subscribe(func(r event.Record) {
		switch e := r.Event.(type) {
		case event.Log:
			said = append(said, e.Level+": "+e.Text)
		case event.FaultStarted:
			said = append(said, "began: "+e.Fault)
		case event.FaultEnded:
			said = append(said, "ended: "+e.Fault+e.Reason)
		}
	})
	wrong := errors.New("wrong")
	ctx := event.WithScope(event.WithBus(t.Context(), &bus), event.Scope{Test: "x"})
	_, err := n.Partition(ctx, n.a, n.b, attest.During(func(ctx context.Context) error {
		n.expectReach(t, "a/b")
		if _, err := n.Down(ctx, n.c); err != nil {
			return err
		}
		return wrong
	}))
	if !errors.Is(err, wrong) || err.Error() != "wrong" {
		t.Errorf("the error is %v", err)
	}
	n.expectReach(t, "a-b a-c")
	begun(t)(n.Isolate(ctx, n.a))
	if err := access.Settle(ctx, n.Network); err != nil {
		t.Error(err)
	}
	want := []string{
		"began: partition(a, b)", "began: down(c)",
		"warning: network: down(c) was still active at the end of during and was healed", "ended: down(c)still in force at the end of during",
		"ended: partition(a, b)",
		"began: isolate(a)",
		"ended: isolate(a)still in force at the end of the test",
	}
	if !slices.Equal(said, want) {
		t.Errorf("said\n%s\nwant\n%s", strings.Join(said, "\n"), strings.Join(want, "\n"))
	}
	n.expectReach(t, "a-b")
}

func (n faulty) capture(t *testing.T) {
	c, err := n.Capture(t.Context(), "some/where.pcapng")
	if err != nil {
		t.Fatal(err)
	}
	f := begun(t)(n.Drop(t.Context(), n.a, 0.5, attest.Direction(attest.Outgoing), attest.Match("icmp")))
	got := len(ping(t, n.a, "-4 -c 20 -i 0.01 -W 5 192.168.1.2"))
	sees(t, f, 20)
	heal(t, f)
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	count := func(filter string) int { return len(tshark(t, c.Path(), filter)) }
	asked := count(`icmp.type == 8 && frame.interface_name == "a eth1"`)
	lost := count(`icmp.type == 8 && frame.interface_name == "a eth1" && frame.comment contains "lost to fault"`)
	arrived := count(`icmp.type == 8 && frame.interface_name == "b eth1"`)
	answers := count(`icmp.type == 0 && frame.interface_description == "net1: a/eth1"`)
	// ping does not wait for all answers that are under way.
	if asked != 20 || lost == 0 || lost != f.Affected() || arrived != asked-lost || answers > arrived || answers < got {
		t.Errorf("%d pings were sent, %d lost (the fault says %d), %d arrived, %d answered; ping got %d", asked, lost, f.Affected(), arrived, answers, got)
	}
	if n := count(`frame.comment matches "^fault \\d+ (began|ended): drop\\(a, rate=0.5"`); n != 2 {
		t.Errorf("%d comments tell of the fault's begin and end", n)
	}
}

// tshark lists the frames of a capture that a filter selects.
func tshark(t *testing.T, path, filter string, args ...string) []string {
	t.Helper()
	cmd := exec.Command("tshark", append([]string{"-r", path, "-Y", filter}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark (scripts/setup test installs it): %v", err)
	}
	return slices.Collect(strings.Lines(string(out)))
}

func (n faulty) mistakes(t *testing.T) {
	ctx := t.Context()
	first := func(_ *attest.Fault, err error) error { return err }
	for want, err := range map[string]error{
		"network.drop: rate must be between 0 and 1 (half of all frames is 0.5), not 50":                                                        first(n.Drop(ctx, n.a, 50)),
		"network.partition: a is on both sides; a machine cannot be cut off from itself":                                                        first(n.Partition(ctx, attest.Group{n.a, n.b}, n.a)),
		"network.down: the list of machines is empty; name at least one":                                                                        first(n.Down(ctx, attest.Group{})),
		"network.down: c is not on network 2; it is on [1]":                                                                                     first(n.Down(ctx, n.c, attest.OnNetwork(2))),
		`network.down: match: unknown protocol "tpc"; want one of arp, icmp, ip, ip4, ip6, nd, sctp, tcp, udp, some with a port as in tcp:5432`: first(n.Down(ctx, n.c, attest.Match("tpc"))),
		"network.bridge: want at least three machines":                                                                                          first(n.Bridge(ctx, attest.Group{n.a, n.b})),
		"network.majorities_ring: want at least three machines":                                                                                 first(n.MajoritiesRing(ctx, n.a)),
		"machine c: block: it is not on network 2; it is on [1]":                                                                                n.c.Block(ctx, 2),
	} {
		if err == nil || err.Error() != want || attest.StatusOf(err) != attest.Invalid {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
}

// The guest sees its cables, also those that were pulled while it was off.
func (n faulty) block(t *testing.T) {
	ctx := t.Context()
	carriers := func(want string) {
		t.Helper()
		if got := (tried{n.b, t}).succeed("cat /sys/class/net/eth[12]/carrier | tr -d '\\n'"); got != want {
			t.Errorf("carriers of eth1 and eth2: %s, want %s", got, want)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	carriers("11")
	do(n.b.Block(ctx, 2))
	carriers("10")
	n.expectReach(t, "a-192.168.1.2 a/192.168.2.2")
	do(n.b.Block(ctx))
	carriers("00")
	n.expectReach(t, "a/192.168.1.2")
	do(n.b.Unblock(ctx))
	carriers("11")
	n.expectReach(t, "a-192.168.1.2 a-192.168.2.2")

	do(n.b.Crash(ctx))
	do(n.b.Block(ctx, 1))
	do(n.b.Start(ctx))
	carriers("01")
	n.expectReach(t, "a/192.168.1.2 a-192.168.2.2")
	do(n.b.Unblock(ctx))
	carriers("11")
	n.expectReach(t, "a-192.168.1.2")
}

// TestNetworkServices has guests ask for addresses and names, as foreign images
// do, and sees that one which does not ask keeps exactly what it has.
func TestNetworkServices(t *testing.T) {
	t.Parallel()
	resolved := attest.Debian{Packages: append([]string{"libnss-resolve", "systemd-resolved"}, netTools.Packages...)}
	lab := attest.New(t,
		attest.MachineConfig{Name: "peer", Image: netTools, Memory: 256},
		attest.MachineConfig{Name: "foreign", Image: resolved, Memory: 256},
	)
	lab.StartAll()
	own, foreign := lab.Machine("peer"), lab.Machine("foreign")

	const server = "192.168.1.254"
	if out := own.Succeed("busybox nslookup foreign " + server); !strings.Contains(out, "192.168.1.1") || !strings.Contains(out, "2001:db8:1::1") {
		t.Errorf("the name of a machine: %s", out)
	}
	if out := own.Fail("busybox nslookup example.com " + server); !strings.Contains(out, "NXDOMAIN") {
		t.Errorf("another name: %s", out)
	}
	own.Succeed("ping -c1 -W60 " + server + " && ping -c1 -W60 2001:db8:1::fe")
	// Its kernel has solicited routers by itself, and has heard one.
	own.Succeed("until ip -6 neigh show | grep -q router; do busybox sleep 0.1; ping -c1 -w1 fe80::5054:ff:fe12:1fe%eth1 || :; done", attest.Timeout(time.Minute))
	addresses := own.Succeed("ip -o addr show dev eth1 | awk '{print $4}'")
	if want := "192.168.1.2/24\n2001:db8:1::2/64\nfe80::5054:ff:fe12:102/64\n"; addresses != want {
		t.Errorf("a guest that did not ask has the addresses\n%s, want\n%s", addresses, want)
	}
	if routes := own.Succeed("ip route show default; ip -6 route show default; ip -6 route show proto ra"); routes != "" {
		t.Errorf("a guest that did not ask has the routes\n%s", routes)
	}

	own.Succeed("ip addr flush dev eth1; udhcpc -f -n -q -t 30 -i eth1 -s /etc/udhcpc/default.script")
	if out := own.Succeed("ip -o -4 addr show dev eth1"); !strings.Contains(out, "inet 192.168.1.2/24 ") {
		t.Errorf("udhcpc has set %s", out)
	}
	if out := own.Succeed("cat /etc/resolv.conf"); !strings.Contains(out, "lab.test") || !strings.Contains(out, "nameserver "+server) {
		t.Errorf("resolv.conf is %s", out)
	}
	own.Succeed(": > /etc/hosts; getent ahostsv4 foreign | grep -q ^192.168.1.1; ping -c1 -4 -W60 foreign")

	foreign.WaitForUnit("multi-user.target")
	foreign.Succeed(`: > /etc/hosts
		ip addr flush dev eth1; ip link set eth1 down
		printf '[Match]\nName=eth1\n[Network]\nDHCP=yes\n[DHCPv4]\nUseDomains=yes\n' > /etc/systemd/network/eth1.network
		systemctl restart systemd-networkd systemd-resolved`)
	foreign.WaitUntilSucceeds("ip -o addr show dev eth1 | grep -q ' 192.168.1.1/24 '; ip -o addr show dev eth1 | grep -q ' 2001:db8:1::1/128 '; ip -6 route | grep -q '^2001:db8:1::/64 dev eth1'")
	foreign.WaitUntilSucceeds("resolvectl query peer | grep -q 'peer.lab.test'")
	if out := foreign.Succeed("resolvectl query 192.168.1.2 2001:db8:1::2"); strings.Count(out, "peer.lab.test") != 2 {
		t.Errorf("names of addresses: %s", out)
	}
	foreign.Fail("resolvectl query example.com")
	foreign.Succeed("ping -c1 -4 -W60 peer")
	if out := foreign.Succeed("ip route show default; ip -6 route show default"); out != "" {
		t.Errorf("there is a way out: %s", out)
	}
}

// The same seed loses the same frames, another one loses others; what a test
// leaves broken is in the report.
func TestSeedOfFaults(t *testing.T) {
	t.Parallel()
	run := func(seed string) (lost string, events string) {
		dir := t.TempDir()
		p := start(t, newStateDir(t), nil, "attest", "run", "--seed", seed, "--pcap", filepath.Join(dir, "pcap"), "-o", dir, "testdata/seed_test.star")
		if code := p.exitCode(t); code != 0 {
			t.Fatalf("exit code %d", code)
		}
		text, err := os.ReadFile(filepath.Join(dir, "events.jsonl"))
		if err != nil {
			t.Fatal(err)
		}
		pcap := filepath.Join(dir, "pcap", "testdata-seed_test-test_loses.pcapng")
		if n := len(tshark(t, pcap, `frame.comment contains "fault 1 began"`)); n != 1 {
			t.Errorf("the capture has %d lines about the beginning of the fault", n)
		}
		numbers := tshark(t, pcap, `icmp.type == 8 && frame.comment contains "lost to fault"`, "-T", "fields", "-e", "icmp.seq")
		return strings.Join(numbers, ""), string(text)
	}
	first, events := run("11")
	again, _ := run("11")
	other, _ := run("12")
	if first == "" || first != again || first == other {
		t.Errorf("lost pings:\n%s\nagain with this seed:\n%s\nwith another:\n%s", first, again, other)
	}
	var kinds []string
	var affected, lost uint64
	for s := bufio.NewScanner(strings.NewReader(events)); s.Scan(); {
		var e struct {
			Type, Level, Text, Fault, Reason string
			Affected                         uint64
			Sent                             event.Counters
		}
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		switch {
		case strings.HasPrefix(e.Type, "fault_"):
			kinds = append(kinds, e.Type+" "+e.Fault+" "+e.Reason)
			affected += e.Affected
		case e.Type == "traffic":
			lost += e.Sent.Lost.Fault
		case e.Level == "warning":
			kinds = append(kinds, e.Text)
		}
	}
	const fault = `drop(a, rate=0.5, direction="out", match="icmp")`
	want := []string{
		"fault_started " + fault + " ",
		"fault_ended " + fault + " still in force at the end of the test",
	}
	if !slices.Equal(kinds, want) {
		t.Errorf("the report has\n%s\nwant\n%s", strings.Join(kinds, "\n"), strings.Join(want, "\n"))
	}
	if lost == 0 || lost != affected {
		t.Errorf("network cards lost %d frames, and the fault affected %d", lost, affected)
	}
}
