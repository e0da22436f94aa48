package operation

import (
	"context"
	"slices"

	"github.com/attest-vm/attest/internal/event"
)

var machinesTable = []*Operation{
	{
		Name: "start_all", On: Lab, Subject: "Machines", Result: None,
		Doc:  "Starts all machines that are off, at once. It does not wait for the guests to boot.",
		call: func(ctx context.Context, t target, _ Args) (any, error) { return nil, t.lab.StartAll(ctx) },
	},
	{
		Name: "join_all", On: Lab, Subject: "Machines", Result: None,
		Params: []Param{{Name: "timeout", Type: Duration, Default: Absent, Doc: "the limit of the wait; none unless given"}},
		Doc:    "Waits until all machines that run have powered themselves off, without asking them to.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.lab.JoinAll(ctx, a.limit())
		},
	},
	{
		Name: "create_machine", On: Lab, Subject: "Machines", Result: Type(Machine.String()),
		Params: createParams(),
		Doc: "Adds a machine to the running lab, and returns it.\n\n" +
			"It gets addresses of its own, and all other machines learn its name at once. It starts with its first operation, or by `start`, and ends with the lab. It is not in `machines`.",
		call: createMachine,
	},
	{
		Name: "serial_stdout_off", On: Lab, Subject: "Machines", Result: None,
		Doc: "Hides later output of the serial consoles where a run shows it (`-v`). Reports and errors still have it.",
		call: func(ctx context.Context, t target, _ Args) (any, error) {
			event.Publish(ctx, event.ConsoleShown{On: false})
			return nil, nil
		},
	},
	{
		Name: "serial_stdout_on", On: Lab, Subject: "Machines", Result: None,
		Doc: "Shows the serial consoles again after `serial_stdout_off`.",
		call: func(ctx context.Context, t target, _ Args) (any, error) {
			event.Publish(ctx, event.ConsoleShown{On: true})
			return nil, nil
		},
	},
}

// createParams are those of machine(…). Scripts of the NixOS driver give the start
// command by position.
func createParams() []Param {
	out := machineParams()
	i := slices.IndexFunc(out, func(p Param) bool { return p.Name == "start_command" })
	command := out[i]
	command.Named = false
	return append([]Param{command}, slices.Delete(out, i, i+1)...)
}

func createMachine(ctx context.Context, t target, a Args) (any, error) {
	m, err := t.lab.CreateMachine(ctx, MachineConfigOf(a))
	if err != nil {
		return nil, err
	}
	return MachineName(m.Name()), nil
}
