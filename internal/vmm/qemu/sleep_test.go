package qemu

import (
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/qemu/qmp"
)

func TestDozing(t *testing.T) {
	start := time.Now()
	port := func(id, open string) qmp.Event {
		return qmp.Event{Name: "VSERPORT_CHANGE", Data: []byte(`{"id":"` + id + `","open":` + open + `}`)}
	}
	opens, closes, reset := port(agentPort, "true"), port(agentPort, "false"), qmp.Event{Name: "RESET", Data: []byte(`{}`)}
	for name, tt := range map[string]struct {
		events []qmp.Event // each a second later than the one before
		want   time.Duration
	}{
		"has not booted":      {nil, 0},
		"has booted":          {[]qmp.Event{opens}, 0},
		"sleeps":              {[]qmp.Event{opens, closes}, 2 * time.Second},
		"was woken":           {[]qmp.Event{opens, closes, opens}, 0},
		"sleeps again":        {[]qmp.Event{opens, closes, opens, closes}, 4 * time.Second},
		"another port":        {[]qmp.Event{opens, port("other", "false")}, 0},
		"a shell sleeps":      {[]qmp.Event{port(shellPort, "true"), port(shellPort, "false")}, 2 * time.Second},
		"reboots":             {[]qmp.Event{opens, closes, reset}, 0},
		"has rebooted":        {[]qmp.Event{opens, closes, reset, opens}, 0},
		"sleeps after a boot": {[]qmp.Event{opens, closes, reset, opens, closes}, 5 * time.Second},
		"not what it says":    {[]qmp.Event{opens, {Name: "VSERPORT_CHANGE", Data: []byte(`[]`)}}, 0},
	} {
		var m machine
		for i, e := range tt.events {
			e.Time = start.Add(time.Duration(i+1) * time.Second)
			m.event(e)
		}
		since := m.Dozing()
		if want := start.Add(tt.want); tt.want == 0 && !since.IsZero() || tt.want != 0 && !since.Equal(want) {
			t.Errorf("%s: since %v, want %v", name, since.Sub(start), tt.want)
		}
	}

	// The event of a port that a reset closed comes late: QEMU tells of each once a second.
	var m machine
	closes.Time, reset.Time = start, start.Add(time.Millisecond)
	m.event(reset)
	m.event(closes)
	if since := m.Dozing(); !since.IsZero() {
		t.Errorf("a machine that was reset sleeps since %v", since.Sub(start))
	}
}

// A QEMU says of the agent's device whether it has a driver, and takes the key that wakes.
func TestSleeps(t *testing.T) {
	m := startHalted(t).machine
	if state, err := m.State(t.Context()); state != "" || err != nil {
		t.Errorf("it is %q, %v", state, err)
	}
	m.event(qmp.Event{Name: "VSERPORT_CHANGE", Data: []byte(`{"id":"` + agentPort + `","open":false}`), Time: time.Now()})
	if state, err := m.State(t.Context()); state != vmm.Suspended || err != nil {
		t.Errorf("it is %q, %v", state, err)
	}
	if err := m.Wake(t.Context()); err != nil {
		t.Error(err)
	}
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if state, err := m.State(t.Context()); state != "paused" || err != nil {
		t.Errorf("it is %q, %v", state, err)
	}
	for typ, want := range map[string]string{"": "", "q35": "", "microvm": "no keyboard, whose key wakes others"} {
		ok, lack := (&backend{}).Offers(vmm.Config{Boot: &vmm.Hardware{Type: typ}}, vmm.CanWake)
		if ok != (want == "") || !strings.Contains(lack.Reason, want) {
			t.Errorf("%q: %v, %+v", typ, ok, lack)
		}
	}
}
