package operation

import "context"

var machinesTable = []*Operation{
	{
		Name: "start_all", On: Lab, Subject: "Machines", Result: None,
		Doc:  "Starts all machines that are off, at once. It does not wait for the guests to boot.",
		call: func(ctx context.Context, t target, _ Args) (any, error) { return nil, t.lab.StartAll(ctx) },
	},
}
