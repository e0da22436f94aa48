package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/attest-vm/attest/internal/event"
)

// NIC says which network card of which machine is attached to a port.
type NIC struct {
	Machine string           // empty: the network's own
	ID      string           // as in vmm.NIC
	MAC     net.HardwareAddr // as planned; what the guest sends from is learned
}

// A Port is one NIC's place on a switch. Methods can be called from any
// goroutine.
type Port struct {
	sw   *Switch
	nic  NIC
	t    transport
	q    *queue
	done chan struct{} // closed when both goroutines have ended
	macs int           // addresses learned here; guarded by sw.mu

	from, to       path
	fromCnt, toCnt counters

	mu        sync.Mutex // guards what follows, and the stages on both paths
	down      bool
	observers []*func(Observation)
	captures  []*Capture
	impaired  [2][]*impairment // by direction, in the order of their faults
	gone      bool             // no impairment begins any more

	stopOnce sync.Once
	err      error // why the port ended; written before done is closed
}

// NIC is what the port was made for.
func (p *Port) NIC() NIC { return p.nic }

// String is "network: machine/nic".
func (p *Port) String() string {
	return p.sw.name + ": " + strings.TrimPrefix(p.nic.Machine+"/"+p.nic.ID, "/")
}

// Stats counts from the moment the port was attached.
func (p *Port) Stats() Stats {
	return Stats{FromMachine: p.fromCnt.snapshot(), ToMachine: p.toCnt.snapshot()}
}

// Done is closed when the port has ended: closed from here, or because the VMM
// went away, or by an error.
func (p *Port) Done() <-chan struct{} { return p.done }

// Err is why the port ended: nil while it has not, and when it was closed from
// either side.
func (p *Port) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Close takes the port off its switch and waits until nothing is left of it.
// What the machine was yet to receive is lost.
func (p *Port) Close() error {
	p.stop(nil)
	<-p.done
	return p.err
}

// SetDown pulls the cable between the port and the switch, or plugs it in:
// while a port is down, frames in both directions are dropped and counted. Those
// that wait in the port's queue are delivered. The guest does not see its link
// go down; that is the VMM's to show.
func (p *Port) SetDown(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = down
	p.setPaths()
}

// Observe calls fn for every frame in either direction until stop is called. fn
// holds up the switch while it runs, and runs in several goroutines at once; a
// call that is under way may end after stop returned.
func (p *Port) Observe(fn func(Observation)) (stop func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := &fn
	p.observers = append(p.observers, o)
	p.setPaths()
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.observers = slices.DeleteFunc(p.observers, func(x *func(Observation)) bool { return x == o })
		p.setPaths()
	}
}

// setPaths puts the stages in their order: who looks on at the machine's end of
// the link, what breaks it behind them.
func (p *Port) setPaths() {
	var from, to []stage
	for _, o := range p.observers {
		from = append(from, observe(p, FromMachine, *o))
	}
	for _, c := range p.captures {
		from = append(from, c.sent(p))
	}
	if p.down {
		from = append(from, drop(&p.fromCnt.down))
	}
	for _, im := range p.impaired[FromMachine] {
		from = append(from, im.stage)
	}
	for _, im := range p.impaired[ToMachine] {
		to = append(to, im.stage)
	}
	if p.down {
		to = append(to, drop(&p.toCnt.down))
	}
	for _, o := range p.observers {
		to = append(to, observe(p, ToMachine, *o))
	}
	for _, c := range p.captures {
		to = append(to, c.received(p))
	}
	p.from.set(from)
	p.to.set(to)
}

// begin puts a fault on both paths, where it belongs.
func (p *Port) begin(f *Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return
	}
	for _, d := range []Direction{FromMachine, ToMachine} {
		if f.on(p, d) {
			p.impaired[d] = append(p.impaired[d], newImpairment(f, p, d))
		}
	}
	p.setPaths()
}

// heal takes a fault off. What it holds back has gone on when it leaves the
// path, so nothing overtakes it.
func (p *Port) heal(f *Fault) {
	of := func(im *impairment) bool { return im.fault == f }
	p.mu.Lock()
	impaired := p.impaired
	p.mu.Unlock()
	for _, list := range impaired {
		if i := slices.IndexFunc(list, of); i >= 0 {
			list[i].heal()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for d, list := range p.impaired {
		p.impaired[d] = slices.DeleteFunc(slices.Clone(list), of)
	}
	p.setPaths()
}

// unimpair drops all that faults hold back. The port's successor goes on with
// their numbers.
func (p *Port) unimpair() {
	p.mu.Lock()
	p.gone = true
	impaired := p.impaired
	p.impaired = [2][]*impairment{}
	p.mu.Unlock()
	for _, list := range impaired {
		for _, im := range list {
			im.close()
			im.fault.keep(im)
		}
	}
}

// keepCounts notes how far a fault's streams have come here.
func (p *Port) keepCounts(f *Fault) {
	p.mu.Lock()
	impaired := p.impaired
	p.mu.Unlock()
	for _, list := range impaired {
		for _, im := range list {
			if im.fault == f {
				f.keep(im)
			}
		}
	}
}

// lost tells captures of a frame that a fault has dropped.
func (p *Port) lost(b *burst, im *impairment, f frame) {
	if im.dir == FromMachine && !b.held {
		b.lost = im.fault // the capture that saw the frame leave looks there
		return
	}
	p.mu.Lock()
	captures := p.captures
	p.mu.Unlock()
	for _, c := range captures {
		if im.dir == FromMachine {
			c.lostLater(p, im.fault, f) // it has the frame already
		} else {
			c.lost(p, im.fault, f)
		}
	}
}

// run is the port's life.
func (p *Port) run(ctx context.Context) {
	var writer sync.WaitGroup
	writer.Go(func() { p.stop(p.writeAll()) })
	p.stop(p.readAll())
	writer.Wait()
	if p.err != nil {
		event.Publish(ctx, event.Log{Machine: p.nic.Machine, Level: "error", Text: p.err.Error()})
	}
	p.report(ctx)
	close(p.done)
}

// report says what went through. What belongs to no machine is of no interest.
func (p *Port) report(ctx context.Context) {
	if p.nic.Machine == "" {
		return
	}
	s := p.Stats()
	event.Publish(ctx, event.Traffic{Machine: p.nic.Machine, Network: p.sw.name, NIC: p.nic.ID, Sent: s.FromMachine, Received: s.ToMachine})
	if c := s.complaint(); c != "" {
		event.Publish(ctx, event.Log{Machine: p.nic.Machine, Level: "warning", Text: fmt.Sprintf("%s, %s: %s", p.sw.name, p.nic.ID, c)})
	}
}

// stop begins the end of the port; the first reason counts.
func (p *Port) stop(err error) {
	p.stopOnce.Do(func() {
		if err != nil {
			p.err = fmt.Errorf("network %v: %w", p, err)
		}
		p.sw.forget(p)
		p.unimpair()
		p.q.close()
		p.t.close()
	})
}

// readAll forwards what the machine sends, until it hangs up (nil).
func (p *Port) readAll() error {
	var in batch
	out := burst{from: p}
	for {
		if err := p.t.read(&in); err != nil {
			return unlessHungUp(err)
		}
		if in.oversized > 0 {
			p.fromCnt.oversized.Add(uint64(in.oversized))
		}
		for _, f := range in.frames {
			if f.len() < minFrame {
				p.fromCnt.runt.Add(1)
				continue
			}
			p.from.pass(&out, f)
		}
		out.flush()
	}
}

// writeAll sends the machine what waits for it, until it hangs up or the port is
// closed (nil).
func (p *Port) writeAll() error {
	var runs, spare []run
	for {
		runs, spare = p.q.take(spare), runs
		if runs == nil {
			return nil
		}
		err := p.t.write(runs)
		if err == nil {
			p.countWritten(runs)
		}
		p.q.done(runs)
		if err != nil {
			return unlessHungUp(err)
		}
	}
}

func (p *Port) countWritten(runs []run) {
	frames, bytes := 0, 0
	for _, r := range runs {
		frames += r.frames
		bytes += r.end - r.off
	}
	p.toCnt.frames.Add(uint64(frames))
	p.toCnt.bytes.Add(uint64(bytes - frames*prefixLen))
}

// forward is the end of the path from the machine.
func (p *Port) forward(b *burst, f frame) {
	p.fromCnt.frames.Add(1)
	p.fromCnt.bytes.Add(uint64(f.len()))
	p.sw.forward(b, p, f)
}

// enqueue is the end of the path to the machine.
func (p *Port) enqueue(b *burst, f frame) {
	ok, first := p.q.push(f)
	if !ok {
		p.toCnt.overrun.Add(1)
	}
	if first {
		b.wake = append(b.wake, p)
	}
}

// kick has what waits written: here, if it is little and the machine has room for
// it, and otherwise by the port's writer.
func (p *Port) kick() {
	t, ok := p.t.(tryWriter)
	if !ok {
		p.q.ready.Signal()
		return
	}
	r, ok := p.q.takeShort()
	if !ok {
		p.q.ready.Signal()
		return
	}
	n := t.tryWrite(r.wire())
	if n > 0 { // all of its frames, and the bytes as they go
		p.toCnt.frames.Add(uint64(r.frames))
		p.toCnt.bytes.Add(uint64(n - r.frames*prefixLen))
	}
	p.q.wrote(r, n)
}

// unlessHungUp is nil for the ways in which a stream ends when one side closed
// it: in order, with data unread (ECONNRESET), or under our write (EPIPE).
func unlessHungUp(err error) error {
	for _, end := range []error{io.EOF, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, end) {
			return nil
		}
	}
	return err
}
