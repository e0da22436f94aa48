package operation

import (
	"context"

	"github.com/attest-vm/attest"
)

var unitsTable = []*Operation{
	{
		Name: "wait_for_unit", Subject: "Units", Result: None,
		Params: []Param{unitParam, userParam, limitParam},
		Doc: "Waits until a systemd unit is active.\n\n" +
			"It fails at once when the unit can no longer become active: it has failed, does not exist, or is inactive with no job pending. " +
			"For a oneshot service that does not remain active the wait ends when the unit finishes successfully, and fails if it fails. See [waits.md](waits.md).",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.WaitForUnit(ctx, a.String("unit"), a.user(), a.limit())
		},
	},
	{
		Name: "systemctl", Subject: "Units", Result: Pair,
		Params: []Param{{Name: "q", Type: String, Doc: "arguments, such as `restart nginx.service`"}, userParam},
		Doc:    "Runs `systemctl` and returns the pair of its exit code and standard output.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return pair(t.machine.Systemctl(ctx, a.String("q"), a.user()))
		},
	},
	{
		Name: "get_unit_info", Subject: "Units", Result: Dict,
		Params: []Param{unitParam, userParam},
		Doc:    "Returns all properties of a unit that `systemctl show` prints.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return t.machine.UnitInfo(ctx, a.String("unit"), a.user())
		},
	},
	{
		Name: "get_unit_property", Subject: "Units", Result: String,
		Params: []Param{unitParam, {Name: "property", Type: String, Doc: "its name, such as `ActiveState`"}, userParam},
		Doc:    "Returns one property of a unit as `systemctl show` prints it.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return t.machine.UnitProperty(ctx, a.String("unit"), a.String("property"), a.user())
		},
	},
	{
		Name: "require_unit_state", Subject: "Units", Result: None,
		Params: []Param{unitParam, {Name: "require_state", Type: String, Default: "active", Doc: "what `ActiveState` must be"}},
		Doc:    "Fails the test unless the unit is in the required state now.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.RequireUnitState(ctx, a.String("unit"), a.String("require_state"))
		},
	},
	{
		Name: "start_job", Subject: "Units", Result: Pair,
		Params: []Param{{Name: "jobname", Type: String, Doc: "a systemd unit"}, userParam},
		Doc:    "Starts a unit, waits until it runs or has failed to start, and returns the pair of systemctl's exit code and output.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return pair(t.machine.StartJob(ctx, a.String("jobname"), a.user()))
		},
	},
	{
		Name: "stop_job", Subject: "Units", Result: Pair,
		Params: []Param{{Name: "jobname", Type: String, Doc: "a systemd unit"}, userParam},
		Doc:    "Stops a unit, waits for that, and returns the pair of systemctl's exit code and output.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return pair(t.machine.StopJob(ctx, a.String("jobname"), a.user()))
		},
	},
	{
		Name: "journal", Subject: "Units", Result: String,
		Params: []Param{
			{Name: "unit", Type: String, Default: Absent, Doc: "a systemd unit; everything unless given"},
			{Name: "lines", Type: Int, Default: Absent, Doc: "only so many lines, the last ones; all unless given"},
			{Name: "since", Type: String, Default: Absent, Doc: "only newer lines; a time as `journalctl` reads it: `-5min`, `today`"},
			{Name: "user", Type: String, Default: Absent, Doc: "the unit belongs to this user's service manager"},
		},
		Doc: "Returns the journal of a unit.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			opts := []attest.JournalOption{a.user()}
			if a.Given("lines") {
				opts = append(opts, attest.Lines(a.Int("lines")))
			}
			if a.Given("since") {
				opts = append(opts, attest.Since(a.String("since")))
			}
			return t.machine.Journal(ctx, a.String("unit"), opts...)
		},
	},
}
