// Package attest runs integration tests on real virtual machines.
//
// A [Lab] is a set of machines and the networks between them; a [Machine] is
// one guest. In go test, [New] gives a lab whose operations fail the test:
//
//	func TestServes(t *testing.T) {
//		lab := attest.New(t,
//			attest.MachineConfig{Name: "server", Image: attest.Debian{Packages: []string{"nginx"}}},
//			attest.MachineConfig{Name: "client", Image: attest.Debian{Packages: []string{"curl"}}},
//		)
//		lab.Machine("server").WaitForUnit("nginx.service")
//		lab.Machine("client").Succeed("curl -sf http://server/")
//	}
//
// No root and no daemon is needed, only QEMU on the PATH, and mmdebstrap to
// build images (attest doctor says what is missing). Machines of a lab reach
// each other by name and nothing else. Whatever way the test ends, kill -9 and
// -timeout included, nothing of it stays behind.
//
// Outside go test, [OpenHost] and [Host.NewLab] give the same operations with a
// context and an error.
package attest

import (
	"context"
	"errors"
	"sync"
)

// TB is what [New] needs of a *testing.T or *testing.B. Of the methods Deadline, Output,
// ArtifactDir and Skipped it uses those that there are.
type TB interface {
	Helper()
	Name() string
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Failed() bool
	Cleanup(func())
	Context() context.Context
}

// New lays out a lab for a test and closes it when the test ends. Machines
// start on first use; their images are built if need be. Anything that goes
// wrong ends the test.
func New(t TB, machines ...MachineConfig) *TestLab {
	t.Helper()
	return NewLab(t, LabConfig{Name: t.Name(), Machines: machines})
}

// NewLab is New with a whole configuration. What operations copy goes to OutDir, or
// to the test's artifact directory (go test -artifacts) if OutDir is empty.
func NewLab(t TB, config LabConfig) *TestLab {
	t.Helper()
	return testLab(t, func(ctx context.Context, h *Host) (*Lab, error) {
		config.OutDir = outDir(t, config.OutDir)
		return h.NewLab(ctx, config)
	})
}

// OpenLab goes on from a lab that was saved in dir, and closes it when the test
// ends. dir is not changed. See [Host.OpenLab].
func OpenLab(t TB, dir string) *TestLab {
	t.Helper()
	return testLab(t, func(ctx context.Context, h *Host) (*Lab, error) {
		return h.OpenLab(ctx, dir, LabConfig{Name: t.Name(), OutDir: outDir(t, "")})
	})
}

// outDir is where files of a test go.
func outDir(t TB, dir string) string {
	if a, ok := t.(interface{ ArtifactDir() string }); ok && dir == "" {
		return a.ArtifactDir()
	}
	return dir
}

// testLab makes a lab for a test, and closes it when the test ends.
func testLab(t TB, make func(context.Context, *Host) (*Lab, error)) *TestLab {
	t.Helper()
	s := openTest(t)
	host, err := shared.open(s.ctx)
	s.check(err)
	t.Cleanup(func() {
		if err := shared.close(); err != nil {
			t.Logf("attest: closing the host: %v", err)
		}
	})
	lab, err := make(s.ctx, host)
	s.check(err)
	s.test.log.printf("attest: seed %[1]d (%[2]s=%[1]d repeats its random decisions)", lab.Seed(), seedEnv)
	l := &TestLab{lab, s}
	t.Cleanup(func() {
		l.keep()
		if err := errors.Join(lab.Network().settle(s.ctx), lab.Close()); err != nil {
			t.Logf("attest: closing the lab: %v", err)
		}
	})
	return l
}

// With is the same lab for a subtest: operations end and belong to t, and what they
// say is in its log. Faults that t leaves in force are healed when it ends. Without
// it an operation that fails in a subtest ends the parent.
func (l *TestLab) With(t TB) *TestLab {
	t.Helper()
	s := l.scope.with(t)
	t.Cleanup(func() {
		if err := l.Lab.Network().settle(s.ctx); err != nil {
			t.Logf("attest: %v", err)
		}
	})
	return &TestLab{l.Lab, s}
}

// shared is the Host of all tests of this process that are under way.
var shared sharedHost

type sharedHost struct {
	mu   sync.Mutex
	host *Host
	uses int
}

func (s *sharedHost) open(ctx context.Context) (*Host, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.host == nil {
		host, err := OpenHost(ctx, HostConfig{})
		if err != nil {
			return nil, err
		}
		s.host = host
	}
	s.uses++
	return s.host, nil
}

func (s *sharedHost) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uses--; s.uses > 0 {
		return nil
	}
	err := s.host.Close()
	s.host = nil
	return err
}
