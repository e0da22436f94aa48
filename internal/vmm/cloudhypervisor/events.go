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
	read *os.File
	over chan struct{} // closed when all were read

	mu       sync.Mutex
	panicked bool
	reset    bool
}

// watch reads events to their end. reset is called when the guest was reset, before
// cloud-hypervisor boots it again.
func watch(read *os.File, reset func()) *events {
	e := &events{read: read, over: make(chan struct{})}
	go func() {
		defer close(e.over)
		limited := &io.LimitedReader{R: read}
		for d := json.NewDecoder(limited); ; {
			limited.N = maxEvent
			var event struct{ Source, Event string }
			if d.Decode(&event) != nil {
				return // what follows makes no sense either, and nobody waits for whoever writes it
			}
			if e.add(event.Source+"/"+event.Event) == reboots {
				reset()
			}
		}
	}()
	return e
}

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
	<-e.over
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.panicked, e.reset
}
