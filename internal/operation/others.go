package operation

import "context"

var othersTable = []*Operation{
	{
		Name: "sleep", Subject: "Others", Result: None,
		Params: []Param{{Name: "secs", Type: Duration, Doc: "how long"}},
		Doc:    "Waits for some time on the guest's clock. A wait for a condition is faster and does not flake.",
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
	{
		Name: "nested", Subject: "Others", Result: None,
		Params: []Param{{Name: "msg", Type: String, Doc: "what the steps are about"}, {Name: "fn", Type: Function, Doc: "a function without arguments"}},
		Doc:    "Calls a function. Its steps are below one step in the log of the run.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.Nested(ctx, a.String("msg"), func(ctx context.Context) error {
				_, err := a.Func("fn")(ctx)
				return err
			})
		},
	},
}
