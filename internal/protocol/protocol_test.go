package protocol

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/session"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A lab without machines: a command is what happens.
type lab struct {
	began chan string // has the name of an operation that hangs

	mu    sync.Mutex
	calls []string
}

func (l *lab) Close() error { return nil }

func (l *lab) Invoke(ctx context.Context, object any, o *operation.Operation, args operation.Args) (any, error) {
	l.mu.Lock()
	on := ""
	switch object := object.(type) {
	case operation.MachineName:
		on = string(object)
	case operation.Handle:
		on = object.Name
	}
	l.calls = append(l.calls, fmt.Sprintf("%s.%s %s %v", on, o.Name, event.ScopeOf(ctx).Subtest, event.PositionOf(ctx)))
	l.mu.Unlock()
	switch o.Name {
	case "succeed":
		switch c := args.Strings("commands")[0]; c {
		case "large":
			return strings.Repeat("a\x00é", 1<<20), nil
		case "false":
			return nil, &attest.CommandError{Machine: on, Operation: "succeed", Command: c, Number: 1, Of: 1, Result: attest.Result{ExitCode: 1, Stdout: "no"}}
		case "hang":
			l.began <- o.Name
			<-ctx.Done()
			return nil, context.Cause(ctx)
		default:
			return fmt.Sprint(len(c)), nil
		}
	case "execute":
		return operation.Result{Status: 1, Result: attest.Result{ExitCode: 1, Stdout: "\xff\n", Duration: time.Second}}, nil
	case "spawn":
		return operation.Handle{On: operation.Job, Name: "a job"}, nil
	case "nested":
		return args.Func("fn")(ctx, "argument")
	}
	return nil, nil
}

// A client is the other end, in a test.
type client struct {
	t    *testing.T
	net  net.Conn
	in   *bufio.Reader
	next int64
}

// serve serves a client until the test's end; done has what Serve has returned.
func serve(t *testing.T, ctx context.Context, o Options, l *lab) (*client, *Server, chan error) {
	t.Helper()
	ours, theirs := net.Pipe()
	o.Peer = cmpOr(o.Peer, "Test")
	o.Session = session.Over(ctx, l)
	s := NewServer(ours, o)
	done := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, err := s.Serve(ctx)
		done <- err
	}()
	t.Cleanup(func() {
		theirs.Close()
		<-ended
	})
	return &client{t: t, net: theirs, in: bufio.NewReaderSize(theirs, 8<<20)}, s, done
}

func cmpOr(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

func (c *client) send(line string) {
	if _, err := io.WriteString(c.net, line+"\n"); err != nil {
		c.t.Error(err)
	}
}

func (c *client) begin(method, params string) int64 {
	c.next++
	c.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":%q,"params":%s}`, c.next, method, params))
	return c.next
}

func (c *client) receive() *message {
	c.t.Helper()
	m, err := readMessage(c.in)
	if err != nil {
		c.t.Fatal(err)
	}
	return m
}

// ask makes a request and returns its result, or its error as JSON.
func (c *client) ask(method, params string) string {
	c.t.Helper()
	id := c.begin(method, params)
	m := c.receive()
	if m.ID == nil || *m.ID != id {
		c.t.Fatalf("%s: got the message %+v", method, m)
	}
	if m.Error != nil {
		text, _ := json.Marshal(m.Error)
		return "error " + string(text)
	}
	return string(m.Result)
}

func (c *client) hello() {
	c.t.Helper()
	if got := c.ask("hello", `{"protocol":1}`); !strings.HasPrefix(got, "{") {
		c.t.Fatal(got)
	}
}

func TestRequests(t *testing.T) {
	l := &lab{}
	c, _, _ := serve(t, t.Context(), Options{Machines: []string{"web"}, Version: "1.2"}, l)
	var hello struct {
		Protocol int
		Version  string
		Machines []string
		Kinds    map[string]struct {
			Operations []struct{ Name string }
		}
	}
	if err := json.Unmarshal([]byte(c.ask("hello", `{"protocol":1,"client":"a test"}`)), &hello); err != nil {
		t.Fatal(err)
	}
	if hello.Protocol != 1 || hello.Version != "1.2" || hello.Machines[0] != "web" || len(hello.Kinds["machine"].Operations) != len(operation.All(operation.Machine)) {
		t.Errorf("hello: %+v", hello)
	}
	job := 0 // the number of the one object, which is new in the process
	const web = `"on":{"machine":"web"},"at":{"file":"a.py","line":7,"function":"f"}`
	for _, tt := range []struct{ method, params, want string }{
		{"hello", `{"protocol":1}`, `"code":-32602,"message":"a second hello"`},
		{"invoke", `{` + web + `,"operation":"succeed","args":["four"]}`, `"4"`},
		{"invoke", `{` + web + `,"operation":"succeed","args":[{"$text":"w6k="}],"named":{"timeout":0.5,"stdin":{"$bytes":"AA=="}}}`, `"2"`},
		{"invoke", `{` + web + `,"operation":"execute","args":["x"]}`, `{"$result":{"status":1,"exit_code":1,"stdout":{"$bytes":"/wo="},"stderr":"","duration":1}}`},
		{"invoke", `{` + web + `,"operation":"spawn","args":["x"]}`, `{"$object":{"kind":"job","id":JOB,"name":"a job"}}`},
		{"invoke", `{"on":{"object":JOB},"operation":"kill"}`, `null`},
		{"invoke", `{` + web + `,"operation":"succeed","args":["false"]}`, `"code":1,"message":"web: command ` + "`false`" + ` failed (exit code 1)","data":{"status":"failed","kind":"command","error":1,`},
		{"invoke", `{` + web + `,"operation":"sucede","args":["false"]}`, `"kind":"argument"`},
		{"invoke", `{` + web + `,"operation":"succeed","args":[{"$other":"set"}]}`, `not a value of type set`},
		{"invoke", `{` + web + `,"operation":"succeed","args":[{"$what":1}]}`, `there is no kind of value \"$what\"`},
		{"invoke", `{` + web + `,"operation":"succeed","args":[99999999999999999999]}`, `out of range`},
		{"invoke", `{"on":{"kind":"network"},"operation":"heal"}`, `null`},
		{"invoke", `{"on":{"kind":"job"},"operation":"kill"}`, `not the kind \"job\"`},
		{"invoke", `{"on":{"object":JOB},"operation":"kill","unknown":1}`, `"code":-32602`},
		{"invoke", `{"on":{"object":JOB},"operation":"kill","scope":77}`, `there is no scope 77`},
		{"release", `{"object":JOB}`, `null`},
		{"invoke", `{"on":{"object":JOB},"operation":"kill"}`, `"kind":"unknown_object"`},
		{"begin", `{"name":"part"}`, `{"scope":1}`},
		{"invoke", `{` + web + `,"operation":"succeed","args":["in"],"scope":1}`, `"2"`},
		{"finish", `{"scope":1}`, `null`},
		{"finish", `{"scope":1}`, `there is no scope 1`},
		{"log", `{"level":"info","text":"x"}`, `null`},
		{"log", `{"level":"loud","text":"x"}`, `level: want debug`},
		{"read", `{"data":9,"offset":0,"length":1}`, `there is no data 9`},
		{"dance", `{}`, `"code":-32601`},
		{"invoke", `[1]`, `"code":-32602`},
	} {
		got := c.ask(tt.method, strings.ReplaceAll(tt.params, "JOB", fmt.Sprint(job)))
		if job == 0 {
			fmt.Sscanf(got, `{"$object":{"kind":"job","id":%d`, &job)
		}
		if want := strings.ReplaceAll(tt.want, "JOB", fmt.Sprint(job)); !strings.Contains(got, want) {
			t.Errorf("%s %s:\n got %s\nwant %s", tt.method, tt.params, got, want)
		}
	}
	if got := l.calls[0]; got != "web.succeed  a.py:7" {
		t.Errorf("the first call: %s", got)
	}
	if got := strings.Join(l.calls, "\n"); !strings.Contains(got, "web.succeed part a.py:7") {
		t.Errorf("no call in the subtest:\n%s", got)
	}
}

// What is larger than a message goes as data, in both directions.
func TestLargeValues(t *testing.T) {
	c, s, _ := serve(t, t.Context(), Options{}, &lab{})
	c.hello()
	var ref struct {
		Data dataRef `json:"$data"`
	}
	if err := json.Unmarshal([]byte(c.ask("invoke", `{"on":{"machine":"web"},"operation":"succeed","args":["large"]}`)), &ref); err != nil || ref.Data.ID == 0 {
		t.Fatal(err, ref)
	}
	var text []byte
	for len(text) < ref.Data.Size {
		var piece struct {
			Bytes []byte `json:"$bytes"`
		}
		if err := json.Unmarshal([]byte(c.ask("read", fmt.Sprintf(`{"data":%d,"offset":%d,"length":%d}`, ref.Data.ID, len(text), 512<<10))), &piece); err != nil || len(piece.Bytes) == 0 {
			t.Fatal(err)
		}
		text = append(text, piece.Bytes...)
	}
	var result struct {
		Text []byte `json:"$text"`
	}
	if err := json.Unmarshal(text, &result); err != nil || string(result.Text) != strings.Repeat("a\x00é", 1<<20) {
		t.Errorf("%v, %d bytes", err, len(result.Text))
	}
	params := `{"on":{"machine":"web"},"operation":"succeed","args":["` + strings.Repeat("x", 5<<20) + `"]}`
	id := 0
	for len(params) > 0 {
		piece := params[:min(len(params), 1<<20)]
		params = params[len(piece):]
		got := c.ask("write", fmt.Sprintf(`{"data":%d,"bytes":%q}`, id, base64.StdEncoding.EncodeToString([]byte(piece))))
		if _, err := fmt.Sscanf(got, `{"data":%d}`, &id); err != nil {
			t.Fatal(got)
		}
	}
	if got := c.ask("invoke", fmt.Sprintf(`{"$data":%d}`, id)); got != fmt.Sprintf("%q", fmt.Sprint(5<<20)) {
		t.Error(got)
	}
	c.ask("release", fmt.Sprintf(`{"data":%d}`, ref.Data.ID))
	if s.data.size != 0 || len(s.data.data) != 0 {
		t.Errorf("%d bytes of data are left", s.data.size)
	}
	s.data.mu.Lock()
	s.data.size = maxData
	s.data.mu.Unlock()
	if got := c.ask("write", `{"bytes":"AA=="}`); !strings.Contains(got, "which is the limit") {
		t.Error(got)
	}
}

// Requests overtake each other, and one can be cancelled.
func TestCancel(t *testing.T) {
	l := &lab{began: make(chan string)}
	c, _, _ := serve(t, t.Context(), Options{}, l)
	c.hello()
	hang := c.begin("invoke", `{"on":{"machine":"web"},"operation":"succeed","args":["hang"]}`)
	<-l.began
	if got := c.ask("invoke", `{"on":{"machine":"web"},"operation":"succeed","args":["x"]}`); got != `"1"` {
		t.Error(got)
	}
	c.send(`{"jsonrpc":"2.0","method":"cancel","params":{"id":999}}`)
	c.send(fmt.Sprintf(`{"jsonrpc":"2.0","method":"cancel","params":{"id":%d}}`, hang))
	if m := c.receive(); *m.ID != hang || m.Error == nil || m.Error.Code != CodeCancelled {
		t.Errorf("got %+v", m)
	}
}

// An operation calls a function of the peer's, whose error is that of the operation.
func TestFunctions(t *testing.T) {
	l := &lab{}
	c, _, _ := serve(t, t.Context(), Options{}, l)
	c.hello()
	const nested = `{"on":{"machine":"web"},"operation":"nested","args":["m",{"$function":5}]}`
	id := c.begin("invoke", nested)
	call := c.receive()
	var p struct {
		Function, Scope int64
		Args            []string
	}
	if err := json.Unmarshal(call.Params, &p); err != nil || call.Method != "call" || p.Function != 5 || p.Args[0] != "argument" {
		t.Fatalf("got %+v, %v", call, err)
	}
	if got := c.ask("invoke", fmt.Sprintf(`{"on":{"machine":"web"},"operation":"succeed","args":["x"],"scope":%d}`, p.Scope)); got != `"1"` {
		t.Error(got)
	}
	if got := c.ask("finish", fmt.Sprintf(`{"scope":%d}`, p.Scope)); !strings.Contains(got, "ends with the call") {
		t.Error(got)
	}
	c.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"result":true}`, *call.ID))
	if m := c.receive(); *m.ID != id || string(m.Result) != "true" {
		t.Errorf("got %+v", m)
	}
	c.begin("invoke", nested)
	call = c.receive()
	c.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"error":{"code":1,"message":"","data":{"thrown":{"class":"ValueError","message":"no","stack":[{"file":"a.py","line":3}]}}}}`, *call.ID))
	if m := c.receive(); m.Error == nil || m.Error.Message != "a.py:3: ValueError: no" {
		t.Errorf("got %+v", m.Error)
	}
}

// A condition that does not hold any more ends the operations in its scope.
func TestWatch(t *testing.T) {
	l := &lab{began: make(chan string, 1)}
	c, _, _ := serve(t, t.Context(), Options{}, l)
	c.hello()
	answer := func(result string) {
		t.Helper()
		call := c.receive()
		if call.Method != "call" {
			t.Fatalf("got %+v", call)
		}
		c.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"result":%s}`, *call.ID, result))
	}
	const watch = `{"function":1,"description":"all is well","interval":0.01}`
	c.begin("watch", watch)
	answer("false")
	if m := c.receive(); m.Error == nil || m.Error.Data.Kind != "condition" {
		t.Errorf("got %+v", m)
	}
	c.begin("watch", watch)
	answer("true")
	var scope struct{ Scope int64 }
	if m := c.receive(); json.Unmarshal(m.Result, &scope) != nil || scope.Scope == 0 {
		t.Fatalf("got %+v", m)
	}
	id := c.begin("invoke", fmt.Sprintf(`{"on":{"machine":"web"},"operation":"succeed","args":["hang"],"scope":%d}`, scope.Scope))
	answer("false")
	if m := c.receive(); *m.ID != id || m.Error == nil || m.Error.Data.Kind != "condition" {
		t.Errorf("got %+v", m)
	}
	if got := c.ask("finish", fmt.Sprintf(`{"scope":%d}`, scope.Scope)); !strings.Contains(got, "all is well") {
		t.Error(got)
	}
}

func TestEvents(t *testing.T) {
	var bus event.Bus
	ctx := event.WithScope(event.WithBus(t.Context(), &bus), event.Scope{File: "a.py", Test: "main"})
	c, _, _ := serve(t, ctx, Options{}, &lab{})
	if got := c.ask("hello", `{"protocol":1,"events":true}`); !strings.HasPrefix(got, "{") {
		t.Fatal(got)
	}
	bus.Publish(event.Scope{File: "another.py"}, event.Log{Text: "not this"})
	event.Publish(ctx, event.Log{Level: "info", Text: "this"})
	if m := c.receive(); m.Method != "event" || !bytes.Contains(m.Params, []byte(`"this"`)) {
		t.Errorf("got %+v", m)
	}
}

// When the run is interrupted, operations end with the reason, and the peer can still say
// how its script has ended.
func TestInterrupt(t *testing.T) {
	l := &lab{began: make(chan string, 1)}
	ours, theirs := net.Pipe()
	s := NewServer(ours, Options{Peer: "Test", Session: session.Over(t.Context(), l)})
	ended := make(chan *End, 1)
	go func() {
		end, err := s.Serve(t.Context())
		if err != nil {
			t.Error(err)
		}
		ended <- end
	}()
	c := &client{t: t, net: theirs, in: bufio.NewReaderSize(theirs, 8<<20)}
	c.hello()
	c.begin("invoke", `{"on":{"machine":"web"},"operation":"succeed","args":["hang"]}`)
	<-l.began
	s.Interrupt(errors.New("the time is over"))
	if m := c.receive(); m.Error == nil || m.Error.Message != "the time is over" {
		t.Errorf("got %+v", m)
	}
	if got := c.ask("end", `{"error":{"class":"RequestedAssertionFailed","message":"the time is over","error":1}}`); got != "null" {
		t.Error(got)
	}
	theirs.Close()
	if end := <-ended; end == nil || end.Error == nil || s.Explain(end.Error).Err.Error() != "the time is over" {
		t.Errorf("got %+v", end)
	}
}

// A peer that is broken is an error with its name, and nothing of what it began is left.
func TestBrokenPeer(t *testing.T) {
	hello := `{"jsonrpc":"2.0","id":1,"method":"hello","params":{"protocol":1}}` + "\n"
	hang := `{"jsonrpc":"2.0","id":%d,"method":"invoke","params":{"on":{"machine":"web"},"operation":"succeed","args":["hang"]}}` + "\n"
	for name, tt := range map[string]struct {
		send, want string
		keep       bool // does not close the connection
	}{
		"nothing":            {"", "", false},
		"garbage":            {"\x16\x03\x01\x02\n", `Test: what it sent cannot be understood: not a message of the protocol: not JSON, or a field of another type: "\x16\x03\x01\x02"`, true},
		"not UTF-8":          {"\"\xff\"\n", "not UTF-8", true},
		"another version":    {`{"id":1,"method":"hello"}` + "\n", `"jsonrpc" is not "2.0"`, true},
		"a string as id":     {`{"jsonrpc":"2.0","id":"x","method":"hello"}` + "\n", "a field of another type", true},
		"neither":            {`{"jsonrpc":"2.0"}` + "\n", "neither a request nor a reply", true},
		"both":               {`{"jsonrpc":"2.0","id":1,"method":"x","result":1}` + "\n", "both a request and a reply", true},
		"deep":               {strings.Repeat("[", 100_000) + "\n", "not JSON", true},
		"in the middle":      {`{"jsonrpc":`, "in the middle of a message (11 bytes)", false},
		"too long":           {strings.Repeat(" ", MaxMessage+1<<20), "longer than", true},
		"twice the same id":  {hello + fmt.Sprintf(hang, 2) + fmt.Sprintf(hang, 2), "two requests of the same id 2", true},
		"it dies with work":  {hello + fmt.Sprintf(hang, 2) + fmt.Sprintf(hang, 3), "", false},
		"no hello":           {"", "has not said hello within", true},
		"work without hello": {fmt.Sprintf(hang, 1), "has not said hello within", true},
		"a reply to nothing": {hello + `{"jsonrpc":"2.0","id":9,"result":1}` + "\n", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			l := &lab{began: make(chan string, 16)}
			o := Options{Patience: time.Hour}
			if strings.Contains(tt.want, "hello") {
				o.Patience = 20 * time.Millisecond
			}
			c, _, done := serve(t, t.Context(), o, l)
			go io.Copy(io.Discard, c.in)
			io.WriteString(c.net, tt.send) // the server may have enough before the end
			if !tt.keep {
				c.net.Close()
			}
			err := <-done
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var peer *PeerError
			if !errors.As(err, &peer) || !strings.Contains(err.Error(), tt.want) || attest.StatusOf(err) != attest.Infra {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A peer that does not read does not keep the end of the run from coming.
func TestPeerThatDoesNotRead(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	c, _, done := serve(t, ctx, Options{}, &lab{})
	for id := range 3 {
		c.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"hello","params":{"protocol":1}}`, id+1))
	}
	over := errors.New("over")
	cancel(over)
	if err := <-done; err != over {
		t.Error(err)
	}
}

func TestAnotherVersion(t *testing.T) {
	c, _, _ := serve(t, t.Context(), Options{}, &lab{})
	if got := c.ask("hello", `{"protocol":2,"client":"New"}`); !strings.Contains(got, "New speaks version 2 of the protocol, and this attest version 1") {
		t.Error(got)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"jsonrpc":"2.0","id":1,"method":"hello","params":{"protocol":1}}`))
	f.Add([]byte(`{"jsonrpc":"2.0","id":1,"result":{"$bytes":"AA==","a":[1,2.5,{"$machine":"a"},{"$object":{"id":1}}]}}`))
	f.Add([]byte(`{"jsonrpc":"2.0","error":{"code":1,"data":{"thrown":{"stack":[{"line":1}]}}}}`))
	f.Add([]byte(`{"jsonrpc":"2.0","id":1,"method":"x","params":{"$dict":{"$image":{}}}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := decodeMessage(line)
		if err != nil {
			return
		}
		for _, text := range []json.RawMessage{m.Params, m.Result} {
			var v any
			if unmarshal(text, &v) != nil {
				continue
			}
			d := decoder{function: func(int64) operation.Func { return nil }}
			if v, err := d.decode(v); err == nil {
				operation.Find(operation.Machine, "succeed").Bind([]any{v}, []operation.Named{{Name: "stdin", Value: v}})
			}
		}
	})
}
