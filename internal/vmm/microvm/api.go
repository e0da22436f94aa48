package microvm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"
)

// An API is the client of a VMM's HTTP server on a unix socket.
type API struct {
	path   string
	base   string // of all paths
	reason func(body []byte) string
	client http.Client
}

// NewAPI returns a client of the server on the socket path; base comes in front of all
// paths of requests, and reason reads why a request was refused from the answer's body.
func NewAPI(path, base string, reason func(body []byte) string) *API {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	// A VMM takes ten connections at most, and one request after the other.
	return &API{path: path, base: base, reason: reason, client: http.Client{Transport: &http.Transport{DialContext: dial, MaxConnsPerHost: 1}}}
}

// Close closes idle connections.
func (a *API) Close() { a.client.CloseIdleConnections() }

// maxAnswer bounds what is read of an answer.
const maxAnswer = 1 << 20

// A RefusedError is a request that the VMM has refused.
type RefusedError struct {
	Request string // "PUT /drives/d0"
	Status  int    // of HTTP
	Reason  string // what the VMM says
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s: %s (status %d)", e.Request, e.Reason, e.Status)
}

// Do makes a request. body is sent as JSON, nil for none; the answer is decoded into
// result unless that is nil. What the VMM refuses is a *RefusedError; every other error is
// one of the connection, which ends with the VMM.
func (a *API) Do(ctx context.Context, method, path string, body, result any) error {
	request := method + " " + path
	var content io.Reader = http.NoBody
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("%s: %w", request, err)
		}
		content = bytes.NewReader(b) // with a length: the servers take no chunks
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://localhost"+a.base+path, content)
	if err != nil {
		return fmt.Errorf("%s: %w", request, err)
	}
	r.Header.Set("Accept", "application/json")
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	answer, err := a.client.Do(r)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("%s: %w", request, err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil && answer.StatusCode < 300 {
		return fmt.Errorf("%s: read the answer: %w", request, err)
	}
	if answer.StatusCode >= 300 {
		return &RefusedError{Request: request, Status: answer.StatusCode, Reason: a.reason(b)}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(b, result); err != nil {
		return fmt.Errorf("%s: the answer %.200q makes no sense: %w", request, b, err)
	}
	return nil
}

// Unanswered marks an error of a request that lets a guest run: without an answer, the guest
// has possibly run.
func Unanswered(err error) error {
	if refused := (*RefusedError)(nil); err == nil || errors.As(err, &refused) {
		return err
	}
	return &unansweredError{err}
}

type unansweredError struct{ error }

func (e *unansweredError) Unwrap() error { return e.error }

// Pauses between two looks at a socket that is not there yet.
const (
	minPause = time.Millisecond
	maxPause = 50 * time.Millisecond
)

// ErrGone is the end of a VMM that was waited for.
var ErrGone = errors.New("the VMM has ended")

// Await blocks until the server accepts connections, the VMM is gone (ErrGone), or ctx
// ends: the socket appears some time after the start, and before the server listens on it.
func (a *API) Await(ctx context.Context, gone <-chan struct{}) error {
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", a.path)
		if err == nil {
			return conn.Close()
		}
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return fmt.Errorf("its API socket: %w", err)
		}
		select {
		case <-time.After(pause):
		case <-gone:
			return ErrGone
		case <-ctx.Done():
			return fmt.Errorf("its API socket did not appear: %w", context.Cause(ctx))
		}
	}
}
