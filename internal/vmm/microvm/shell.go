package microvm

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/attest-vm/attest/internal/vmm"
)

// GuestOptions are options of both backends: for a guest that comes without attest's agent,
// and for the speed of disks.
type GuestOptions struct {
	CID   int    `json:"vsock_cid"`        // of the guest, on the vsock of its process; 0: GuestCID
	Port  int    `json:"vsock_port"`       // of the guest's root shell; 0: ShellPort
	Store string `json:"store_image_path"` // of a read-only disk behind the others; empty: none

	DiskBytes int `json:"disk_bytes_per_second"` // of each disk, from 1 on; 0: no limit
	DiskOps   int `json:"disk_ops_per_second"`
}

const (
	// GuestCID is the guest's address on a vsock: of its process alone, so that all can
	// have the same.
	GuestCID = 3
	// ShellPort is where guests of this kind have their root shell.
	ShellPort = 1234

	storeSerial = "store"
)

// check returns an error if the options make no sense.
func (o GuestOptions) check() error {
	if o.CID != 0 && o.CID < GuestCID {
		return fmt.Errorf("vsock_cid=%d: the numbers below %d are the host's", o.CID, GuestCID)
	}
	if o.Port < 0 || o.Port == AgentPort {
		return fmt.Errorf("vsock_port=%d: want a positive number that is not %d, which is the agent's", o.Port, AgentPort)
	}
	if o.DiskBytes < 0 || o.DiskOps < 0 {
		return fmt.Errorf("disk_bytes_per_second=%d, disk_ops_per_second=%d: want numbers from 1 on", o.DiskBytes, o.DiskOps)
	}
	if o.Store == "" {
		return nil
	}
	if st, err := os.Stat(o.Store); err != nil {
		return fmt.Errorf("store_image_path: %w", err)
	} else if !st.Mode().IsRegular() {
		return fmt.Errorf("store_image_path: %s is not a regular file", o.Store)
	}
	return nil
}

// GuestCID is the guest's address.
func (o GuestOptions) GuestCID() int {
	if o.CID != 0 {
		return o.CID
	}
	return GuestCID
}

func (o GuestOptions) shellPort() int {
	if o.Port != 0 {
		return o.Port
	}
	return ShellPort
}

// WithStore is the configuration with the disk that the options add.
func (o GuestOptions) WithStore(c vmm.Config) vmm.Config {
	if o.Store == "" {
		return c
	}
	hw := *c.Boot.(*vmm.Hardware)
	hw.Disks = append(hw.Disks[:len(hw.Disks):len(hw.Disks)], vmm.Disk{Serial: storeSerial, Path: o.Store, Format: "raw", ReadOnly: true})
	c.Boot = &hw
	return c
}

// fingerprint is what has to be the same of the options for a saved machine to go on.
func (o GuestOptions) fingerprint() string {
	text := fmt.Sprintf("CID %d, disks of %d bytes/s and %d operations/s", o.GuestCID(), o.DiskBytes, o.DiskOps)
	if st, err := os.Stat(o.Store); o.Store != "" && err == nil {
		text += fmt.Sprintf(", store %s %d %d", o.Store, st.Size(), st.ModTime().UnixNano())
	}
	return text
}

// A shell is the root shell that a guest offers on a port of its vsock, as socat does with
// VSOCK-LISTEN:1234,fork: a shell of its own for each connection. Until the agent answers,
// attest has one connection, and another one when that ends: after a snapshot, and when the
// guest has booted again.
type shell struct {
	path         string // of the vsock's socket
	port         int
	ours, theirs net.Conn
	typed        sync.WaitGroup // what passes on what is typed

	mu      sync.Mutex
	conn    net.Conn // with the guest; nil: what is typed is dropped
	reached bool     // the agent was, in this boot
}

func newShell(path string, port int) *shell {
	s := &shell{path: path, port: port}
	s.ours, s.theirs = net.Pipe()
	s.typed.Go(func() {
		buf := make([]byte, 32<<10)
		for {
			n, err := s.theirs.Read(buf)
			if err != nil {
				return
			}
			s.mu.Lock()
			conn := s.conn
			s.mu.Unlock()
			if conn != nil {
				conn.Write(buf[:n]) // an error is that of a shell that has ended
			}
		}
	})
	return s
}

// close ends it; no boot is served any more.
func (s *shell) close() {
	s.theirs.Close()
	s.typed.Wait()
}

// serve connects with the shells of one boot, which ends when gone is closed. up is that of
// Vsock.Expect.
func (s *shell) serve(gone, up <-chan struct{}) {
	s.theirs.SetWriteDeadline(never)
	vsock := &Vsock{Path: s.path, Port: s.port, Gone: gone}
	vsock.Expect(up)
	for !s.agentReached() {
		conn, err := vsock.Dial(context.Background()) // ends with gone
		if err != nil {
			return
		}
		over := make(chan struct{})
		go func() {
			select {
			case <-gone:
				conn.SetDeadline(longAgo)
				s.theirs.SetWriteDeadline(longAgo)
			case <-over:
			}
		}()
		s.use(conn)
		s.copy(conn)
		s.use(nil)
		close(over)
		conn.Close()
	}
}

// copy passes on what the shell says until its connection ends, or nobody listens.
func (s *shell) copy(conn net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := conn.Read(buf)
		if _, writeErr := s.theirs.Write(buf[:n]); err != nil || writeErr != nil {
			return
		}
	}
}

func (s *shell) use(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn = conn
}

func (s *shell) agentReached() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reached
}

// boots says that the guest boots again, without the agent.
func (s *shell) boots() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reached = false
}

// agentAnswers says that the agent is there: nobody needs another shell in this boot.
func (s *shell) agentAnswers() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reached = true
}

// Shell is the Backdoor of a machine whose guest comes without attest's agent.
func (m *Machine) Shell() (shell, upload net.Conn) { return m.shell.ours, nil }

// Reaches returns an error if the guest is reached by its root shell alone: its connection
// ends with every snapshot, and so does the shell.
func (m *Machine) Reaches() error {
	if m.shell.agentReached() {
		return nil
	}
	return Unsupported(m.backend, m.config, "snapshot", "attest reaches this guest by a root shell on its vsock, which ends when the machine is saved; in a guest in which attest's agent runs, snapshots work")
}
