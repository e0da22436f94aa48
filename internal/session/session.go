package session

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"sync"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// Options are what a session begins with. The zero value is ready to use.
type Options struct {
	OutDir string             // for what is copied out of machines; made if missing. Empty: the current directory
	Host   attest.HostConfig  // how the lab uses this host
	Script script.Options     // of the language
	Record func(event.Record) // is called for each event; see event.Bus.Subscribe. Nil: nobody listens

	open func(context.Context, attest.LabConfig) (Lab, error) // in place of a host, for tests
}

// A Lab is what a session needs of one.
type Lab interface {
	operation.Runner
	// Has reports whether there is a machine of this name.
	Has(machine string) bool
	// Create adds a machine.
	Create(context.Context, attest.MachineConfig) error
}

// A Session is one conversation. Begin makes one; Close ends it.
type Session struct {
	options Options
	ctx     context.Context // of the lab: it outlives statements
	bus     *event.Bus
	file    string

	mu       sync.Mutex
	language script.Session // nil before Load
	host     *attest.Host   // nil until it is needed
	lab      Lab            // nil until it is needed
	objects  objects
}

// Begin begins a session. Its lab ends with ctx at the latest.
func Begin(ctx context.Context, o Options) *Session {
	s := &Session{options: o, bus: &event.Bus{}}
	if o.Record != nil {
		s.bus.Subscribe(o.Record)
	}
	s.ctx = event.WithBus(ctx, s.bus)
	return s
}

// Over is a session on a lab that somebody else has made and closes. Its events go to
// the bus of ctx. It has no language.
func Over(ctx context.Context, lab operation.Runner) *Session {
	return &Session{ctx: ctx, bus: event.BusOf(ctx), lab: borrowed{lab}}
}

// borrowed is a lab that the session neither changes nor closes.
type borrowed struct{ operation.Runner }

func (borrowed) Has(string) bool                                    { return true }
func (borrowed) Create(context.Context, attest.MachineConfig) error { return nil }
func (borrowed) Close() error                                       { return nil }
func (b borrowed) runner() operation.Runner                         { return b.Runner }

// Fork begins a session with a copy of the lab. Closing it closes the copy.
func (s *Session) Fork(ctx context.Context) (*Session, error) {
	lab, err := s.ready(ctx)
	if err != nil {
		return nil, err
	}
	state, ok := snapshotter(lab)
	if !ok {
		return nil, &attest.UnsupportedError{Operation: "fork", Reason: "this lab cannot be saved"}
	}
	ctx = event.WithBus(ctx, s.bus)
	snapshot, err := state.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	fork, err := snapshot.Fork(ctx)
	if err != nil {
		return nil, err
	}
	return &Session{ctx: ctx, bus: s.bus, lab: forked{borrowed{fork}}}, nil
}

// snapshotter is what saves a lab.
func snapshotter(lab Lab) (operation.Snapshotter, bool) {
	var runner operation.Runner = lab
	for {
		if s, ok := runner.(operation.Snapshotter); ok {
			return s, true
		}
		inner, ok := runner.(interface{ runner() operation.Runner })
		if !ok {
			return nil, false
		}
		runner = inner.runner()
	}
}

// forked is a lab that the session has made of another one, and closes.
type forked struct{ borrowed }

func (f forked) Close() error { return f.Runner.Close() }

// Load gives the session a language to be typed, with the machines and functions
// of a file unless path is empty, and further machines. After an error it can be
// called again. Its errors are those of script.NewSession.
func (s *Session) Load(path string, machines []attest.MachineConfig) error {
	o := s.options.Script
	o.Machines, o.Backend = machines, s.options.Host.Backend
	language, err := script.NewSession(s.ctx, path, o, runner{s})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.language, s.file = language, path
	return nil
}

// OpenSaved opens the lab that was saved in a directory; file is the test file
// that it belongs to, if it is known.
func (s *Session) OpenSaved(dir, file string) (*attest.Lab, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.file = file
	if err := s.openHost(); err != nil {
		return nil, err
	}
	lab, err := s.host.OpenLab(s.ctx, dir, s.config())
	if err != nil {
		return nil, err
	}
	s.lab = realLab{operation.Of(lab), lab}
	return lab, nil
}

// openHost makes the host, and the directory for what is copied.
func (s *Session) openHost() (err error) {
	if s.options.OutDir != "" {
		if err := os.MkdirAll(s.options.OutDir, 0o755); err != nil {
			return &attest.ConfigError{Subject: "output directory", Reason: err.Error()}
		}
	}
	if s.host == nil {
		s.host, err = attest.OpenHost(s.ctx, s.options.Host)
	}
	return err
}

func (s *Session) config() attest.LabConfig {
	return attest.LabConfig{OutDir: s.options.OutDir, SourceDir: filepath.Dir(cmp.Or(s.file, "x"))}
}

// realLab is the Lab of this host.
type realLab struct {
	operation.Runner
	lab *attest.Lab
}

func (l realLab) runner() operation.Runner { return l.Runner }

func (l realLab) Has(machine string) bool { return l.lab.Machine(machine) != nil }

func (l realLab) Create(ctx context.Context, c attest.MachineConfig) error {
	_, err := l.lab.CreateMachine(ctx, c)
	return err
}

func (s *Session) newLab(c attest.LabConfig) (Lab, error) {
	if s.options.open != nil {
		return s.options.open(s.ctx, c)
	}
	if err := s.openHost(); err != nil {
		return nil, err
	}
	lab, err := s.host.NewLab(s.ctx, c)
	if err != nil {
		return nil, err
	}
	return realLab{operation.Of(lab), lab}, nil
}

// ready is the lab with all machines that are declared. It is made when it is
// needed; machines that are declared later are added to it.
func (s *Session) ready(ctx context.Context) (Lab, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var declared []attest.MachineConfig
	var networks map[int]attest.NetworkConfig
	if s.language != nil {
		networks = s.language.Networks()
		var err error
		if declared, err = s.language.Machines(); err != nil {
			return nil, err
		}
	}
	if s.lab == nil {
		c := s.config()
		c.Name, c.Machines, c.Networks = "repl", declared, networks
		lab, err := s.newLab(c)
		if err != nil {
			return nil, err
		}
		s.lab = lab
		return lab, nil
	}
	for _, c := range declared {
		if s.lab.Has(c.Name) {
			continue
		}
		if err := s.lab.Create(ctx, c); err != nil {
			return nil, err
		}
	}
	return s.lab, nil
}

// runner is the session's lab for its language.
type runner struct{ *Session }

func (r runner) Invoke(ctx context.Context, object any, o *operation.Operation, args operation.Args) (any, error) {
	lab, err := r.ready(ctx)
	if err != nil {
		return nil, err
	}
	return lab.Invoke(ctx, object, o, args)
}

// Close does nothing: the lab is the session's.
func (runner) Close() error { return nil }

// Machines are those declared so far.
func (s *Session) Machines() []attest.MachineConfig {
	declared, _ := s.language.Machines() // what makes no sense is an error of the operation that needs it
	return declared
}

// Read reads one statement; see script.Session.
func (s *Session) Read(line func(first bool) (string, error)) (script.Statement, error) {
	return s.language.Read(line)
}

// Run runs a statement; see script.Session. Its events go to the session's bus.
func (s *Session) Run(ctx context.Context, statement script.Statement) (string, error) {
	return s.language.Run(event.WithBus(ctx, s.bus), statement)
}

// Complete says how a statement can go on; see script.Session.
func (s *Session) Complete(text string) (head string, words []string) {
	return s.language.Complete(text)
}

// Close ends the lab, and all that the session opened.
func (s *Session) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.lab != nil {
		err = s.lab.Close()
	}
	if s.host != nil {
		if hostErr := s.host.Close(); err == nil {
			err = hostErr
		}
	}
	s.lab, s.host = nil, nil
	return err
}
