package network

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// A Capture writes the frames of all ports of a fabric to a pcapng file. Each
// port is an interface of it, which has a frame as the machine's end of the link
// has it: sent before anything happened to it, received after everything. A
// frame that a fault has lost is there with a comment, and there is a line where
// each fault began and ended.
//
// Nothing waits for the disk: what the writer cannot keep up with is not
// captured, and counted on the next packet of its interface. The file can be read
// whatever way the process ends; its last block may be cut off.
type Capture struct {
	fabric *Fabric
	file   io.WriteCloser
	path   string

	mu      sync.Mutex
	ready   sync.Cond // there is something to write, or the end
	blocks  pcapng    // to be written
	packets []span    // of blocks
	ifaces  map[nicKey]int
	missed  map[int]uint64 // packets by interface, since the last that was captured
	total   uint64         // of them, in all
	closed  bool
	err     error // of writing
	done    chan struct{}
}

// A nicKey is a NIC on its network.
type nicKey struct {
	network string
	nicName
}

// A span is where a block of a time is.
type span struct {
	time       int64
	start, end int
}

// maxCaptureBytes is how much may wait for the writer.
const maxCaptureBytes = 32 << 20

// notes is the interface of lines about the capture.
const notes = 0

// Capture begins to write to a file, which is empty and the capture's from here on,
// also on error. path is where it is.
func (f *Fabric) Capture(file io.WriteCloser, path string) (*Capture, error) {
	c := &Capture{fabric: f, file: file, path: path, ifaces: map[nicKey]int{{}: notes}, missed: map[int]uint64{}, done: make(chan struct{})}
	c.ready.L = &c.mu
	c.blocks.section()
	c.blocks.iface(iface{name: "attest", about: "faults of the network", link: linkUpperPDU})

	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		file.Close()
		return nil, ErrClosed
	}
	f.captures = append(slices.Clone(f.captures), c)
	for _, p := range f.ports() {
		c.join(p)
		p.mu.Lock()
		p.captures = append(slices.Clone(p.captures), c)
		p.setPaths()
		p.mu.Unlock()
	}
	for _, fault := range f.faults {
		c.comment(fmt.Sprintf("fault %d was there before: %v", fault.ID, fault))
	}
	go c.write()
	return c, nil
}

// Path is the file's name.
func (c *Capture) Path() string { return c.path }

// Missed is how many frames were not captured because the disk was too slow.
func (c *Capture) Missed() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total
}

// Close ends the capture and returns when all of it is in the file. It can be
// called more than once.
func (c *Capture) Close() error {
	c.fabric.mu.Lock()
	isThis := func(x *Capture) bool { return x == c }
	c.fabric.captures = slices.DeleteFunc(slices.Clone(c.fabric.captures), isThis)
	ports := c.fabric.ports()
	c.fabric.mu.Unlock()
	for _, p := range ports {
		p.mu.Lock()
		p.captures = slices.DeleteFunc(slices.Clone(p.captures), isThis)
		p.setPaths()
		p.mu.Unlock()
	}
	c.mu.Lock()
	c.closed = true
	c.ready.Signal()
	c.mu.Unlock()
	<-c.done
	return c.err
}

// join makes a port an interface. A NIC keeps its interface over restarts of its
// machine.
func (c *Capture) join(p *Port) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := nicKey{p.sw.name, nicName{p.nic.Machine, p.nic.ID}}
	if _, ok := c.ifaces[key]; ok {
		return
	}
	c.ifaces[key] = len(c.ifaces)
	start := len(c.blocks)
	c.blocks.iface(iface{name: p.label(), about: p.String(), mac: p.nic.MAC, link: linkEthernet})
	// Before all packets of its own, which have later times.
	c.packets = append(c.packets, span{0, start, len(c.blocks)})
	c.ready.Signal()
}

// label is what a capture calls the port.
func (p *Port) label() string { return cmp.Or(p.nic.Machine, p.sw.name) + " " + p.nic.ID }

// sent is the stage that captures what a machine sends, with what becomes of it
// as long as that is known at once.
func (c *Capture) sent(p *Port) stage {
	return func(next handler) handler {
		return func(b *burst, f frame) {
			at := time.Now()
			b.lost = nil
			next(b, f)
			c.add(p, packet{time: at, data: f.bytes(), flags: flagOutbound, comment: lostTo(b.lost)})
			b.lost = nil
		}
	}
}

// received is the stage that captures what a machine receives.
func (c *Capture) received(p *Port) stage {
	return func(next handler) handler {
		return func(b *burst, f frame) {
			c.add(p, packet{time: time.Now(), data: f.bytes(), flags: flagInbound})
			next(b, f)
		}
	}
}

// lost captures what a machine does not receive.
func (c *Capture) lost(p *Port, by *Fault, f frame) {
	c.add(p, packet{time: time.Now(), data: f.bytes(), flags: flagInbound, comment: lostTo(by)})
}

// lostLater notes what has become of a frame that was captured as it was sent.
func (c *Capture) lostLater(p *Port, by *Fault, f frame) {
	c.comment(fmt.Sprintf("a frame of %d bytes that %s had sent, and a fault held back, is %s", f.len(), p.label(), lostTo(by)))
}

func lostTo(f *Fault) string {
	if f == nil {
		return ""
	}
	return fmt.Sprintf("lost to fault %d: %v", f.ID, f)
}

// comment writes a line.
func (c *Capture) comment(text string) {
	c.add(nil, packet{time: time.Now(), data: note(text), comment: text})
}

// add hands a packet to the writer.
func (c *Capture) add(p *Port, k packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p != nil {
		k.iface = c.ifaces[nicKey{p.sw.name, nicName{p.nic.Machine, p.nic.ID}}]
	}
	if c.closed || c.err != nil {
		return
	}
	if len(c.blocks)+len(k.data) > maxCaptureBytes {
		c.missed[k.iface]++
		c.total++
		return
	}
	k.dropped = c.missed[k.iface]
	delete(c.missed, k.iface)
	start := len(c.blocks)
	c.blocks.packet(k)
	c.packets = append(c.packets, span{k.time.UnixNano(), start, len(c.blocks)})
	c.ready.Signal()
}

// write writes blocks, whole ones only, in the order of their times.
func (c *Capture) write() {
	defer close(c.done)
	var spareBlocks pcapng
	var sparePackets []span
	var ordered []byte
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for len(c.blocks) == 0 && !c.closed {
			c.ready.Wait()
		}
		if len(c.blocks) == 0 {
			c.err = errors.Join(c.err, c.file.Close())
			return
		}
		blocks, packets := c.blocks, c.packets
		c.blocks, c.packets = spareBlocks[:0], sparePackets[:0]
		c.mu.Unlock()
		ordered = inOrder(ordered[:0], blocks, packets)
		_, err := c.file.Write(ordered)
		c.mu.Lock()
		if c.err == nil && err != nil {
			c.err = err // and nothing more is added
		}
		spareBlocks, sparePackets = blocks, packets
	}
}

// inOrder appends blocks: those at the beginning that have no time, then the
// others by their times. A frame is recorded when its fate is known, so it may
// come a little after what it caused.
func inOrder(to []byte, blocks pcapng, packets []span) []byte {
	slices.SortStableFunc(packets, func(a, b span) int { return cmp.Compare(a.time, b.time) })
	first := len(blocks)
	for _, p := range packets {
		first = min(first, p.start)
	}
	to = append(to, blocks[:first]...)
	for _, p := range packets {
		to = append(to, blocks[p.start:p.end]...)
	}
	return to
}
