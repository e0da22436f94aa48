package attest

import (
	"context"
	"strings"

	"github.com/attest-vm/attest/internal/event"
)

// An argument is one of an operation, for reports and errors. One without a name is
// given by position; one without a value is not given.
type argument struct {
	name  string
	value any
}

// unless is an argument whose usual value need not be said; the zero value stands for
// that.
func unless[T comparable](name string, value, usual T) argument {
	if value == usual || value == *new(T) {
		return argument{}
	}
	return argument{name, value}
}

// machinesGiven are machines as an argument.
func machinesGiven(name string, machines []string) argument {
	if len(machines) == 1 {
		return argument{name, verbatim(machines[0])}
	}
	return argument{name, verbatim("[" + strings.Join(machines, ", ") + "]")}
}

// verbatim is a value that every language writes the same way.
type verbatim string

// written are arguments in the language of the front end that ctx comes from.
func written(ctx context.Context, args ...argument) string {
	literal := event.LiteralOf(ctx)
	var out []string
	for _, a := range args {
		text := ""
		switch v := a.value.(type) {
		case nil:
			continue
		case verbatim:
			text = string(v)
		default:
			text = literal(v)
		}
		if a.name != "" {
			text = a.name + "=" + text
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}
