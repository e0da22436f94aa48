package mock

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/agent"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/wire"
)

// local is a guest in this process: the agent, and of the system around it
// what the agent was told.
type local struct {
	machine *Machine
	port    *vmm.Channel // the guest's end of the stream to the agent

	mu       sync.Mutex
	state    state
	restored bool // it goes on in the next boot, instead of booting
	booted   time.Time
}

// state is what a system is, but for its files and processes.
type state struct {
	Nonce    string // in the memory, too
	Instance string // of the agent
	BootID   string
	Identity wire.Identity
	Ahead    time.Duration     // its clock before the host's
	Used     []int             `json:",omitempty"` // how often each answer was given
	Units    map[string]string `json:",omitempty"` // by answers
}

var _ agent.Stage = (*local)(nil)

func newLocal(m *Machine, port *os.File) (*local, error) {
	defer port.Close() // FileConn has a duplicate
	conn, err := net.FileConn(port)
	if err != nil {
		return nil, err
	}
	return &local{machine: m, port: vmm.NewChannel(conn, m.done)}, nil
}

func (s *local) Close() error { return s.port.Close() }
func (s *local) close() error { return s.port.Close() }

func (s *local) run(ctx context.Context, m *Machine) { s.serve(ctx, m, s) }

// serve is one boot with an agent on a stage.
func (s *local) serve(ctx context.Context, m *Machine, stage agent.Stage) {
	s.mu.Lock()
	dead := m.faults.Silent || s.restored && m.faults.Dead
	if !s.restored {
		s.state.Nonce, s.state.Instance, s.state.BootID = rand.Text(), rand.Text(), rand.Text()
		s.state.Identity = wire.Identity{}
		m.Say("mock: " + m.config.Name + " boots\n")
	}
	s.restored, s.booted = false, time.Now()
	s.mu.Unlock()
	if dead {
		<-ctx.Done()
		return
	}
	conn, err := s.port.Dial(ctx)
	if err != nil {
		return
	}
	server := agent.Server{Stage: stage}
	defer server.Close()
	server.Serve(ctx, &gated{conn, ctx, m})
}

// gated is the agent's stream: nothing comes through while the machine stands
// still or its guest hangs.
type gated struct {
	net.Conn
	ctx     context.Context
	machine *Machine
}

func (g *gated) pass() error {
	if err := g.machine.still.pass(g.ctx); err != nil {
		return err
	}
	return g.machine.stuck.pass(g.ctx)
}

func (g *gated) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	if passErr := g.pass(); passErr != nil {
		return 0, passErr
	}
	return n, err
}

func (g *gated) Write(p []byte) (int, error) {
	if err := g.pass(); err != nil {
		return 0, err
	}
	return g.Conn.Write(p)
}

// kernel is the release that machines in this process claim.
const kernel = "mock"

// Info is who answers.
func (s *local) Info(i *wire.Info) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i.Instance, i.BootID, i.Kernel = s.state.Instance, s.state.BootID, kernel
	i.Hostname, i.Uptime = s.state.Identity.Hostname, time.Since(s.booted)
}

// Operate keeps from the host what is the system's.
func (s *local) Operate(stream *wire.Stream, r wire.Request, next func(wire.Request) (any, error)) (any, error) {
	if s.machine.operating != nil {
		s.machine.operating(stream.Context(), s.machine, r.Op)
		if err := stream.Context().Err(); err != nil {
			return nil, err
		}
	}
	if err := pause(stream.Context(), time.Duration(s.machine.faults.Delay)); err != nil {
		return nil, err
	}
	switch r.Op {
	case wire.OpIdentity:
		return decode(r, func(q wire.Identity) (any, error) { s.settle(q); return nil, nil })
	case wire.OpClock:
		return decode(r, func(q wire.ClockRequest) (any, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.state.Ahead += q.Step
			return wire.ClockResult{Time: time.Now().Add(s.state.Ahead)}, nil
		})
	case wire.OpSettle:
		return nil, nil
	case wire.OpPicture: // not what the host shows
		return decode(r, func(q wire.PictureRequest) (any, error) { return s.machine.sendPicture(q, stream.Writer(wire.Stdout)) })
	case wire.OpSuspend: // not the host
		s.machine.Suspend(true)
		return nil, nil
	case wire.OpPower:
		return decode(r, func(q wire.PowerRequest) (any, error) { s.power(stream.Context(), q); return nil, nil })
	}
	return next(r)
}

func decode[Q any](r wire.Request, fn func(Q) (any, error)) (any, error) {
	var q Q
	if err := json.Unmarshal(r.Args, &q); err != nil {
		return nil, &wire.Error{Kind: wire.KindInvalid, Message: r.Op + ": " + err.Error()}
	}
	return fn(q)
}

// pause is a sleep that ends with ctx.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// settle makes the system somebody; what an identity leaves out stays.
func (s *local) settle(id wire.Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.state.Identity
	if id.Hostname == "" {
		id.Hostname = was.Hostname
	}
	if id.MachineID == "" {
		id.MachineID = was.MachineID
	}
	if len(id.Hosts) == 0 {
		id.Hosts = was.Hosts
	}
	if len(id.Interfaces) == 0 {
		id.Interfaces = was.Interfaces
	}
	if len(id.Nameservers) == 0 {
		id.Nameservers = was.Nameservers
	}
	if !id.Time.IsZero() {
		s.state.Ahead = time.Until(id.Time)
	}
	id.Entropy, id.Time = nil, time.Time{}
	s.state.Identity = id
}

// power ends the boot as soon as the operation has its answer.
func (s *local) power(answered context.Context, q wire.PowerRequest) {
	reason, detail := vmm.PoweredOff, ""
	switch {
	case q.Panic:
		reason, detail = vmm.Panicked, "sysrq triggered crash"
	case q.Reboot:
		reason = vmm.Reset
	}
	go func() {
		select {
		case <-answered.Done():
			s.machine.End(reason, detail)
		case <-s.machine.done:
		}
	}()
}

// press powers the guest off.
func (s *local) press(m *Machine) { go m.End(vmm.PoweredOff, "") }

// Identity is who the guest was told to be; the zero value for guests that are
// processes.
func (m *Machine) Identity() wire.Identity {
	var s *local
	switch g := m.system.(type) {
	case *local:
		s = g
	case *canned:
		s = g.local
	default:
		return wire.Identity{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Identity
}

func (s *local) save(w io.Writer) (device []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := io.WriteString(w, s.state.Nonce); err != nil {
		return nil, err
	}
	return json.Marshal(s.state)
}

// load takes a state over. What else the guest has saved follows in r.
func (s *local) load(r io.Reader, device []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := json.Unmarshal(device, &s.state); err != nil {
		return fmt.Errorf("the saved state of the devices: %w", err)
	}
	nonce := make([]byte, len(s.state.Nonce))
	if _, err := io.ReadFull(r, nonce); err != nil || string(nonce) != s.state.Nonce {
		return errors.New("the saved memory does not belong to the saved devices")
	}
	s.restored = true
	return nil
}

// request is r with other arguments.
func request(r wire.Request, args any) wire.Request {
	b, err := json.Marshal(args)
	if err != nil {
		panic(err) // plain structs of strings and numbers
	}
	r.Args = b
	return r
}
