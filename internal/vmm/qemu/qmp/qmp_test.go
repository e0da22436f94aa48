package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2"}, "capabilities": ["oob"]}}`

// pair is a connection as QEMU inherits it.
func pair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		conns[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { conns[0].Close(); conns[1].Close() })
	return conns[0], conns[1]
}

// qemu is the other side: it accepts what QEMU accepts, and nothing else.
type qemu struct {
	t     *testing.T
	conn  net.Conn
	lines *bufio.Scanner
}

// a command as QEMU reads it: further keys are errors.
type received struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        json.RawMessage `json:"id"`
}

// connect makes a client whose server has done the handshake.
func connect(t *testing.T, onEvent func(Event)) (*Client, *qemu) {
	t.Helper()
	conn, theirs := pair(t)
	q := &qemu{t, theirs, bufio.NewScanner(theirs)}
	handshake := make(chan struct{})
	go func() {
		defer close(handshake)
		q.say("%s\r\n", greeting)
		if c := q.next(); c.Execute != "qmp_capabilities" {
			t.Errorf("the first command is %q", c.Execute)
		} else {
			q.say(`{"return": {}, "id": %s}`+"\r\n", c.ID)
		}
	}()
	c, err := Connect(t.Context(), conn, onEvent)
	<-handshake
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, q
}

func (q *qemu) say(format string, args ...any) {
	if _, err := fmt.Fprintf(q.conn, format, args...); err != nil {
		q.t.Errorf("server: %v", err)
	}
}

func (q *qemu) next() received {
	var c received
	if !q.lines.Scan() {
		q.t.Errorf("server: no command: %v", q.lines.Err())
		return c
	}
	d := json.NewDecoder(strings.NewReader(q.lines.Text()))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil || c.Execute == "" || c.ID == nil {
		q.t.Errorf("server: %q is not a command: %v", q.lines.Text(), err)
	}
	if c.Arguments != nil && c.Arguments[0] != '{' {
		q.t.Errorf("server: arguments %s are not an object", c.Arguments)
	}
	return c
}

// serve answers commands in the background until the test is over.
func (q *qemu) serve(commands ...func(received)) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for _, f := range commands {
			f(q.next())
		}
	})
	q.t.Cleanup(wg.Wait)
}

func TestVersion(t *testing.T) {
	c, _ := connect(t, nil)
	v := c.Version()
	if v != (Version{7, 2, 22, "Debian 1:7.2"}) || v.String() != "7.2.22" {
		t.Errorf("got %+v, %v", v, v)
	}
	for at, want := range map[[2]int]bool{{7, 2}: true, {7, 1}: true, {6, 9}: true, {7, 3}: false, {8, 0}: false} {
		if v.AtLeast(at[0], at[1]) != want {
			t.Errorf("at least %v: %v", at, !want)
		}
	}
}

func TestDo(t *testing.T) {
	c, q := connect(t, nil)
	q.serve(
		func(r received) {
			if r.Arguments != nil {
				t.Errorf("arguments %s", r.Arguments)
			}
			q.say(`{"return": {"status": "running"}, "id": %s}`+"\r\n", r.ID)
		},
		func(r received) {
			if r.Execute != "set_link" || string(r.Arguments) != `{"name":"net1","up":false}` {
				t.Errorf("got %s %s", r.Execute, r.Arguments)
			}
			q.say(`{"error": {"class": "DeviceNotFound", "desc": "Device 'net1' not found"}, "id": %s}`+"\r\n", r.ID)
		},
		func(r received) { q.say(`{"return": "text", "id": %s}`+"\r\n", r.ID) },
		func(r received) { q.say(`{"id": %s}`+"\r\n", r.ID) },
	)
	var status struct{ Status string }
	if err := c.Do(t.Context(), "query-status", nil, &status); err != nil || status.Status != "running" {
		t.Errorf("got %v, %v", status, err)
	}
	err := c.Do(t.Context(), "set_link", map[string]any{"name": "net1", "up": false}, nil)
	var refused *Error
	if !errors.As(err, &refused) || *refused != (Error{"set_link", "DeviceNotFound", "Device 'net1' not found"}) {
		t.Errorf("got %v", err)
	}
	if err := c.Do(t.Context(), "query-status", nil, &status); err == nil || !strings.Contains(err.Error(), "query-status") {
		t.Errorf("a result of the wrong type: %v", err)
	}
	if err := c.Do(t.Context(), "stop", nil, nil); err == nil || !strings.Contains(err.Error(), "neither") {
		t.Errorf("a reply without a result: %v", err)
	}
	if err := c.Do(t.Context(), "stop", func() {}, nil); err == nil {
		t.Error("arguments that are no JSON")
	}
}

func TestRepliesInAnyOrder(t *testing.T) {
	c, q := connect(t, nil)
	var all []received
	collect := func(r received) { all = append(all, r) }
	q.serve(collect, collect, func(r received) {
		q.say(`{"return": "%s", "id": %s}`+"\n", r.Execute, r.ID)
		q.say(`{"return": {}, "id": 4711}` + "\n")                                          // to nobody
		q.say(`{"error": {"class": "GenericError", "desc": "JSON parse error"}}` + "\n")    // without an id
		q.say(`{"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 2}}` + "\n") // in between
		for _, r := range all {
			q.say(`{"return": "%s", "id": %s}`+"\n", r.Execute, r.ID)
		}
	})
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b", "c"} {
		wg.Go(func() {
			var got string
			if err := c.Do(t.Context(), name, nil, &got); err != nil || got != name {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		})
	}
	wg.Wait()
}

func TestEvents(t *testing.T) {
	events := make(chan Event, 10)
	c, q := connect(t, func(e Event) { events <- e })
	later := make(chan Event, 10)
	cancel := c.Subscribe(func(e Event) { later <- e })
	q.say(`{"timestamp": {"seconds": 100, "microseconds": 5}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}` + "\r\n")
	want := time.Unix(100, 5000)
	for _, ch := range []chan Event{events, later} {
		e := <-ch
		if e.Name != "SHUTDOWN" || string(e.Data) != `{"guest": true, "reason": "guest-reset"}` || !e.Time.Equal(want) {
			t.Errorf("got %s %s %v", e.Name, e.Data, e.Time)
		}
	}
	cancel()
	q.say(`{"event": "STOP", "timestamp": {"seconds": 101, "microseconds": 0}}` + "\r\n")
	if e := <-events; e.Name != "STOP" || e.Data != nil {
		t.Errorf("got %+v", e)
	}
	if len(later) != 0 {
		t.Error("an event after cancel")
	}
}

func TestEventsBeforeTheHandshakeIsOver(t *testing.T) {
	conn, theirs := pair(t)
	q := &qemu{t, theirs, bufio.NewScanner(theirs)}
	go func() {
		q.say(`%s`+"\r\n"+`{"event": "EARLY", "timestamp": {"seconds": 1, "microseconds": 0}}`+"\r\n", greeting)
		q.say(`{"return": {}, "id": %s}`+"\r\n", q.next().ID)
	}()
	var names []string
	c, err := Connect(t.Context(), conn, func(e Event) { names = append(names, e.Name) })
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if len(names) != 1 || names[0] != "EARLY" {
		t.Errorf("got %v", names)
	}
}

func TestConnectFails(t *testing.T) {
	for _, tt := range []struct{ name, says, want string }{
		{"end", "", "EOF"},
		{"garbage", "SSH-2.0-OpenSSH_9.2\r\n", "not a message"},
		{"half a greeting", greeting[:40], "not a message"},
		{"endless", strings.Repeat("x", maxMessage+1), "too long"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn, theirs := pair(t)
			var wg sync.WaitGroup
			wg.Go(func() {
				io.WriteString(theirs, tt.says) // fails when the client has enough of it
				theirs.(*net.UnixConn).CloseWrite()
				io.Copy(io.Discard, theirs)
			})
			_, err := Connect(t.Context(), conn, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v", err)
			}
			wg.Wait() // the client has closed its side
		})
	}
}

func TestRefusedHandshake(t *testing.T) {
	conn, theirs := pair(t)
	q := &qemu{t, theirs, bufio.NewScanner(theirs)}
	q.serve(func(r received) {
		q.say(`{"error": {"class": "CommandNotFound", "desc": "no"}, "id": %s}`+"\r\n", r.ID)
	})
	q.say("%s\r\n", greeting)
	_, err := Connect(t.Context(), conn, nil)
	if refused := (*Error)(nil); !errors.As(err, &refused) || refused.Class != "CommandNotFound" {
		t.Errorf("got %v", err)
	}
}

func TestConnectToSilence(t *testing.T) {
	conn, theirs := pair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Connect(ctx, conn, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if _, err := theirs.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection is not closed: %v", err)
	}
}

func TestDeadlineLeavesTheConnectionUsable(t *testing.T) {
	c, q := connect(t, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	q.serve(
		func(late received) {
			cancel(reason)
			r := q.next()
			q.say(`{"return": "late", "id": %s}`+"\n"+`{"return": "in time", "id": %s}`+"\n", late.ID, r.ID)
		},
	)
	if err := c.Do(ctx, "stop", nil, nil); !errors.Is(err, reason) {
		t.Errorf("got %v", err)
	}
	if err := c.Do(ctx, "stop", nil, nil); !errors.Is(err, reason) {
		t.Errorf("with a context that is over: %v", err)
	}
	var got string
	if err := c.Do(t.Context(), "cont", nil, &got); err != nil || got != "in time" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestServerThatDoesNotRead(t *testing.T) {
	c, q := connect(t, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	read := make(chan struct{})
	go func() {
		defer close(read)
		q.conn.Read(make([]byte, 1))
		cancel(reason)
	}()
	long := map[string]string{"x": strings.Repeat("x", 4<<20)}
	if err := c.Do(ctx, "stop", long, nil); !errors.Is(err, reason) {
		t.Errorf("got %v", err)
	}
	<-read
	<-c.Done() // half a command was sent: the connection is of no more use
	if err := c.Do(t.Context(), "cont", nil, nil); !errors.Is(err, reason) {
		t.Errorf("afterwards: %v", err)
	}
}

func TestLossEndsEverythingThatWaits(t *testing.T) {
	for name, end := range map[string]func(*Client, *qemu){
		"lost":    func(_ *Client, q *qemu) { q.conn.Close() },
		"garbage": func(_ *Client, q *qemu) { q.say("}\r\n") },
		"closed":  func(c *Client, _ *qemu) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			c, q := connect(t, nil)
			errs := make(chan error)
			for range 10 {
				go func() { errs <- c.Do(t.Context(), "stop", nil, nil) }()
			}
			for range 10 {
				q.next()
			}
			end(c, q)
			for range 10 {
				err := <-errs
				if err == nil || errors.Is(err, ErrClosed) != (name == "closed") {
					t.Errorf("got %v", err)
				}
			}
			<-c.Done()
			if c.Err() == nil {
				t.Error("no reason")
			}
			if err := c.Do(t.Context(), "cont", nil, nil); err == nil {
				t.Error("it goes on")
			}
		})
	}
}

func TestLastReplyBeforeTheEnd(t *testing.T) {
	c, q := connect(t, nil)
	q.serve(func(r received) {
		q.say(`{"return": {}, "id": %s}`+"\r\n", r.ID)
		q.conn.Close()
	})
	if err := c.Do(t.Context(), "quit", nil, nil); err != nil {
		t.Errorf("got %v", err)
	}
	<-c.Done()
}

// FuzzRead gives the client what a QEMU that a guest has taken over could send.
func FuzzRead(f *testing.F) {
	for _, seed := range []string{
		greeting + "\n" + `{"return": {}, "id": 1}` + "\n" + `{"return": {"status": "running"}, "id": 2}` + "\n",
		greeting + "\n" + `{"return": {}, "id": 1}` + "\n" + `{"error": {"class": "C", "desc": "d"}, "id": 2}` + "\n",
		greeting + "\n" + greeting + "\n",
		greeting + "\n" + `{"event": "STOP", "timestamp": {"seconds": -1, "microseconds": 1e9}}` + "\n",
		`{"QMP": {"version": {"qemu": {"major": 99999999999999999999}}}}` + "\n",
		`{"id": -1}` + "\n" + `[]` + "\n" + `null` + "\n" + "\n",
		greeting + "\n" + `{"return": null, "id": 1}` + "\n" + `{"id": 2}` + "\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		conn, theirs := pair(t)
		var wg sync.WaitGroup
		wg.Go(func() {
			theirs.Write(data)
			theirs.(*net.UnixConn).CloseWrite()
			io.Copy(io.Discard, theirs)
		})
		c, err := Connect(t.Context(), conn, func(Event) {})
		if err == nil {
			var status struct{ Status string }
			c.Do(t.Context(), "query-status", nil, &status)
			<-c.Done()
			c.Close()
		}
		wg.Wait()
	})
}
