package operation

import "context"

var othersTable = []*Operation{
	{
		Name: "get_console_log", Subject: "Others", Result: String,
		Doc:  "Returns what the serial console has said since the machine was started.",
		call: func(_ context.Context, t target, _ Args) (any, error) { return t.machine.ConsoleLog(), nil },
	},
	{
		Name: "sleep", Subject: "Others", Result: None,
		Params: []Param{{Name: "secs", Type: Duration, Doc: "how long"}},
		Doc:    "Waits for some of the guest's time. A wait for what the test really needs is faster and does not flake.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.Sleep(ctx, a.Duration("secs"))
		},
	},
	{
		Name: "log", Subject: "Others", Result: None,
		Params: []Param{{Name: "msg", Type: String, Doc: "the text"}},
		Doc:    "Writes a line with the machine's name to the log of the run.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			t.machine.Log(ctx, a.String("msg"))
			return nil, nil
		},
	},
}
