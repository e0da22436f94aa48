package operation

import (
	"fmt"
	"strings"
)

// Reference is docs/operations.md: the table as a page for people.
func Reference() string {
	var b strings.Builder
	b.WriteString(`# Operations

The operations of machines, of the network, and of the objects that operations return. Names,
arguments and meanings are the NixOS test driver's. This page is generated from the
table in ` + "`internal/operation`" + `; ` + "`go test ./internal/operation -update`" + ` writes it.

A duration is a number of seconds, or a string as Go reads it: ` + "`\"200ms\"`, `\"1m30s\"`" + `.
A machine that is off starts with the first operation that needs it. An operation
that fails ends the test.

`)
	subject := ""
	for _, o := range table {
		if o.Subject != subject {
			subject = o.Subject
			fmt.Fprintf(&b, "## %s\n\n", subject)
		}
		o.write(&b)
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// Help is what the reference says of the operation.
func (o *Operation) Help() string {
	var b strings.Builder
	o.write(&b)
	return strings.TrimSpace(strings.TrimPrefix(b.String(), "### "))
}

func (o *Operation) write(b *strings.Builder) {
	call := o.Signature()
	if o.On != Lab {
		call = o.On.String() + "." + call
	}
	if o.Result != None {
		call += " → " + string(o.Result)
	}
	fmt.Fprintf(b, "### `%s`\n\n%s\n\n", call, o.Doc)
	if o.Result == Pair {
		b.WriteString("The pair also has `.exit_code`, `.stdout` and `.stderr` as text, `.stdout_bytes` and `.stderr_bytes` byte for byte, and `.duration` (seconds).\n\n")
	}
	for _, p := range o.Params {
		if p.Doc != "" {
			fmt.Fprintf(b, "- `%s` (%s): %s\n", p.Name, p.Type, p.Doc)
		}
	}
	if len(o.Params) > 0 {
		b.WriteString("\n")
	}
	if len(o.Aliases) > 0 {
		fmt.Fprintf(b, "Also called `%s`.\n\n", strings.Join(o.Aliases, "`, `"))
	}
}
