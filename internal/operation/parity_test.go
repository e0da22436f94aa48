package operation

import (
	"context"
	"reflect"
	"strings"
	"testing"

	"github.com/attest-vm/attest"
)

// goName is how an operation is called in Go: get_tty_text is TTYText.
func goName(operation string) string {
	initialisms := map[string]string{"tty": "TTY", "qmp": "QMP"}
	var b strings.Builder
	for word := range strings.SplitSeq(strings.TrimPrefix(operation, "get_"), "_") {
		if i, ok := initialisms[word]; ok {
			b.WriteString(i)
		} else {
			b.WriteString(strings.ToUpper(word[:1]) + word[1:])
		}
	}
	return b.String()
}

// Every operation is there in Go: with a context, and in the form that ends the
// test when it fails, which has none.
func TestEveryOperationIsInGo(t *testing.T) {
	contextType := reflect.TypeFor[context.Context]()
	for _, kind := range []struct {
		on          On
		plain, test reflect.Type
	}{
		{Machine, reflect.TypeFor[*attest.Machine](), reflect.TypeFor[*attest.TestMachine]()},
		{Lab, reflect.TypeFor[*attest.Lab](), reflect.TypeFor[*attest.TestLab]()},
	} {
		for _, o := range All(kind.on) {
			if o.Name == "serial_stdout_off" || o.Name == "serial_stdout_on" {
				continue // go test shows no consoles
			}
			var plain reflect.Method
			for _, name := range append([]string{o.Name}, o.Aliases...) {
				if m, ok := kind.plain.MethodByName(goName(name)); ok {
					plain = m
				}
			}
			name := plain.Name
			if name == "" {
				t.Errorf("%s: %v has no method %s", o.Name, kind.plain, goName(o.Name))
				continue
			}
			if test, ok := kind.test.MethodByName(name); !ok || test.Type.NumIn() > 1 && test.Type.In(1) == contextType {
				t.Errorf("%s: %v has no method %s without a context", o.Name, kind.test, name)
			}
		}
	}
}
