package session

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
)

// An Object is something that has operations and is not a machine, such as a job
// or a fault, as it is called at the other end of a socket.
type Object struct {
	On   operation.On `json:"-"`
	Kind string       `json:"kind"`           // "job", "fault", "capture"
	ID   int          `json:"id"`             // of no other object of this process
	Name string       `json:"name,omitempty"` // what tells it from others, in messages
}

// lastObject counts the objects of all sessions, so that one of a fork is never taken for
// one of the lab.
var lastObject atomic.Int64

// objects are those that operations have returned, by their numbers.
type objects struct {
	handles map[int]operation.Handle
}

func (o *objects) add(h operation.Handle) Object {
	if o.handles == nil {
		o.handles = map[int]operation.Handle{}
	}
	id := int(lastObject.Add(1))
	o.handles[id] = h
	return Object{h.On, h.On.String(), id, h.Name}
}

// An UnknownObjectError is the number of an object that the session does not have,
// or has no longer.
type UnknownObjectError struct{ ID int }

func (e *UnknownObjectError) Error() string {
	return fmt.Sprintf("this session has no object %d", e.ID)
}

// Status is that of a mistake of the caller's.
func (*UnknownObjectError) Status() attest.Status { return attest.Invalid }

// Invoke runs the operation of this name. on is what it belongs to: a
// MachineName, an Object, or a kind (operation.Lab, operation.Network) for its
// functions and its one object. Arguments are values as operation.Bind takes
// them, and Objects. The result is what operation.Runner gives, with an Object
// for a handle. Its error is an *operation.Error, or, if the call makes no sense,
// an *operation.ArgumentError or an *UnknownObjectError.
func (s *Session) Invoke(ctx context.Context, on any, name string, positional []any, named []operation.Named) (any, error) {
	kind, object, err := s.subject(on)
	if err != nil {
		return nil, err
	}
	o := operation.Find(kind, name)
	if o == nil {
		return nil, &operation.ArgumentError{Call: name, Reason: kind.String() + " has no such operation" + operation.DidYouMean(name, operation.Names(kind))}
	}
	args, err := o.Bind(s.handlesOf(positional), s.namedHandlesOf(named))
	if err != nil {
		return nil, err
	}
	v, err := runner{s}.Invoke(event.WithBus(ctx, s.bus), object, o, args)
	if err != nil {
		machine, _ := object.(operation.MachineName)
		return nil, &operation.Error{Machine: string(machine), Operation: o.Name, Err: err}
	}
	if h, ok := v.(operation.Handle); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.objects.add(h), nil
	}
	return v, nil
}

// subject is the kind of what an operation belongs to, and that as a Runner takes it.
func (s *Session) subject(on any) (operation.On, any, error) {
	switch on := on.(type) {
	case operation.MachineName:
		return operation.Machine, on, nil
	case Object:
		s.mu.Lock()
		defer s.mu.Unlock()
		h, ok := s.objects.handles[on.ID]
		if !ok {
			return 0, nil, &UnknownObjectError{on.ID}
		}
		return h.On, h, nil
	case operation.On:
		return on, nil, nil
	}
	return 0, nil, &operation.ArgumentError{Call: fmt.Sprint(on), Reason: "neither a machine nor an object of the session"}
}

// Release forgets an object, which goes on as it is.
func (s *Session) Release(o Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects.handles, o.ID)
}

// handlesOf are arguments with handles for objects.
func (s *Session) handlesOf(values []any) []any {
	out := make([]any, len(values))
	for i, v := range values {
		out[i] = s.handleOf(v)
	}
	return out
}

func (s *Session) namedHandlesOf(named []operation.Named) []operation.Named {
	out := make([]operation.Named, len(named))
	for i, n := range named {
		out[i] = operation.Named{Name: n.Name, Value: s.handleOf(n.Value)}
	}
	return out
}

func (s *Session) handleOf(v any) any {
	o, ok := v.(Object)
	if !ok {
		return v
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if h, ok := s.objects.handles[o.ID]; ok {
		return h
	}
	return operation.Opaque("object that the session does not have")
}
