package agent

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/attest-vm/attest/internal/wire"
)

// A scriptedWatch shows one look after the other, the last one for ever.
type scriptedWatch struct {
	looks []unitLook
	n     int
}

func (w *scriptedWatch) look(context.Context) (unitLook, error) {
	l := w.looks[min(w.n, len(w.looks)-1)]
	w.n++
	return l, nil
}
func (w *scriptedWatch) changed(context.Context, time.Duration) *wire.UnitState { return nil }
func (w *scriptedWatch) close()                                                 {}

func TestFollowUnit(t *testing.T) {
	at := func(state string, jobs int, starting bool) unitLook {
		return unitLook{UnitState: wire.UnitState{ActiveState: state, LoadState: "loaded"}, jobs: jobs, starting: starting}
	}
	missing := func(jobs int, starting bool) unitLook {
		return unitLook{UnitState: wire.UnitState{ActiveState: "inactive", LoadState: "not-found"}, jobs: jobs, starting: starting}
	}
	oneshot := func(result string, hasRun bool) unitLook {
		l := at("inactive", 0, false)
		l.oneshot, l.hasRun, l.Result = true, hasRun, result
		return l
	}
	triggered := at("inactive", 0, false)
	triggered.triggeredBy = []string{"x.socket"}
	unmet := at("inactive", 0, false)
	unmet.unmet = true
	failed := at("failed", 3, true)
	failed.Result = "exit-code"
	for _, tt := range []struct {
		name  string
		looks []unitLook
		err   string // empty: it becomes active
		n     int    // looks that it takes
	}{
		{"active", []unitLook{at("active", 0, false)}, "", 1},
		{"it starts", []unitLook{at("inactive", 1, false), at("activating", 1, false), at("active", 0, false)}, "", 3},
		{"failed, whatever else goes on", []unitLook{at("activating", 1, true), failed}, `reached state "failed" (result "exit-code")`, 2},
		{"inactive and nothing to do", []unitLook{at("inactive", 0, false)}, "is inactive and there are no pending jobs", 2},
		{"inactive while others start", []unitLook{at("inactive", 5, true), at("inactive", 0, true), at("inactive", 0, false), at("active", 0, false)}, "", 4},
		{"inactive between two jobs", []unitLook{at("inactive", 0, false), at("inactive", 1, false), at("inactive", 0, false), at("active", 0, false)}, "", 4},
		{"deactivating, then gone", []unitLook{at("deactivating", 0, false), at("inactive", 0, false)}, "is inactive", 3},
		{"not there", []unitLook{missing(2, false)}, `its load state is "not-found"`, 2},
		{"not there yet", []unitLook{missing(2, true), at("active", 0, false)}, "", 2},
		{"a oneshot that has done its work", []unitLook{at("activating", 1, false), oneshot("success", true)}, "", 2},
		{"a oneshot that is forgotten when it has ended", []unitLook{at("activating", 1, false), oneshot("success", false)}, "", 2},
		{"a transient one that is gone when it has ended", []unitLook{at("activating", 1, false), missing(0, false)}, "", 2},
		{"a oneshot that was never started", []unitLook{oneshot("success", false)}, "is inactive", 2},
		{"a oneshot that was killed", []unitLook{oneshot("signal", true)}, "is inactive", 2},
		{"one that a socket starts", []unitLook{triggered}, "x.socket starts it", 2},
		{"one that a condition keeps from starting", []unitLook{unmet}, "a condition for its start is not met", 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &scriptedWatch{looks: tt.looks}
			var seen wire.UnitState
			state, err := followUnit(t.Context(), w, &seen, false)
			var e *wire.Error
			switch {
			case tt.err == "" && (err != nil || state.ActiveState != tt.looks[len(tt.looks)-1].ActiveState):
				t.Errorf("%+v, %v", state, err)
			case tt.err != "" && (!errors.As(err, &e) || e.Kind != wire.KindUnit || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("%+v, error %v, want %q", state, err, tt.err)
			}
			if w.n != tt.n {
				t.Errorf("%d looks, want %d", w.n, tt.n)
			}
		})
	}
}

// Nobody listens to systemd while a unit waits for the rest of a boot.
func TestAwaitTurn(t *testing.T) {
	at := func(state string, jobs int, starting bool) unitLook {
		return unitLook{UnitState: wire.UnitState{ActiveState: state, LoadState: "loaded"}, jobs: jobs, starting: starting}
	}
	dir := t.TempDir()
	if err := os.Symlink("id", dir+"/invocation:begun.service"); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		unit  string
		looks []unitLook
		n     int // looks that it takes
	}{
		"few jobs are left":    {"x.service", []unitLook{at("inactive", 90, true), at("inactive", 9, true), at("inactive", 8, true)}, 3},
		"it has no process":    {"", []unitLook{at("inactive", 90, true), at("inactive", 8, true)}, 2},
		"it is active":         {"x.service", []unitLook{at("inactive", 90, true), at("active", 80, true)}, 2},
		"it starts":            {"x.service", []unitLook{at("activating", 90, true)}, 1},
		"it has failed":        {"x.service", []unitLook{at("failed", 90, true)}, 1},
		"the system is up":     {"x.service", []unitLook{at("inactive", 90, false)}, 1},
		"its process is there": {"begun.service", []unitLook{at("inactive", 90, true)}, 1},
	} {
		w := &scriptedWatch{looks: tt.looks}
		var seen wire.UnitState
		began := dir + "/invocation:" + tt.unit
		if tt.unit == "" {
			began = ""
		}
		awaitTurn(t.Context(), w.look, began, &seen)
		if w.n != tt.n || seen.ActiveState != tt.looks[len(tt.looks)-1].ActiveState {
			t.Errorf("%s: %d looks, want %d; seen %+v", name, w.n, tt.n, seen)
		}
	}
	// It ends with its context.
	ctx, cancel := context.WithCancel(t.Context())
	w := &scriptedWatch{looks: []unitLook{at("inactive", 90, true)}}
	awaitTurn(ctx, func(ctx context.Context) (unitLook, error) { cancel(); return w.look(ctx) }, dir+"/invocation:x.service", &wire.UnitState{})
}

// With once the first look decides.
func TestFollowUnitOnce(t *testing.T) {
	for state, kind := range map[string]string{"active": "", "activating": wire.KindTimeout, "inactive": wire.KindUnit} {
		w := &scriptedWatch{looks: []unitLook{{UnitState: wire.UnitState{ActiveState: state, LoadState: "loaded"}}}}
		var seen wire.UnitState
		_, err := followUnit(t.Context(), w, &seen, true)
		var e *wire.Error
		if kind == "" && err != nil || kind != "" && (!errors.As(err, &e) || e.Kind != kind) || w.n != 1 || seen.ActiveState != state {
			t.Errorf("%s: error %v after %d looks, seen %+v", state, err, w.n, seen)
		}
	}
}

// What can be read out of a signal needs no look.
func TestHeard(t *testing.T) {
	const changed = "org.freedesktop.DBus.Properties.PropertiesChanged"
	const path = "/org/freedesktop/systemd1/unit/x_2eservice"
	properties := func(of, active, sub string) []any {
		return []any{of, map[string]dbus.Variant{"ActiveState": dbus.MakeVariant(active), "SubState": dbus.MakeVariant(sub)}, []string{}}
	}
	running := &wire.UnitState{ActiveState: "active", SubState: "running", LoadState: "loaded"}
	for name, test := range map[string]struct {
		signal dbus.Signal
		active *wire.UnitState
		look   bool
		began  bool
	}{
		"active":                 {dbus.Signal{Path: path, Name: changed, Body: properties(unitType, "active", "running")}, running, true, false},
		"activating":             {dbus.Signal{Path: path, Name: changed, Body: properties(unitType, "activating", "start")}, nil, false, true},
		"failed":                 {dbus.Signal{Path: path, Name: changed, Body: properties(unitType, "failed", "failed")}, nil, true, false},
		"of its kind":            {dbus.Signal{Path: path, Name: changed, Body: properties(systemdName+".Service", "", "")}, nil, false, false},
		"other properties":       {dbus.Signal{Path: path, Name: changed, Body: []any{unitType, map[string]dbus.Variant{"Job": dbus.MakeVariant(1)}, []string{}}}, nil, true, false},
		"wrong types":            {dbus.Signal{Path: path, Name: changed, Body: []any{1, 2}}, nil, false, false},
		"no body":                {dbus.Signal{Path: path, Name: changed}, nil, true, false},
		"another unit":           {dbus.Signal{Path: "/other", Name: changed, Body: properties(unitType, "active", "running")}, nil, false, false},
		"its job":                {dbus.Signal{Path: managerPath, Name: managerType + ".JobRemoved", Body: []any{uint32(1), "x.service", "done"}}, nil, true, false},
		"another job":            {dbus.Signal{Path: managerPath, Name: managerType + ".JobRemoved", Body: []any{uint32(1), "y.service", "done"}}, nil, false, false},
		"the end of the startup": {dbus.Signal{Path: managerPath, Name: managerType + ".StartupFinished"}, nil, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := &busWatch{unit: "x.service", path: path}
			active, look := w.heard(&test.signal)
			if diff := cmp.Diff(test.active, active); diff != "" || look != test.look || w.began != test.began {
				t.Errorf("look %v, began %v (-want +got):\n%s", look, w.began, diff)
			}
		})
	}
}
