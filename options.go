package attest

import (
	"bytes"
	"io"
	"time"
)

// An Option changes one operation. An option that an operation has no use for
// is ignored by it.
type Option func(*options)

type options struct {
	timeout    time.Duration
	hasTimeout bool
	user       string
	address    string
	stdin      func() io.Reader // nil: nothing
	stdout     io.Writer
	stderr     io.Writer
	env        map[string]string
	dir        string
	detach     bool
	delay      time.Duration
	hasDelay   bool
	unlogged   bool
	datagram   bool
	lines      int
	since      string
}

func collect(opts []Option) options {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// Timeout limits an operation to d of wall-clock time. For a command the guest
// ends it then (SIGTERM, and SIGKILL a second later), with exit code 124.
func Timeout(d time.Duration) Option {
	return func(o *options) { o.timeout, o.hasTimeout = d, true }
}

// User runs a command as this user, or asks this user's service manager.
func User(name string) Option { return func(o *options) { o.user = name } }

// Address is where to look for a port; "localhost" unless given.
func Address(addr string) Option { return func(o *options) { o.address = addr } }

// Stdin is what a command reads; nothing unless given. Of several commands the
// first takes what it reads.
func Stdin(r io.Reader) Option {
	return func(o *options) { o.stdin = func() io.Reader { return r } }
}

// Input is what each of several commands reads from its beginning to its end,
// and each attempt of a command that is repeated.
func Input(data []byte) Option {
	return func(o *options) { o.stdin = func() io.Reader { return bytes.NewReader(data) } }
}

// Stdout receives a command's standard output as it arrives, instead of the Result.
func Stdout(w io.Writer) Option { return func(o *options) { o.stdout = w } }

// Stderr receives a command's standard error as it arrives, instead of the Result.
func Stderr(w io.Writer) Option { return func(o *options) { o.stderr = w } }

// Env adds a variable to a command's environment.
func Env(name, value string) Option {
	return func(o *options) {
		if o.env == nil {
			o.env = map[string]string{}
		}
		o.env[name] = value
	}
}

// Dir is the directory in which a command runs; /tmp unless given.
func Dir(path string) Option { return func(o *options) { o.dir = path } }

// Detach returns as soon as the command runs, without its output or exit code.
func Detach() Option { return func(o *options) { o.detach = true } }

// Delay is how long a key is held down, and how long after it the next may follow.
func Delay(d time.Duration) Option {
	return func(o *options) { o.delay, o.hasDelay = d, true }
}

// Unlogged keeps a key out of the log of the run and of reports.
func Unlogged() Option { return func(o *options) { o.unlogged = true } }

// Datagram makes a wait for a unix socket one for a datagram socket.
func Datagram() Option { return func(o *options) { o.datagram = true } }

// Lines limits a journal to its last n lines.
func Lines(n int) Option { return func(o *options) { o.lines = n } }

// Since limits a journal to what is newer, as journalctl reads a time: "-5min",
// "today", "2026-01-02 12:00".
func Since(time string) Option { return func(o *options) { o.since = time } }
