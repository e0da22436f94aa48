package operation

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
)

var update = flag.Bool("update", false, "rewrite docs/operations.md")

func TestReferenceIsCurrent(t *testing.T) {
	const path = "../../docs/operations.md"
	want := Reference()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the table says; go test ./internal/operation -update", path)
	}
}

func TestTableIsConsistent(t *testing.T) {
	seen := map[string]bool{}
	for _, o := range table {
		for _, name := range append([]string{o.Name}, o.Aliases...) {
			if key := fmt.Sprint(o.On, " ", name); seen[key] {
				t.Errorf("%s is in the table twice", name)
			} else {
				seen[key] = true
			}
			if got := Find(o.On, name); got != o {
				t.Errorf("Find(%v, %q) finds %v", o.On, name, got)
			}
		}
		if o.call == nil || o.Doc == "" || o.Subject == "" || o.Result == "" {
			t.Errorf("%s lacks its call, doc, subject or result", o.Name)
		}
		if o.Property && len(o.Params) > 0 {
			t.Errorf("%s: a property has no parameters", o.Name)
		}
		optional := false
		for i, p := range o.Params {
			if p.Doc == "" {
				t.Errorf("%s: %s has no doc", o.Name, p.Name)
			}
			if i > 0 && o.Params[i-1].Named && !p.Named {
				t.Errorf("%s: %s has a position but follows one that has none", o.Name, p.Name)
			}
			if !p.Variadic && p.Default == nil && optional {
				t.Errorf("%s: %s is required but follows an optional one", o.Name, p.Name)
			}
			optional = optional || p.Default != nil
			if p.Variadic && (p.Type != String || p.Default != nil) {
				t.Errorf("%s: a variadic parameter is a string without default", o.Name)
			}
			if i > 0 && o.Params[i-1].Name == p.Name {
				t.Errorf("%s: two parameters %s", o.Name, p.Name)
			}
			if p.Default != nil && p.Default != Absent && !fits(p) {
				t.Errorf("%s: default of %s is a %T", o.Name, p.Name, p.Default)
			}
		}
	}
}

func fits(p Param) bool {
	switch p.Default.(type) {
	case string:
		return p.Type == String
	case bool:
		return p.Type == Bool
	case int:
		return p.Type == Int
	case float64:
		return p.Type == Float
	case time.Duration:
		return p.Type == Duration
	}
	return false
}

// Names and argument names that scripts of the NixOS driver use.
func TestSignatures(t *testing.T) {
	for _, want := range []string{
		"start(allow_reboot=False)",
		"execute(command, check_return=True, check_output=True, timeout=900, *, stdin=None, user=None, env=None, cwd=None)",
		"succeed(*commands, timeout=None, stdin=None, user=None, env=None, cwd=None)",
		"fail(*commands, timeout=None, stdin=None, user=None, env=None, cwd=None)",
		"wait_until_succeeds(command, timeout=900, *, stdin=None, user=None, env=None, cwd=None)",
		"wait_until_fails(command, timeout=900, *, stdin=None, user=None, env=None, cwd=None)",
		"wait_for_unit(unit, user=None, timeout=900)",
		`wait_for_open_port(port, addr="localhost", timeout=900, *, unit=None)`,
		`wait_for_closed_port(port, addr="localhost", timeout=900)`,
		"wait_for_file(filename, timeout=900)",
		"wait_for_console_text(regex, timeout=None)",
		"get_screen_text(region=None)", "get_screen_text_variants(region=None)", "wait_for_text(regex, timeout=900, region=None)",
		"systemctl(q, user=None)",
		"get_unit_info(unit, user=None)", "get_unit_property(unit, property, user=None)",
		`require_unit_state(unit, require_state="active")`,
		"start_job(jobname, user=None)", "stop_job(jobname, user=None)",
		"wait_for_open_unix_socket(addr, is_datagram=False, timeout=900)",
		"copy_from_host(source, target)",
		`copy_from_machine(source, target_dir="")`,
		"shutdown()", "wait_for_shutdown(timeout=None)", "crash()", "reboot()",
		"get_console_log()", "sleep(secs)", "log(msg)", "is_up()",
	} {
		name, _, _ := strings.Cut(want, "(")
		o := Find(Machine, name)
		if o == nil {
			t.Errorf("no operation %s", name)
		} else if got := o.Signature(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if Find(Machine, "copy_from_vm") != Find(Machine, "copy_from_machine") {
		t.Error("copy_from_vm is not copy_from_machine")
	}
	if Find(Lab, "start_all") == nil || Find(Machine, "start_all") != nil {
		t.Error("start_all is not an operation of the lab alone")
	}
}

func TestBind(t *testing.T) {
	args, err := Find(Machine, "wait_for_unit").Bind([]any{"nginx.service"}, []Named{{"timeout", "90s"}, {"user", nil}})
	if err != nil {
		t.Fatal(err)
	}
	if args.String("unit") != "nginx.service" || args.Duration("timeout") != 90*time.Second {
		t.Errorf("got %+v", args)
	}
	if args.Given("user") || !args.None("user") {
		t.Error("None counts as given")
	}

	args, err = Find(Machine, "succeed").Bind([]any{"true", "false"}, []Named{{"timeout", int64(5)}})
	if err != nil {
		t.Fatal(err)
	}
	if got := args.Strings("commands"); len(got) != 2 || got[1] != "false" || args.Duration("timeout") != 5*time.Second {
		t.Errorf("got %+v", args)
	}

	args, err = Find(Machine, "execute").Bind([]any{"true", false}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if args.Bool("check_return") || !args.Bool("check_output") || args.Given("timeout") || args.None("timeout") {
		t.Errorf("got %+v", args)
	}
	if args, err = Find(Machine, "wait_for_open_port").Bind([]any{int64(80)}, nil); err != nil || args.Int("port") != 80 || args.String("addr") != "localhost" {
		t.Errorf("got %+v, %v", args, err)
	}
}

// A list of which not all is known yet is checked when it is.
func TestBindPartly(t *testing.T) {
	if _, err := Find(Machine, "get_screen_text").Bind([]any{[]any{Unknown, int64(2), int64(3), int64(4)}}, nil); err != nil {
		t.Error(err)
	}
}

func TestBindErrors(t *testing.T) {
	const unit = "wait_for_unit(unit, user=None, timeout=900): "
	const succeed = "succeed(*commands, timeout=None, stdin=None, user=None, env=None, cwd=None): "
	const port = `wait_for_open_port(port, addr="localhost", timeout=900, *, unit=None): `
	tests := []struct {
		operation  string
		positional []any
		named      []Named
		want       string
	}{
		{"wait_for_unit", nil, nil, unit + "argument unit is missing"},
		{"wait_for_unit", []any{"a", nil, int64(1), int64(2)}, nil, unit + "takes at most 3 arguments, not 4"},
		{"wait_for_unit", []any{"a"}, []Named{{"timeuot", int64(1)}}, unit + `there is no argument "timeuot"; did you mean timeout?`},
		{"wait_for_unit", []any{"a"}, []Named{{"xyz", int64(1)}}, unit + `there is no argument "xyz"`},
		{"wait_for_unit", []any{"a"}, []Named{{"unit", "b"}}, unit + "argument unit is given twice"},
		{"wait_for_unit", []any{int64(1)}, nil, unit + "unit must be a string, not the number 1"},
		{"wait_for_unit", []any{Opaque("list")}, nil, unit + "unit must be a string, not a value of type list"},
		{"wait_for_unit", []any{"a"}, []Named{{"timeout", true}}, unit + `timeout must be a duration (a number of seconds, or a string such as "200ms"), not True`},
		{"wait_for_unit", []any{"a"}, []Named{{"timeout", nil}}, unit + `timeout must be a duration (a number of seconds, or a string such as "200ms"), not None`},
		{"wait_for_unit", []any{"a"}, []Named{{"timeout", int64(-1)}}, unit + "timeout: a duration of -1s is negative"},
		{"wait_for_unit", []any{"a"}, []Named{{"timeout", "-5ms"}}, unit + "timeout: a duration of -5ms is negative"},
		{"wait_for_unit", []any{"a"}, []Named{{"timeout", "10"}}, unit + `timeout: "10" is not a duration such as "200ms" or "1m30s"; for seconds write the number without quotes, or "10s"`},
		{"wait_for_unit", []any{"a"}, []Named{{"timeout", "soon"}}, unit + `timeout: "soon" is not a duration such as "200ms" or "1m30s"`},
		{"wait_for_unit", []any{"a"}, []Named{{"timeout", 1e300}}, unit + "timeout: 1e+300 seconds is out of range"},
		{"wait_for_unit", []any{"a"}, []Named{{"timeout", math.NaN()}}, unit + "timeout: NaN seconds is out of range"},
		{"succeed", nil, nil, succeed + "argument commands is missing"},
		{"succeed", []any{"true", int64(5)}, nil, succeed + "commands must be a string, not the number 5"},
		{"succeed", nil, []Named{{"commands", "true"}}, succeed + "*commands is given by position, without its name"},
		{"wait_for_open_port", []any{"80"}, nil, port + `port must be an integer, not the string "80"`},
		{"wait_for_open_port", []any{80.5}, nil, port + "port must be an integer, not the number 80.5"},
		{"get_screen_text", []any{[]any{int64(1), int64(2)}}, nil, "get_screen_text(region=None): region: [1 2] is not a part of a screen; want [x, y, width, height]"},
		{"shutdown", []any{int64(1)}, nil, "shutdown(): takes at most 0 arguments, not 1"},
	}
	for _, tt := range tests {
		_, err := Find(Machine, tt.operation).Bind(tt.positional, tt.named)
		if err == nil || err.Error() != tt.want {
			t.Errorf("%s%v %v:\n got %v\nwant %s", tt.operation, tt.positional, tt.named, err, tt.want)
		}
		if attest.StatusOf(err) != attest.Invalid {
			t.Errorf("%v: status %s", err, attest.StatusOf(err))
		}
	}
}

// Every type takes what front ends can say for it, and nothing else.
func TestTypes(t *testing.T) {
	o := &Operation{Name: "try", Params: []Param{
		{Name: "input", Type: Bytes, Default: Absent},
		{Name: "env", Type: Dict, Default: Absent, Named: true},
		{Name: "commands", Type: Strings, Default: Absent, Named: true},
		{Name: "on", Type: Machines, Default: Absent, Named: true},
		{Name: "rate", Type: Float, Default: 0.5, Named: true},
		{Name: "during", Type: Function, Default: Absent, Named: true},
	}}
	const call = "try(input=None, *, env=None, commands=None, on=None, rate=0.5, during=None): "
	called := Func(func(context.Context, ...any) (any, error) { return "called", nil })
	args, err := o.Bind([]any{"text"}, []Named{
		{"env", map[string]any{"A": "1", "B": Unknown}}, {"commands", []any{"a", "b"}},
		{"on", []any{MachineName("web"), MachineName("db")}}, {"rate", int64(2)}, {"during", called},
	})
	if err != nil {
		t.Fatal(err)
	}
	if string(args.Bytes("input")) != "text" || args.Dict("env")["A"] != "1" || args.Float("rate") != 2 {
		t.Errorf("got %+v", args)
	}
	if got := args.Strings("commands"); len(got) != 2 || got[1] != "b" {
		t.Errorf("a list of strings is %q", got)
	}
	if v, _ := args.Func("during")(t.Context()); v != "called" {
		t.Errorf("the function returns %v", v)
	}
	one, err := o.Bind([]any{[]byte{0xff}}, []Named{{"commands", "a"}, {"on", MachineName("web")}})
	if err != nil || string(one.Bytes("input")) != "\xff" || len(one.Strings("commands")) != 1 || one.Float("rate") != 0.5 {
		t.Errorf("got %+v, %v", one, err)
	}
	if one.Func("during") != nil || one.Dict("env") != nil || one.Given("env") {
		t.Errorf("got %+v", one)
	}
	for _, tt := range []struct {
		name  string
		value any
		want  string
	}{
		{"input", int64(1), "input must be a string or bytes, not the number 1"},
		{"env", "A=1", `env must be a dict of strings, not the string "A=1"`},
		{"env", map[string]any{"A": int64(1)}, `env: the value of "A" must be a string, not the number 1`},
		{"commands", []any{"a", nil}, "commands: None in the list is not a string"},
		{"commands", called, "commands must be a string or list of strings, not a function"},
		{"on", "web", `on must be a machine or list of machines, not the string "web"`},
		{"on", []any{"web"}, `on: the string "web" in the list is not a machine`},
		{"rate", "1", `rate must be a number, not the string "1"`},
		{"during", []any{}, "during must be a function, not a list"},
	} {
		if _, err := o.Bind(nil, []Named{{tt.name, tt.value}}); err == nil || err.Error() != call+tt.want {
			t.Errorf("got %v\nwant %s", err, call+tt.want)
		}
	}
	_, err = o.Bind([]any{"a", "b"}, nil)
	if want := call + "takes at most 1 positional arguments, not 2; give the others by name"; err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

// A call can be checked before its values are known.
func TestBindUnknown(t *testing.T) {
	o := Find(Machine, "wait_for_open_port")
	if _, err := o.Bind([]any{Unknown}, []Named{{"timeout", Unknown}}); err != nil {
		t.Error(err)
	}
	if _, err := o.Bind([]any{Unknown}, []Named{{"adr", Unknown}}); err == nil {
		t.Error("an argument that does not exist passes")
	}
}

func TestParseDuration(t *testing.T) {
	for _, tt := range []struct {
		in   any
		want time.Duration
	}{
		{int64(0), 0}, {int64(900), 15 * time.Minute}, {0.25, 250 * time.Millisecond},
		{"200ms", 200 * time.Millisecond}, {"1h2m", 62 * time.Minute}, {"0", 0},
	} {
		if got, err := ParseDuration(tt.in); err != nil || got != tt.want {
			t.Errorf("%v: got %v, %v, want %v", tt.in, got, err, tt.want)
		}
	}
}

func TestSignalNames(t *testing.T) {
	for name, want := range map[string]syscall.Signal{"SIGTERM": 15, "KILL": 9, "int": 2, "sigusr1": 10, "15": 15} {
		if got, err := signal(name); err != nil || got != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "SIG", "99", "-9", "STOPP"} {
		if got, err := signal(name); attest.StatusOf(err) != attest.Invalid {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestDidYouMean(t *testing.T) {
	for _, tt := range []struct{ name, want string }{
		{"suceed", "succeed"}, {"succede", "succeed"}, {"Execute", "execute"}, {"wait_for_unti", "wait_for_unit"},
		{"wait_for_port", "wait_for_open_port"}, {"wait_for_uint", "wait_for_unit"}, {"copy_to_vm", "copy_from_vm"}, {"strat", "start"}, {"xyzzy", ""}, {"", ""},
	} {
		got := DidYouMean(tt.name, Names(Machine))
		want := ""
		if tt.want != "" {
			want = "; did you mean " + tt.want + "?"
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", tt.name, got, want)
		}
	}
}

func TestErrorKeepsWhatItWraps(t *testing.T) {
	inner := &attest.CommandError{Machine: "a", Operation: "succeed", Command: "false", Result: attest.Result{ExitCode: 1}}
	err := error(&Error{"a", "succeed", inner})
	var command *attest.CommandError
	if !errors.As(err, &command) || command != inner || err.Error() != inner.Error() {
		t.Errorf("got %v", err)
	}
}

// Whoever adds an operation tries it on a real machine.
func TestEveryOperationIsTried(t *testing.T) {
	text, err := os.ReadFile("testdata/every_operation.star")
	if err != nil {
		t.Fatal(err)
	}
	for _, on := range []On{Machine, Lab, Job} { // those of networks need several machines
		for _, name := range Names(on) {
			call := name + "("
			if Find(on, name).Property {
				call = "." + name
			}
			if !strings.Contains(string(text), call) {
				t.Errorf("testdata/every_operation.star does not use %s", call)
			}
		}
	}
}

// What the engine says of arguments reads as in a test file.
func TestArgumentsAreWrittenAsInTestFiles(t *testing.T) {
	write := event.LiteralOf(In(t.Context()))
	for want, v := range map[string]any{"True": true, "False": false, `"100ms"`: 100 * time.Millisecond, `"a"`: "a", "5": 5} {
		if got := write(v); got != want {
			t.Errorf("%v is written %s, want %s", v, got, want)
		}
	}
}
