package operation

import (
	"context"

	"github.com/attest-vm/attest"
)

type terminalKey struct{}

// A TerminalOpener gives an operation the terminal of the person who called it,
// and takes it back.
type TerminalOpener func() (t attest.Terminal, giveBack func(), err error)

// WithTerminal returns a context for operations that a person calls.
func WithTerminal(ctx context.Context, open TerminalOpener) context.Context {
	return context.WithValue(ctx, terminalKey{}, open)
}

var terminalTable = []*Operation{
	{
		Name: "shell_interact", Aliases: []string{"shell"}, Subject: "By hand", Result: None,
		Params: []Param{{Name: "user", Type: String, Default: Absent, Doc: "the user of the shell; root unless given"}},
		Doc: "Opens a login shell of the guest on your terminal, in `attest repl` and `attest debug`. It returns when the shell exits.\n\n" +
			"Everything that is typed goes to the guest, Ctrl-C too; Ctrl-] leaves at once. In a running test, which has no terminal, it is an error.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			open, ok := ctx.Value(terminalKey{}).(TerminalOpener)
			if !ok {
				return nil, &attest.ConfigError{Subject: t.machine.Name() + ": shell_interact", Reason: "a test has no terminal; open the lab in attest repl, or keep the lab of a failed test (--keep) and open it with attest debug"}
			}
			terminal, giveBack, err := open()
			if err != nil {
				return nil, err
			}
			defer giveBack()
			_, err = t.machine.Shell(ctx, terminal, a.user())
			return nil, err
		},
	},
}
