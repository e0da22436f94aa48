package attest

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/attest-vm/attest/internal/network"
	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/tap"
)

// Program is a program of this host that is on a lab's networks beside the
// machines: a client that needs no image, a load generator, a VMM of one's own.
// It runs in a network namespace in which it is root, and sees the lab and
// nothing else; no root is needed for that where users may make user
// namespaces. Faults of the network apply to it under its name.
type Program struct {
	Args     []string // the program, looked up on the PATH, and its arguments
	Name     string   // on the network; empty: the program's own
	Networks []int    // nil: network 1. The interfaces are eth1, eth2, …, in this order
	// VMM has TAPs tap1, tap2, … for the program to open instead of interfaces
	// with addresses: what it sends through them is its guest's.
	VMM            bool
	Stdout, Stderr *os.File // nil: nowhere
}

// A RunningProgram is a Program that was started. It ends with its lab.
type RunningProgram struct {
	process   *supervise.Process
	addresses []netip.Addr
	ended     chan struct{} // closed when the process and its ports are gone
}

// programs are the programs on a lab's networks.
type programs struct {
	mu     sync.Mutex
	count  int
	closed bool
	all    []*RunningProgram
}

// StartProgram starts a program of this host on networks of the lab.
func (l *Lab) StartProgram(ctx context.Context, p Program) (*RunningProgram, error) {
	if len(p.Args) == 0 {
		return nil, &ConfigError{"program", "it has no arguments, not even the program"}
	}
	if p.Name == "" {
		p.Name = filepath.Base(p.Args[0])
	}
	if p.Networks == nil {
		p.Networks = []int{1}
	}
	l.network.programs.mu.Lock()
	defer l.network.programs.mu.Unlock()
	if l.network.programs.closed {
		return nil, errLabClosed
	}
	r := &RunningProgram{ended: make(chan struct{})}
	links, err := l.programLinks(p, r)
	if err != nil {
		return nil, err
	}
	command := supervise.Command{Path: p.Args[0], Args: p.Args, Stdout: p.Stdout, Stderr: p.Stderr}
	process, taps, err := tap.Start(ctx, l.host.supervisor, command, links)
	if err != nil {
		return nil, &InfraError{Action: "start " + p.Name + " on the network", Err: err}
	}
	r.process = process
	var ports []*network.Port
	for i, f := range taps {
		port, attachErr := l.network.fabric.Switch(p.Networks[i]).AttachTAP(l.ctx, network.NIC{Machine: p.Name, ID: links[i].Name, MAC: links[i].MAC}, f)
		if attachErr != nil {
			err = attachErr
			process.Kill()
			continue
		}
		ports = append(ports, port)
	}
	go func() { // the supervisor ends it at the latest
		defer close(r.ended)
		<-process.Done()
		for _, port := range ports {
			port.Close()
		}
	}()
	if err != nil {
		<-r.ended
		return nil, &InfraError{Action: "attach " + p.Name + " to the network", Err: err}
	}
	l.network.programs.count++
	l.network.programs.all = append(l.network.programs.all, r)
	return r, nil
}

// programLinks plans a program's interfaces.
func (l *Lab) programLinks(p Program, r *RunningProgram) ([]tap.Link, error) {
	for _, n := range p.Networks {
		if !l.hasNetwork(n) {
			return nil, &ConfigError{"program " + p.Name, fmt.Sprintf("no machine is on network %d", n)}
		}
	}
	own, err := l.plan().Visitor(network.Machine{Name: p.Name, Networks: p.Networks}, l.network.programs.count)
	if err != nil {
		return nil, &ConfigError{"lab", err.Error()}
	}
	var links []tap.Link
	for i, n := range own.Interfaces {
		if p.VMM {
			links = append(links, tap.Link{Name: fmt.Sprint("tap", i+1), ForVMM: true})
			continue
		}
		r.addresses = append(r.addresses, n.Addrs()...)
		links = append(links, tap.Link{Name: n.Name, MAC: n.MAC, Addresses: n.Prefixes()})
	}
	return links, nil
}

// Addresses are the program's own, IPv4 and IPv6 of each network.
func (p *RunningProgram) Addresses() []netip.Addr { return p.addresses }

// Pid is the program's process, whose namespace others can join (nsenter).
func (p *RunningProgram) Pid() int { return p.process.Pid() }

// Wait waits for the end of the program. One that fails, or is killed, is an
// error.
func (p *RunningProgram) Wait(ctx context.Context) error {
	status, err := p.process.Wait(ctx)
	if err == nil && !status.Success() {
		err = fmt.Errorf("%v", status)
	}
	return err
}

// Kill ends the program and waits until nothing is left of it on the networks.
func (p *RunningProgram) Kill() error {
	err := p.process.Kill()
	<-p.ended
	return err
}

// close ends all programs.
func (s *programs) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, p := range s.all {
		p.Kill()
	}
}
