package attest

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/attest-vm/attest/internal/console"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/network"
	"github.com/attest-vm/attest/internal/screen/ocr"
	"github.com/attest-vm/attest/internal/vmm"
)

// A Machine is one guest of a Lab. It starts on first use. Its methods can be
// called from any goroutine, and operations of one machine can overlap.
type Machine struct {
	lab     *Lab
	config  MachineConfig
	kind    kind
	backend vmm.Backend
	address network.MachineAddresses
	dir     string
	console *console.Console
	outside sync.WaitGroup // the ways out of the lab of its starts
	text    *ocr.Reader    // what was read of its screen
	kept    *keptFiles     // where its files outlive the lab; nil: nowhere

	snapshot    *vmm.State  // that of its configuration, once it has begun with it
	checkpoints checkpoints // of a floor above: they go with the machine

	startMu   sync.Mutex    // one start at a time; a snapshot holds it too
	linkMu    sync.Mutex    // one change of links at a time
	wayOut    *network.Port // on the last start's way out of the lab; guarded by linkMu
	mu        sync.Mutex
	current   *run       // the start that is in force; nil when the machine is off
	ended     error      // why the last one ended, when it was not asked to
	endedRun  *run       // the one that ended so; nil: none, or it is not known here
	booted    bool       // it was started at least once
	jobs      []*Job     // since it has booted
	inherited []jobState // those of the snapshot that it goes on from
	id        string     // its /etc/machine-id
	laid      laid       // what of the host's files is on its disk
	unlaid    bool       // it has not looked for what has changed of them
	stale     []string   // what had changed of them after something in the guest had used it
	closed    bool
}

// Name is the machine's name and host name.
func (m *Machine) Name() string { return m.config.Name }

// Config is what the machine was made of, defaults filled in.
func (m *Machine) Config() MachineConfig { return m.config }

// Addresses are the machine's own addresses, IPv4 before IPv6, in the order of
// its networks.
func (m *Machine) Addresses() []netip.Addr {
	var v4, v6 []netip.Addr
	for _, i := range m.address.Interfaces {
		if i.Network == outside {
			continue // nobody else is there
		}
		if addrs := i.Addrs(); addrs != nil {
			v4, v6 = append(v4, addrs[0]), append(v6, addrs[1])
		}
	}
	return append(v4, v6...)
}

// prepare makes what a machine has even before it starts.
func (m *Machine) prepare() error {
	m.dir = filepath.Join(m.lab.dir, m.config.Name)
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		return &InfraError{m.Name(), "create the machine's directory", err}
	}
	log, err := os.Create(filepath.Join(m.dir, "console.log"))
	if err != nil {
		return &InfraError{m.Name(), "create the console log", err}
	}
	m.text = ocr.NewReader(m.lab.tesseract)
	m.console = console.New(log, func(line string) {
		event.Publish(m.lab.ctx, event.Console{Machine: m.Name(), Line: line})
	})
	return nil
}

// close ends the machine for good.
func (m *Machine) close() error {
	m.mu.Lock()
	m.closed = true
	r := m.current
	if r != nil {
		r.asked = true
		if r.down == nil {
			r.down = errLabClosed
		}
	}
	m.mu.Unlock()
	var err error
	if r != nil {
		r.guest.Close(errLabClosed)
		err = r.vm.Kill()
		<-r.over
	}
	if m.snapshot != nil {
		m.snapshot.Memory.Close()
	}
	m.outside.Wait()
	m.kept.close()
	err = errors.Join(err, m.checkpoints.close())
	return errors.Join(err, m.console.Close())
}

// plan says what the machine's next start is made of. What cannot work is refused,
// and nothing of the machine is made.
func (m *Machine) plan(ctx context.Context) (plan, error) {
	p, err := m.kind.plan(ctx)
	if err == nil {
		err = m.backend.Check(p.config)
	}
	return p, err
}
