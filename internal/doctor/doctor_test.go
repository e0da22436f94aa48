package doctor

import (
	"context"
	"strings"
	"testing"
)

func found(name string, ok bool) func(context.Context) Finding {
	return func(context.Context) Finding {
		return Finding{Name: name, OK: ok, Detail: "seen", Remedy: "mend " + name}
	}
}

func backend(usable, pretends bool) Backend {
	return Backend{Pretends: pretends, Examine: func(context.Context) Diagnosis {
		return Diagnosis{Usable: usable, Findings: []Finding{{Name: "program", OK: usable}}}
	}}
}

// Whether tests can run depends on what is needed, in whatever order things are
// looked at.
func TestUsable(t *testing.T) {
	state, noState := Check{true, found("state", true)}, Check{true, found("state", false)}
	extra, noExtra := Check{false, found("extra", true)}, Check{false, found("extra", false)}
	works, broken, mock := backend(true, false), backend(false, false), backend(true, true)
	for _, tt := range []struct {
		name     string
		checks   []Check
		backends map[string]Backend
		want     bool
	}{
		{"all is there", []Check{extra, state}, map[string]Backend{"a": works}, true},
		{"an extra is missing", []Check{state, noExtra}, map[string]Backend{"a": works}, true},
		{"what is needed is missing", []Check{extra, noState}, map[string]Backend{"a": works}, false},
		{"that in front", []Check{noState, extra}, map[string]Backend{"a": works}, false},
		{"one backend of two", []Check{state}, map[string]Backend{"a": broken, "b": works}, true},
		{"no backend", []Check{state}, map[string]Backend{"a": broken}, false},
		{"one that pretends", []Check{state}, map[string]Backend{"a": broken, "mock": mock}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := Host{Version: "1", Checks: tt.checks, Images: func(context.Context) []Finding { return nil }, Backends: tt.backends}
			r := Examine(t.Context(), h)
			if r.Usable != tt.want || len(r.Host) != len(tt.checks) || len(r.Backends) != len(tt.backends) {
				t.Errorf("got %+v", r)
			}
			var text strings.Builder
			r.Write(&text)
			if strings.Contains(text.String(), "Tests cannot run on this host yet") == tt.want || !strings.Contains(text.String(), "→ mend ") {
				t.Errorf("got\n%s", text.String())
			}
		})
	}
}
