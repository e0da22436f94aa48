package protocol

import (
	"context"
	"errors"
	"fmt"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/session"
)

type forkParams struct {
	Scope int64     `json:"scope"`
	At    *position `json:"at"`
}

type sessionKey struct{}

// session is that of the lab to which operations go: that of the innermost fork whose scope
// the context belongs to.
func (s *Server) session(ctx context.Context) *session.Session {
	if fork, ok := ctx.Value(sessionKey{}).(*session.Session); ok {
		return fork
	}
	return s.options.Session
}

// doFork begins a scope whose operations go to a fork of the lab, which is closed with it.
func (s *Server) doFork(request context.Context, p forkParams) (any, error) {
	outer, err := s.within(p.Scope)
	if err != nil {
		return nil, err
	}
	outer = s.at(outer, p.At)
	fork, err := s.session(outer).Fork(outer)
	if err != nil {
		return nil, err
	}
	ctx := context.WithValue(outer, sessionKey{}, fork)
	var id int64
	over := make(chan struct{})
	s.work.Go(func() {
		select {
		case <-over:
		case <-outer.Done(): // the peer is gone, or the lab ends
			fork.Close()
		}
	})
	id = s.scopes.open(ctx, func(*Thrown) error {
		close(over)
		return fork.Close()
	})
	return map[string]int64{"scope": id}, nil
}

type directoriesParams struct {
	Machine string `json:"machine"`
}

var errNoDirectories = errors.New("this lab has no directories of machines")

// doDirectories says where a machine has its files on this host.
func (s *Server) doDirectories(_ context.Context, p directoriesParams) (any, error) {
	if s.options.Directories == nil {
		return nil, errNoDirectories
	}
	state, shared, running, err := s.options.Directories(p.Machine)
	if err != nil {
		return nil, &attest.ConfigError{Subject: fmt.Sprintf("machine %q", p.Machine), Reason: err.Error()}
	}
	return map[string]any{"state": state, "shared": shared, "running": running}, nil
}
