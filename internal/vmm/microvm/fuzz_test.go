package microvm

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// answering is a unix socket on which everybody gets the same bytes, and then the end.
func answering(t *testing.T, data []byte) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "mv")
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				conn.Write(data)
				conn.(*net.UnixConn).CloseWrite()
				io.Copy(io.Discard, conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
		os.RemoveAll(dir)
	})
	return path
}

// FuzzAnswer: whatever a VMM that a guest has taken over answers to a request, the request ends,
// with an error that names it.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{\"state\":\"Running\"}", "HTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 400 Bad Request\r\nContent-Length: 25\r\n\r\n{\"fault_message\":\"\x1b[2J\"}", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 307 Elsewhere\r\nLocation: http://other/\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
		"", "garbage",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		a := NewAPI(answering(t, data), "", func(b []byte) string { return string(b) })
		defer a.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var state struct{ State string }
		err := a.Do(ctx, "GET", "/vm", nil, &state)
		if ctx.Err() != nil {
			t.Fatalf("it waits for more than a minute: %v", err)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "GET /vm: ") {
			t.Errorf("the error does not name the request: %v", err)
		}
		if refused := (*RefusedError)(nil); errors.As(err, &refused) && (refused.Status < 300 || refused.Status > 999) {
			t.Errorf("it is refused with the status %d", refused.Status)
		}
	})
}

// FuzzConnect: only a VMM that says OK has connected to the guest, and what comes behind the line is
// the guest's.
func FuzzConnect(f *testing.F) {
	for _, seed := range []string{"OK 1073741824\nhello", "OK \n", "OK", "", "\n", "NO\n", strings.Repeat("OK ", 100), "\x1b[2J\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		v := &Vsock{Path: answering(t, data), Port: AgentPort}
		conn, err := v.try(t.Context())
		line, rest, whole := strings.Cut(string(data), "\n")
		if !whole || len(line) >= maxLine || !strings.HasPrefix(line, "OK ") {
			if err == nil && len(line) < maxLine {
				t.Errorf("connected by %q", data)
			}
		} else if err != nil {
			t.Errorf("%q: %v", data, err)
		}
		if err != nil {
			return
		}
		defer conn.Close()
		if got, err := io.ReadAll(conn); whole && len(line) < maxLine && (err != nil || string(got) != rest) {
			t.Errorf("behind %q came %q, %v", line, got, err)
		}
	})
}
