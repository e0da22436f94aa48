package attest

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// An option compiles where it does something, and nowhere else.
func TestOptionsAreTypedByWhatTheyApplyTo(t *testing.T) {
	var kinds []reflect.Type
	for _, operation := range []any{
		(*Machine).Succeed, (*Machine).Detach, (*Machine).WaitForFile, (*Machine).WaitForUnit, (*Machine).WaitForClosedPort, (*Machine).WaitForOpenPort,
		(*Machine).WaitForOpenUnixSocket, (*Machine).Journal, (*Machine).Shell, (*Machine).SendKey, (*Machine).Start,
		(*Network).Drop, (*Network).Delay, (*Network).Reorder, (*Network).Rate, (*Network).Down, (*Network).Partition, (*Network).Isolate,
	} {
		f := reflect.TypeOf(operation)
		kinds = append(kinds, f.In(f.NumIn()-1).Elem())
	}
	for _, test := range []struct {
		option any
		want   string // the kinds of operations that take it
	}{
		{Timeout, "Command Detach Wait Unit Port OpenPort Socket Journal"},
		{User, "Command Detach Unit Journal Shell"},
		{Stdin, "Command"},
		{Input, "Command"},
		{Stdout, "Command"},
		{Stderr, "Command"},
		{Env, "Command Detach"},
		{Dir, "Command Detach"},
		{Address, "Port OpenPort"},
		{Unit, "OpenPort"},
		{Datagram, "Socket"},
		{Lines, "Journal"},
		{Since, "Journal"},
		{Delay, "Key"},
		{Unlogged, "Key"},
		{AllowReboot, "Start"},
		{Match, "Drop Delay Reorder Rate Side Partition Fault"},
		{OnNetwork, "Drop Delay Reorder Rate Side Partition Fault"},
		{During, "Drop Delay Reorder Rate Side Partition Fault"},
		{Peer, "Drop Delay Reorder Rate Side"},
		{Direction, "Drop Delay Reorder Rate Side"},
		{Correlation, "Drop"},
		{Jitter, "Delay"},
		{Distribution, "Delay"},
		{Gap, "Reorder"},
		{Queue, "Rate"},
		{Burst, "Rate"},
		{OneWay, "Partition"},
	} {
		result := reflect.TypeOf(test.option).Out(0)
		var takes []string
		for _, k := range kinds {
			if result.Implements(k) {
				takes = append(takes, strings.TrimSuffix(k.Name(), "Option"))
			}
		}
		if got := strings.Join(slices.Compact(takes), " "); got != test.want {
			t.Errorf("%v is an option of %s, want %s", result, got, test.want)
		}
	}
}

func TestNilOptionIsNone(t *testing.T) {
	if o := collect([]CommandOption{nil, User("alice"), nil}); o.user != "alice" {
		t.Errorf("the user is %q", o.user)
	}
	if o := collectFault([]SideOption{nil, Match("tcp")}); o.match != "tcp" {
		t.Errorf("the match is %q", o.match)
	}
}
