package operation

import (
	"context"
	"slices"

	"github.com/attest-vm/attest"
)

var waitsTable = []*Operation{
	{
		Name: "wait_until_succeeds", Subject: "Waits", Result: String,
		Params: slices.Concat([]Param{commandParam, limitParam}, commandParams),
		Doc:    "Runs a command again and again until it succeeds, and returns its standard output.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return t.machine.WaitUntilSucceeds(ctx, a.String("command"), a.command()...)
		},
	},
	{
		Name: "wait_until_fails", Subject: "Waits", Result: String,
		Params: slices.Concat([]Param{commandParam, limitParam}, commandParams),
		Doc:    "Runs a command again and again until it fails, and returns its standard output.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return t.machine.WaitUntilFails(ctx, a.String("command"), a.command()...)
		},
	},
	{
		Name: "wait_for_open_port", Subject: "Waits", Result: None,
		Params: []Param{portParam, addrParam, limitParam, {Name: "unit", Type: String, Default: Absent, Named: true, Doc: "the systemd unit behind the port"}},
		Doc:    "Waits until something accepts TCP connections at a port. With `unit` it fails at once when that unit has failed, and its error has the unit's journal.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			opts := []attest.OpenPortOption{a.address(), a.limit()}
			if a.Given("unit") {
				opts = append(opts, attest.Unit(a.String("unit")))
			}
			return nil, t.machine.WaitForOpenPort(ctx, a.Int("port"), opts...)
		},
	},
	{
		Name: "wait_for_closed_port", Subject: "Waits", Result: None,
		Params: []Param{portParam, addrParam, limitParam},
		Doc:    "Waits until nothing accepts TCP connections at a port.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.WaitForClosedPort(ctx, a.Int("port"), a.address(), a.limit())
		},
	},
	{
		Name: "wait_for_open_unix_socket", Subject: "Waits", Result: None,
		Params: []Param{
			{Name: "addr", Type: String, Doc: "the path of the socket in the guest"},
			{Name: "is_datagram", Type: Bool, Default: false, Doc: "True: a datagram socket"},
			limitParam,
		},
		Doc: "Waits until something accepts connections, or datagrams, at a unix socket.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			opts := []attest.SocketOption{a.limit()}
			if a.Bool("is_datagram") {
				opts = append(opts, attest.Datagram())
			}
			return nil, t.machine.WaitForOpenUnixSocket(ctx, a.String("addr"), opts...)
		},
	},
	{
		Name: "wait_for_file", Subject: "Waits", Result: None,
		Params: []Param{{Name: "filename", Type: String, Doc: "a path in the guest"}, limitParam},
		Doc:    "Waits until a path exists, as a file or anything else.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.WaitForFile(ctx, a.String("filename"), a.limit())
		},
	},
	{
		Name: "wait_for_console_text", Subject: "Waits", Result: None,
		Params: []Param{{Name: "regex", Type: String, Doc: "a regular expression in Go's syntax; `^` and `$` match at lines"},
			{Name: "timeout", Type: Duration, Default: Absent, Doc: "the limit of the wait; 15 minutes unless given"}},
		Doc: "Waits until the output of the serial console matches.\n\n" +
			"It considers the output since the machine was started, or since the last match.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.WaitForConsoleText(ctx, a.String("regex"), a.limit())
		},
	},
}
