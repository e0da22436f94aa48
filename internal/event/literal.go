package event

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// A Literal writes a value as a front end's language has it. Front ends whose
// language differs from Neutral put theirs into the context, so that what the
// engine says of arguments and settings is in the language of the test.
type Literal func(value any) string

// Neutral is the Literal of no language: strings and durations in quotes, and true
// and false.
func Neutral(value any) string {
	switch v := value.(type) {
	case string:
		return strconv.Quote(v)
	case time.Duration:
		return strconv.Quote(v.String())
	}
	return fmt.Sprint(value)
}

type literalKey struct{}

// WithLiteral has l write the values of what happens in ctx.
func WithLiteral(ctx context.Context, l Literal) context.Context {
	return context.WithValue(ctx, literalKey{}, l)
}

// LiteralOf is the Literal of ctx; Neutral if it has none.
func LiteralOf(ctx context.Context) Literal {
	if l, ok := ctx.Value(literalKey{}).(Literal); ok {
		return l
	}
	return Neutral
}
