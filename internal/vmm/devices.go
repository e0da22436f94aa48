package vmm

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"
)

// A Capability is something that not every machine can do. Each is one of the
// optional interfaces of this package, under a name that is known before a
// machine exists.
type Capability string

const (
	CanPause    Capability = "pause"        // Pauser
	CanSave     Capability = "snapshot"     // Snapshotter; one that is Doubtful possibly cannot all the same
	CanReset    Capability = "reset"        // Rebooter
	CanType     Capability = "keyboard"     // Keyboarder
	CanPoint    Capability = "pointer"      // Pointer
	CanShow     Capability = "screen"       // Screener
	CanCapture  Capability = "screenshot"   // Screener, or a guest that shows something by itself (Lack.InGuest)
	CanRead     Capability = "screen text"  // Screener, on a host that can read what it shows
	CanListen   Capability = "serial input" // ConsoleWriter
	CanInteract Capability = "monitor"      // Monitor
	CanTell     Capability = "events"       // EventSource
	CanPlug     Capability = "hot plug"     // SlotOwner
	CanWake     Capability = "wake"         // Waker
	CanPress    Capability = "power button" // PowerButton
)

// Offerer is a backend that knows what its machines can do before they exist.
type Offerer interface {
	// Offers reports whether a machine of this configuration has the capability,
	// and if not why, if there is something to say.
	Offers(Config, Capability) (bool, Lack)
}

// A Lack is why a machine does not have a capability.
type Lack struct {
	Reason string    // "the machine has no screen"; may be empty
	Give   []Setting // a machine with these has it
	// InGuest says that no machine of the backend has a screen, and that guests may show something
	// all the same, on a screen of their own.
	InGuest bool
}

// A Setting is one of a machine's configuration, by its name there.
type Setting struct {
	Name  string
	Value any
}

// Keyboarder has a keyboard to press keys of.
type Keyboarder interface {
	// Keys presses keys in this order, or releases them. A key is a QKeyCode
	// (QEMU qapi/ui.json), such as "ctrl" and "a", or a scan code, such as
	// "0x1c". It returns when the keyboard has taken them; the guest may not
	// have looked yet.
	Keys(ctx context.Context, keys []string, down bool) error
}

// Pointer has a pointing device that knows places on the screen, such as a tablet.
type Pointer interface {
	// Move moves the pointer: 0, 0 is the upper left corner of the screen and 1, 1 the lower
	// right one.
	Move(ctx context.Context, x, y float64) error
	// Button presses a button, or releases it: one of QEMU's InputButton (qapi/ui.json).
	Button(ctx context.Context, name string, down bool) error
}

// Screener has a screen to look at.
type Screener interface {
	// Screenshot writes what is on the screen to a file in the machine's directory,
	// which the VMM creates: it may see no other.
	Screenshot(ctx context.Context, path string, format PictureFormat) error
}

// A PictureFormat is how a VMM writes a picture.
type PictureFormat string

const (
	PNG PictureFormat = "png" // small
	PPM PictureFormat = "ppm" // quick (netpbm's P6)
)

// ConsoleWriter has a serial console that also takes input.
type ConsoleWriter interface {
	// WriteConsole returns when the VMM has all of it; the guest may not have
	// read it yet. A guest that does not read at all makes it wait, after
	// something like 100 KiB.
	WriteConsole(context.Context, []byte) error
}

// Interrupter sends all vCPUs an interrupt that the guest's kernel cannot
// mask (NMI).
type Interrupter interface{ InjectNMI(context.Context) error }

// Waker wakes a machine whose guest is suspended, to idle or to memory. Its State is Suspended
// then.
type Waker interface {
	Observer
	// Dozing is since when the guest may be suspended, by what the VMM has said unasked;
	// zero: it is awake. State knows for certain.
	Dozing() time.Time
	// Wake returns when the guest was told to wake. One that is about to fall asleep may
	// miss that, and one that is awake ignores it.
	Wake(context.Context) error
}

// EventSource is a VMM that says what happens to its machine.
type EventSource interface{ Events() *EventLog }

// An Event is something that a VMM says unasked, in its own terms (QEMU
// docs/interop/qmp-spec).
type Event struct {
	Name string
	Data json.RawMessage // an object; may be nil
	Time time.Time
}

// maxEvents is how many of a machine's events are kept: a guest can cause them.
const maxEvents = 1000

// An EventLog is the last events of one VMM. The zero value is ready to use.
type EventLog struct {
	mu      sync.Mutex
	events  []Event
	first   int64         // number of events[0]
	changed chan struct{} // closed and replaced when something happens; nil: nobody waits
	over    bool
}

// Add appends an event.
func (l *EventLog) Add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.events) == maxEvents {
		l.events = append(l.events[:0], l.events[1:]...)
		l.first++
	}
	l.events = append(l.events, e)
	l.wake()
}

// End marks the end: no event follows.
func (l *EventLog) End() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	l.wake()
}

func (l *EventLog) wake() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// ErrNoMoreEvents is returned by Next after the last event of a VMM that has ended.
var ErrNoMoreEvents = errors.New("the VMM has ended")

// Next blocks until event number n, counted from 0, and returns
// it with the number to ask for next. It skips events that are no longer
// kept.
func (l *EventLog) Next(ctx context.Context, n int64) (Event, int64, error) {
	for {
		l.mu.Lock()
		n = max(n, l.first)
		if i := n - l.first; i < int64(len(l.events)) {
			defer l.mu.Unlock()
			return l.events[i], n + 1, nil
		}
		if l.over {
			defer l.mu.Unlock()
			return Event{}, n, ErrNoMoreEvents
		}
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return Event{}, n, context.Cause(ctx)
		}
	}
}
