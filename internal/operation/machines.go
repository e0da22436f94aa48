package operation

import (
	"context"

	"github.com/attest-vm/attest"
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
		Params: []Param{
			{Name: "start_command", Type: String, Default: Absent, Doc: "what starts it in place of an image, see [foreign.md](foreign.md)"},
			{Name: "name", Type: String, Default: Absent, Named: true, Doc: "the machine's name and host name. It is required without a `start_command`; with one the default is NAME if the command ends in `run-NAME-vm`, else `machine`"},
			{Name: "image", Type: Image, Default: Absent, Named: true, Doc: "what it boots; required without a `start_command`"},
			{Name: "backend", Type: String, Default: "", Named: true, Doc: "this and the following as with `machine(…)`"},
			{Name: "memory", Type: Int, Default: 0, Named: true, Doc: "MiB"},
			{Name: "cpus", Type: Int, Default: 0, Named: true, Doc: "how many processors"},
			{Name: "egress", Type: Strings, Default: Absent, Named: true, Doc: "where it may connect to outside of the lab, see [networks.md](networks.md); nowhere unless given, `\"*\"` is everywhere but this host"},
			{Name: "networks", Type: Ints, Default: Absent, Named: true, Doc: "the networks it is on; `[1]` unless given"},
			{Name: "type", Type: String, Default: "", Named: true, Doc: "QEMU's machine type"},
			{Name: "cmdline", Type: String, Default: "", Named: true, Doc: "more arguments for the kernel"},
			{Name: "display", Type: Bool, Default: false, Named: true, Doc: "whether it has a screen"},
			{Name: "allow_reboot", Type: Bool, Default: false, Named: true, Doc: "whether the guest may reboot by itself"},
		},
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

func createMachine(ctx context.Context, t target, a Args) (any, error) {
	config := attest.MachineConfig{
		Name: a.String("name"), Backend: a.String("backend"), Memory: a.Int("memory"), CPUs: a.Int("cpus"),
		Networks: get[[]int](a, "networks"), Egress: a.Strings("egress"), Type: a.String("type"), Cmdline: a.String("cmdline"),
		StartCommand: a.String("start_command"), Display: a.Bool("display"), AllowReboot: a.Bool("allow_reboot"), Image: get[attest.Image](a, "image"),
	}
	m, err := t.lab.CreateMachine(ctx, config)
	if err != nil {
		return nil, err
	}
	return MachineName(m.Name()), nil
}
