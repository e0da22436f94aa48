package agent

import (
	"context"
	"errors"
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
		{"one that a socket starts", []unitLook{triggered}, "it is started by x.socket", 2},
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

func TestBecameActive(t *testing.T) {
	const changed = "org.freedesktop.DBus.Properties.PropertiesChanged"
	properties := func(active, sub string) []any {
		return []any{unitType, map[string]dbus.Variant{"ActiveState": dbus.MakeVariant(active), "SubState": dbus.MakeVariant(sub)}, []string{}}
	}
	for name, test := range map[string]struct {
		signal dbus.Signal
		want   *wire.UnitState
	}{
		"active":           {dbus.Signal{Name: changed, Body: properties("active", "running")}, &wire.UnitState{ActiveState: "active", SubState: "running", LoadState: "loaded"}},
		"activating":       {dbus.Signal{Name: changed, Body: properties("activating", "start")}, nil},
		"other properties": {dbus.Signal{Name: changed, Body: []any{"x", map[string]dbus.Variant{"Job": dbus.MakeVariant(1)}, []string{}}}, nil},
		"wrong types":      {dbus.Signal{Name: changed, Body: []any{1, 2}}, nil},
		"no body":          {dbus.Signal{Name: changed}, nil},
		"other signal":     {dbus.Signal{Name: managerType + ".JobRemoved", Body: properties("active", "running")}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, becameActive(&test.signal)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
