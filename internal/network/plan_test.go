package network

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPlan(t *testing.T) {
	for _, tt := range []struct {
		name     string
		machines []Machine
		want     []string // "machine number interface mac ipv4 ipv6"
	}{
		{"none", nil, nil},
		{"one", []Machine{{Name: "machine", Networks: []int{1}}}, []string{
			"machine 1 eth1 52:54:00:12:01:01 192.168.1.1/24 2001:db8:1::1/64",
		}},
		{"numbers follow the names, bytewise", []Machine{
			{Name: "server", Networks: []int{1}}, {Name: "client", Networks: []int{1}}, {Name: "Zoo", Networks: []int{1}},
		}, []string{
			"Zoo 1 eth1 52:54:00:12:01:01 192.168.1.1/24 2001:db8:1::1/64",
			"client 2 eth1 52:54:00:12:01:02 192.168.1.2/24 2001:db8:1::2/64",
			"server 3 eth1 52:54:00:12:01:03 192.168.1.3/24 2001:db8:1::3/64",
		}},
		{"interfaces follow the machine's list", []Machine{{Name: "router", Networks: []int{20, 3}}}, []string{
			"router 1 eth1 52:54:00:12:14:01 192.168.20.1/24 2001:db8:20::1/64",
			"router 1 eth2 52:54:00:12:03:01 192.168.3.1/24 2001:db8:3::1/64",
		}},
		{"microVM", []Machine{{Name: "fc", Networks: []int{255}, MicroVM: true}}, []string{
			"fc 1 eth1 aa:fc:00:ff:01:01 192.168.255.1/24 2001:db8:255::1/64",
		}},
		{"no network, but a number", []Machine{{Name: "a"}, {Name: "b", Networks: []int{1}}}, []string{
			"a 1",
			"b 2 eth1 52:54:00:12:01:02 192.168.1.2/24 2001:db8:1::2/64",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			plan, err := Plan(tt.machines)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, m := range plan {
				if len(m.Interfaces) == 0 {
					got = append(got, fmt.Sprint(m.Name, " ", m.Number))
				}
				for _, i := range m.Interfaces {
					got = append(got, fmt.Sprint(m.Name, " ", m.Number, " ", i.Name, " ", i.MAC, " ", i.IPv4, " ", i.IPv6))
				}
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func manyMachines(n int) (machines []Machine) {
	for i := range n {
		machines = append(machines, Machine{Name: fmt.Sprintf("m%03d", i), Networks: []int{1}})
	}
	return machines
}

func TestPlanLast(t *testing.T) {
	plan, err := Plan(manyMachines(252))
	if err != nil {
		t.Fatal(err)
	}
	last := plan[251].Interfaces[0]
	if got := fmt.Sprint(last.MAC, " ", last.IPv4, " ", last.IPv6); got != "52:54:00:12:01:fc 192.168.1.252/24 2001:db8:1::252/64" {
		t.Error(got)
	}
}

// A further card on a network has an address of Ethernet only, and each card one of its
// own if it shall.
func TestPlanOfSeveralCards(t *testing.T) {
	own := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	plan, err := Plan([]Machine{{Name: "a", Networks: []int{3, 3, 4, 3}, MACs: []net.HardwareAddr{nil, nil, own}}, {Name: "b", Networks: []int{3}}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range plan[0].Interfaces {
		got = append(got, fmt.Sprint(i.Name, " ", i.MAC, " ", i.Addrs(), len(i.Prefixes())))
	}
	want := []string{
		"eth1 52:54:00:12:03:01 [192.168.3.1 2001:db8:3::1] 2", "eth2 52:54:00:13:03:01 [] 0",
		"eth3 02:00:00:00:00:09 [192.168.4.1 2001:db8:4::1] 2", "eth4 52:54:00:14:03:01 [] 0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(4, len(slices.DeleteFunc(plan.Hosts("b"), func(h Host) bool { return h.Name != "a" }))); diff != "" {
		t.Errorf("names of a: %v", plan.Hosts("b"))
	}
}

func TestPlanErrors(t *testing.T) {
	for _, tt := range []struct {
		name     string
		machines []Machine
		want     string
	}{
		{"network 0", []Machine{{Name: "a", Networks: []int{0}}}, "machine a: network 0: "},
		{"network 256", []Machine{{Name: "a", Networks: []int{1, 256}}}, "machine a: network 256: "},
		{"name twice", []Machine{{Name: "b"}, {Name: "a"}, {Name: "b"}}, "machine b: another machine has the same name"},
		{"no name", []Machine{{}}, `machine "": `},
		{"name that breaks /etc/hosts", []Machine{{Name: "a\n6.6.6.6 b"}}, `machine "a\n6.6.6.6 b": `},
		{"too many", manyMachines(253), "253 machines: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Plan(tt.machines)
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("got %v, want %s…", err, tt.want)
			}
		})
	}
}

func TestHosts(t *testing.T) {
	plan, err := Plan([]Machine{
		{Name: "client", Networks: []int{1}},
		{Name: "router", Networks: []int{2, 1}},
		{Name: "server", Networks: []int{2}},
		{Name: "offline"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"client": `192.168.1.1 client
2001:db8:1::1 client
192.168.1.3 router
2001:db8:1::3 router
192.168.2.3 router
2001:db8:2::3 router
192.168.2.4 server
2001:db8:2::4 server
`,
		// Its own name is its first interface only.
		"router": `192.168.1.1 client
2001:db8:1::1 client
192.168.2.3 router
2001:db8:2::3 router
192.168.2.4 server
2001:db8:2::4 server
`,
	} {
		var got strings.Builder
		for _, h := range plan.Hosts(name) {
			fmt.Fprintf(&got, "%s %s\n", h.Addr, h.Name)
		}
		if d := cmp.Diff(want, got.String()); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	if hosts := plan.Hosts("nobody"); hosts != nil {
		t.Errorf("hosts of a machine that is not planned: %v", hosts)
	}
}

// A machine that comes later gets what is free, and the others keep what they have.
func TestAdd(t *testing.T) {
	plan, err := Plan([]Machine{{Name: "b", Networks: []int{1}}, {Name: "d", Networks: []int{1}}})
	if err != nil {
		t.Fatal(err)
	}
	more, err := plan.Add(Machine{Name: "a", Networks: []int{2, 1}})
	if err != nil {
		t.Fatal(err)
	}
	for _, old := range plan {
		if now, ok := more.Machine(old.Name); !ok || now.Number != old.Number {
			t.Errorf("%s: %+v, was %+v", old.Name, now, old)
		}
	}
	if a, ok := more.Machine("a"); !ok || a.Number != 3 || a.Interfaces[1].IPv4.String() != "192.168.1.3/24" {
		t.Errorf("got %+v", a)
	}
	if _, err := more.Add(Machine{Name: "b"}); err == nil {
		t.Error("two of one name")
	}
	for i := range maxMachines - 3 {
		if more, err = more.Add(Machine{Name: "m" + strconv.Itoa(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := more.Add(Machine{Name: "one-too-many"}); err == nil {
		t.Error("more machines than addresses")
	}
}
