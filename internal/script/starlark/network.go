package starlark

import (
	"fmt"

	sl "go.starlark.net/starlark"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/operation"
)

// networkGlobal is the variable network. Its attributes are the operations of the
// lab's networks; called at the top level it declares how one of them is.
type networkGlobal struct {
	*object
	l *loader
}

var _ sl.Callable = networkGlobal{}

func (n networkGlobal) Name() string { return operation.Network.Global() }

// CallInternal is network(number, dhcp=True, dns=True, ra=True).
func (n networkGlobal) CallInternal(t *sl.Thread, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	th := threadOf(t)
	if th.lab != nil && th.session == nil {
		return nil, usagef("network: networks are declared at the top level of the file, before a test runs")
	}
	var number int
	dhcp, dns, ra := true, true, true
	if err := sl.UnpackArgs(n.Name(), args, kwargs, "number", &number, "dhcp?", &dhcp, "dns?", &dns, "ra?", &ra); err != nil {
		return nil, &usageError{err.Error()}
	}
	if number < 1 || number > 255 {
		return nil, usagef("network %d is out of range; want 1 to 255", number)
	}
	if at, ok := n.l.declared[number]; ok {
		return nil, usagef("network %d is declared twice: here and at %s", number, at)
	}
	n.l.declared[number] = fmt.Sprint(th.position(t))
	n.l.networks[number] = attest.NetworkConfig{NoDHCP: !dhcp, NoDNS: !dns, NoRA: !ra}
	return sl.None, nil
}
