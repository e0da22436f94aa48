package attest

import (
	"context"

	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/wire"
)

// A kind is what differs between machines that attest lays out itself and those
// that come about in another way. It belongs to one machine. Everything else asks
// the kind and never what it is: a further kind is one more file like own.go and
// foreign.go, and a line in kindOf.
type kind interface {
	// plan says what the machine's next start is made of, and builds what is
	// missing for that. It makes nothing of the machine itself.
	plan(context.Context) (plan, error)
	// attach makes what exists only as long as the machine does, and adds it to
	// the configuration. startMu is held.
	attach(context.Context, plan, *vmm.Config, *plugs) error
	// identity is what the guest is told when its agent answers. again says that
	// it is the agent that was saved with the machine.
	identity(r *run, again bool) wire.Identity
	// knowsHosts reports whether the guest is told of the other machines' names.
	knowsHosts() bool
	// keep copies what the machine has written: the n-th part of it to path(n).
	// Nothing of the result if it was never started. startMu is held.
	keep(path func(n int) string) ([]vmm.Backing, error)
	// adopt gives a machine that is off what another has kept. startMu is held.
	adopt([]vmm.Backing) error
}

// kindOf is the kind of a machine by its configuration.
func kindOf(m *Machine) kind {
	switch {
	case m.config.StartCommand != "":
		return &foreign{m}
	case mocks(m.config.Backend):
		return &mocked{own{m: m}}
	case m.config.bare():
		return &bare{own: own{m: m}}
	}
	return &own{m: m}
}

// A plan is what one start of a machine is made of, as far as that is known
// before anything of it exists.
type plan struct {
	config vmm.Config
	title  string       // of what is saved of such a machine, for people
	agent  string       // names the agent that the guest boots with
	image  *image.Image // nil: it has none
	// base is the disk below that which the machine writes to: the image, or its root
	// with a file system of its own. nil: it writes above layers.
	base *image.BaseDisk
	// asks says that the guest possibly asks for a passphrase when it boots: a template
	// would wait for that in vain.
	asks bool
	// fits is what must be the same for a saved machine to go on as this one,
	// beyond what the VMM itself demands: how an error calls it, and what it is.
	fits map[string]string
	// planned is config as it will be with what attach adds to it, for the
	// fingerprint.
	planned vmm.Config
}
