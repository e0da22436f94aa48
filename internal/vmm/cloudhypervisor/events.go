package cloudhypervisor

import (
	"encoding/json"
	"io"
	"os"
	"sync"
)

// Events are what a cloud-hypervisor says happens to its machine (--event-monitor): JSON
// objects, one after the other.
type events struct {
	over chan struct{} // closed when all were read
	up   chan struct{} // closed when the guest's driver of its vsock is up, or when all were read

	mu       sync.Mutex
	panicked bool
	reset    bool
}

// watch reads events to their end, once. reset is called when the guest was reset, before
// cloud-hypervisor boots it again.
func (e *events) watch(read *os.File, reset func()) {
	e.over = make(chan struct{})
	tell := sync.OnceFunc(func() { close(e.up) })
	go func() {
		defer close(e.over)
		defer tell()
		limited := &io.LimitedReader{R: read}
		for d := json.NewDecoder(limited); ; {
			limited.N = maxEvent
			var event struct {
				Source, Event string
				Properties    struct{ ID string }
			}
			if d.Decode(&event) != nil {
				return // what follows makes no sense either, and nobody waits for whoever writes it
			}
			switch name := event.Source + "/" + event.Event; {
			case name == activated && event.Properties.ID == vsockID:
				tell()
			case e.add(name) == reboots:
				reset()
			}
		}
	}()
}

// activated is the event of a device whose driver in the guest is up.
const activated = "virtio-device/activated"

// reboots is the event of a guest that was reset.
const reboots = "vm/rebooting"

// maxEvent is more than one has: a guest that has broken out could write anything.
const maxEvent = 64 << 10

func (e *events) add(name string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.panicked = e.panicked || name == "guest/panic"
	e.reset = e.reset || name == reboots
	return name
}

// happened waits until all events have been read of a process that has ended.
func (e *events) happened() (panicked, reset bool) {
	if e.over == nil {
		return false, false // nobody has watched
	}
	<-e.over
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.panicked, e.reset
}
