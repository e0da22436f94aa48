package egress

import (
	"container/list"
	"net/netip"
	"slices"
	"time"
)

const (
	// maxPins is how many addresses of names are known at a time, and maxPinsOfName
	// how many of them are one name's. One too many takes the place of the oldest.
	maxPins       = 8192
	maxPinsOfName = 256
	// maxTTL limits how long an answer holds, in seconds: what the guest is told, and
	// so what its resolver keeps.
	maxTTL = 3600
	// pinGrace is how much longer than its answer holds an address may be
	// connected to: programs ask first and connect later.
	pinGrace = 5 * time.Minute
	// maxNamesShown is how many names of one address a report has.
	maxNamesShown = 4
)

// A pinKey is an address that a name has had in an answer.
type pinKey struct {
	name string
	addr netip.Addr
}

type pin struct {
	pinKey
	until time.Time
}

// pins are the addresses of the names that the guest has asked for, for as long as the
// answers hold. No method takes longer because there are many.
type pins struct {
	known  map[pinKey]*list.Element
	order  list.List // of *pin, the oldest first
	byName map[string][]netip.Addr
	byAddr map[netip.Addr]map[string]bool
}

func newPins() *pins {
	return &pins{known: map[pinKey]*list.Element{}, byName: map[string][]netip.Addr{}, byAddr: map[netip.Addr]map[string]bool{}}
}

// learn notes that a name has an address.
func (p *pins) learn(name string, addr netip.Addr, until time.Time) {
	k := pinKey{name, addr}
	if e := p.known[k]; e != nil {
		if old := e.Value.(*pin).until; old.After(until) {
			until = old
		}
		p.forget(k)
	}
	if own := p.byName[name]; len(own) >= maxPinsOfName {
		p.forget(pinKey{name, own[0]})
	}
	if len(p.known) >= maxPins {
		p.forget(p.order.Front().Value.(*pin).pinKey)
	}
	p.known[k] = p.order.PushBack(&pin{k, until})
	p.byName[name] = append(p.byName[name], addr)
	if p.byAddr[addr] == nil {
		p.byAddr[addr] = map[string]bool{}
	}
	p.byAddr[addr][name] = true
}

func (p *pins) forget(k pinKey) {
	p.order.Remove(p.known[k])
	delete(p.known, k)
	p.byName[k.name] = slices.DeleteFunc(p.byName[k.name], func(a netip.Addr) bool { return a == k.addr })
	if len(p.byName[k.name]) == 0 {
		delete(p.byName, k.name)
	}
	delete(p.byAddr[k.addr], k.name)
	if len(p.byAddr[k.addr]) == 0 {
		delete(p.byAddr, k.addr)
	}
}

// has reports whether a name has an address at a time.
func (p *pins) has(name string, addr netip.Addr, now time.Time) bool {
	e := p.known[pinKey{name, addr}]
	return e != nil && now.Before(e.Value.(*pin).until)
}

// names are some of the names that have an address at a time.
func (p *pins) names(addr netip.Addr, now time.Time) (names []string) {
	for name := range p.byAddr[addr] {
		if !p.has(name, addr, now) {
			p.forget(pinKey{name, addr})
		} else if names = append(names, name); len(names) == maxNamesShown {
			break
		}
	}
	slices.Sort(names)
	return names
}
