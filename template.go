package attest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/cache"
	"github.com/attest-vm/attest/internal/console"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/printable"
	"github.com/attest-vm/attest/internal/snapshot"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/wire"
)

// A template is a machine that has booted and done nothing else. A machine that is the
// same machine, in whatever lab, is restored from it.
type template struct {
	entry *snapshot.Entry // nil: it is in the host's memory only, as there is no space for it
	state *vmm.State
	disks []vmm.Backing
	text  []byte // of the console
	agent string // the instance of the agent that answered
}

// templates are those that a host has used. Each is opened once, and held until
// the host is closed.
type templates struct {
	mu    sync.Mutex
	byKey map[string]*templateSlot
}

type templateSlot struct {
	mu sync.Mutex // held while it is opened or made
	*template
	err error // it cannot be made
}

func (t *templates) slot(key string) *templateSlot {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byKey == nil {
		t.byKey = map[string]*templateSlot{}
	}
	if t.byKey[key] == nil {
		t.byKey[key] = &templateSlot{}
	}
	return t.byKey[key]
}

func (t *templates) close(store *snapshot.Store) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for key, s := range t.byKey {
		switch {
		case s.template == nil:
		case s.entry != nil:
			errs = append(errs, s.entry.Close())
			if s.err != nil { // it is of no use to anybody else either
				store.Remove(snapshot.Info{ID: key})
			}
		default:
			errs = append(errs, s.state.Memory.Close())
		}
	}
	t.byKey = nil
	return errors.Join(errs...)
}

// warm is what the machine can start from instead of booting, if it can. That it
// cannot is no error: it boots. It is one that the time is over.
func (m *Machine) warm(ctx context.Context, p plan) (*templateSlot, error) {
	fits := m.templateFits(p)
	if fits == nil {
		return nil, nil
	}
	s := m.lab.host.templates.slot(snapshot.Key(fits))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.template == nil && s.err == nil {
		s.template, s.err = m.openTemplate(ctx, fits, p.title)
		if err := s.err; ctx.Err() != nil {
			s.err = nil // the next one may have more time
			return nil, err
		}
		if s.err != nil && !hopeless(s.err) {
			event.Warnf(ctx, "%s boots, because there is no snapshot to start from: %v%s", m.Name(), s.err, advice(s.err))
		}
	}
	switch {
	case hopeless(s.err):
		return nil, s.err
	case s.err != nil || s.template == nil:
		return nil, nil
	}
	return s, nil
}

// templateFits is what must be the same for a template to be the machine's; nil if
// none can be.
func (m *Machine) templateFits(p plan) map[string]string {
	if _, ok := m.backend.(vmm.Fingerprinter); !ok || m.lab.host.config.Boot == BootCold || m.config.Boot == BootCold || m.config.Snapshot != "" {
		return nil
	}
	if p.asks {
		return nil
	}
	if f, ok := m.kind.(*foreign); ok && f.hasFiles() {
		return nil // a machine that starts with files is none that started without
	}
	if slices.ContainsFunc(m.config.Disks, func(d Disk) bool { return d.Bus == string(vmm.BusNVMe) }) {
		return nil // it cannot be saved
	}
	fits, err := m.fits(p)
	if err != nil {
		return nil // the start will say why
	}
	// What a service sees when it starts, it keeps.
	fits["name or addresses"] = fmt.Sprintf("%s %v", m.Name(), m.address.Interfaces)
	for _, n := range m.config.Networks {
		if own, ok := m.lab.config.Networks[n]; ok {
			fits[fmt.Sprint("services of network ", n)] = fmt.Sprintf("%+v", own)
		}
	}
	fits["agent"] = p.agent
	return fits
}

// hopeless reports whether a boot for a template failed in a way in which every other
// would, too.
func hopeless(err error) bool {
	var boot *BootError
	return errors.As(err, &boot) && boot.final
}

// tellBoot publishes the boot of a template that is the machine's own, since there
// will be no other.
func (m *Machine) tellBoot(err error) {
	m.announce("starting", "", 0)
	for _, line := range m.console.Tail(1000) {
		event.Publish(m.lab.ctx, event.Console{Machine: m.Name(), Line: line})
	}
	var boot *BootError
	errors.As(err, &boot)
	m.announce("panicked", boot.Reason, boot.After)
}

// advice returns what to do about a machine without a template.
func advice(err error) string {
	if late := (*StillBootingError)(nil); errors.As(err, &late) {
		return "; if a unit waits for another machine or for the test, let the test start that unit, or let the machine always boot (boot cold)"
	}
	return ""
}

// refuse notes that the VMM did not take a template, and makes the machine one
// that was never started.
func (m *Machine) refuse(ctx context.Context, s *templateSlot, reason error) error {
	event.Warnf(ctx, "%s boots, because it cannot start from its snapshot: %v", m.Name(), reason)
	s.mu.Lock()
	s.err = reason
	s.mu.Unlock()
	return m.adopt(&machineState{id: m.id})
}

// beginning is what the machine starts from if it does not boot: the snapshot of
// its configuration, or a template. It is nil for later starts.
func (m *Machine) beginning(ctx context.Context, p plan) (*origin, error) {
	m.mu.Lock()
	started := m.booted
	m.mu.Unlock()
	switch {
	case started:
		return nil, nil
	case m.config.Snapshot != "":
		s, err := openState(m.config.Snapshot)
		if err != nil {
			return nil, err
		}
		if m.snapshot != nil { // of an attempt that failed
			m.snapshot.Memory.Close()
		}
		m.snapshot = s.state // to be closed with the machine
		if err := m.adopt(&machineState{id: m.id, disk: s.disk, console: s.console, laid: s.laid}); err != nil || s.state == nil {
			return nil, err
		}
		return &origin{state: s.state, fits: s.fits, macs: s.macs}, nil
	}
	t, err := m.warm(ctx, p)
	if t == nil || err != nil {
		return nil, err
	}
	return &origin{state: t.state, slot: t, agent: t.agent}, m.adopt(&machineState{id: m.id, disk: t.disks, console: console.StateOf(t.text)})
}

// fits is all that must be the same for a saved machine to go on as this one.
func (m *Machine) fits(p plan) (map[string]string, error) {
	f, ok := m.backend.(vmm.Fingerprinter)
	if !ok {
		return nil, m.cannotSave()
	}
	fits := maps.Clone(p.fits)
	fits["backend"], fits["protocol of the agent"] = m.config.Backend, fmt.Sprintf("version %d", wire.Version)
	var err error
	fits["kind of VMM, processor or machine"], err = f.Fingerprint(m.lab.host.vmmHost(), p.planned)
	return fits, err
}

func (m *Machine) cannotSave() error {
	can := backendsThat(func(b vmm.Backend) bool { _, ok := b.(vmm.Fingerprinter); return ok })
	return &UnsupportedError{Machine: m.Name(), Operation: "snapshot", Backend: m.config.Backend, Can: can}
}

// leastTime is what must be left of an operation's time for a template to be made
// in it: a wait of twenty seconds is to see the guest boot, not to pay for others.
const leastTime = time.Minute

// openTemplate opens the template of machines like this one, or has it made if
// there is time.
func (m *Machine) openTemplate(ctx context.Context, fits map[string]string, title string) (*template, error) {
	store := m.lab.host.snapshots
	for try := 1; ; try++ {
		var t *template
		entry, err := store.Get(fits)
		if err == nil {
			if t, err = templateOf(entry); err == nil {
				return t, nil
			}
		}
		var damaged *snapshot.DamagedError
		switch {
		case errors.Is(err, errNotBooted) && try == 1:
			event.Warnf(ctx, "the cached snapshot of %s was made before the machine had booted; making another", title)
			if _, err := store.Remove(snapshot.Info{ID: snapshot.Key(fits)}); err != nil {
				return nil, err
			}
		case errors.As(err, &damaged) && try == 1: // more often if another process holds it
			event.Warnf(ctx, "%v; making another", err)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < leastTime {
			return nil, nil
		}
		if t, err := m.makeTemplate(ctx, fits, title); t != nil || err != nil {
			return t, err
		}
	}
}

// makeTemplate boots a machine like this one and saves it in the cache. Only if
// there is no space there, the template is returned.
func (m *Machine) makeTemplate(ctx context.Context, fits map[string]string, title string) (*template, error) {
	work := event.NewWork(ctx, "snapshot of "+title)
	say := work.Say
	tell := func(text string) { say("booting; %s", text) }
	if all, ok := ctx.Value(firstBootsKey{}).(*firstBoots); ok {
		say = func(string, ...any) {}
		tell = func(text string) { all.note(m.Name(), text) }
	}
	var inMemory *template
	err := m.lab.host.snapshots.Make(ctx, fits, title,
		func(pid string) {
			say = work.Say // nothing else says it
			say("waiting for process %s, which makes the same", pid)
		},
		func(d *snapshot.Draft) error {
			say("booting")
			silent := event.WithBus(ctx, &event.Bus{}) // what it does is nobody's business
			lab, err := m.templateLab(silent)
			if err != nil {
				return err
			}
			defer lab.Close()
			booted := lab.Machines()[0]
			if err := booted.settle(silent, tell); err != nil {
				m.console.Restore(booted.console.Save()) // it says more than the error
				if hopeless(err) {
					m.tellBoot(err)
				}
				return err
			}
			say("saving")
			err = booted.saveTemplate(ctx, d)
			if !cache.NoSpace(err) {
				return err
			}
			event.Warnf(ctx, "no space to keep the snapshot of %s: %v; free some with attest snapshot prune, or with a smaller %s", title, err, snapshot.SizeEnv)
			inMemory, err = booted.templateInMemory(ctx, m.lab.scratch)
			return err
		})
	work.Done(err)
	if inMemory != nil {
		return inMemory, nil
	}
	return nil, err
}

// templateLab is a lab in which this machine is alone, with its own name and
// addresses.
func (m *Machine) templateLab(ctx context.Context) (*Lab, error) {
	config := m.config
	config.AllowReboot, config.Boot = false, BootCold
	config.Files, config.Mount = nil, nil // they change more often than it does
	addresses := m.lab.plan()
	return newLab(ctx, m.lab.host, LabConfig{Name: "template", Machines: []MachineConfig{config}, SourceDir: m.lab.config.SourceDir, Networks: m.lab.config.Networks, addresses: &addresses})
}

// settleLimit is how long a guest may take from its first answer to the end of its
// boot, scaled to the speed of the host.
var settleLimit = 45 * time.Second // tests have other ones, and no systemd

// quietLimit is how long a guest that has booted may go on with what that has left it to do,
// scaled to the speed of the host. What is saved in the middle of that, each start from the
// snapshot would do once more: print a login prompt, for example.
const quietLimit = time.Second

// A StillBootingError is a guest whose boot is not over: what is saved of it would
// be in the middle of its boot for ever.
type StillBootingError struct {
	Machine string
	After   time.Duration // since the guest's first answer
	Units   []string      // that systemd is starting; empty: not known
}

func (e *StillBootingError) Error() string {
	what := "its boot is not over"
	if len(e.Units) > 0 {
		what += ", " + starting(e.Units)
	}
	return fmt.Sprintf("%s: %s (after %v)", e.Machine, what, roundDuration(e.After))
}

// starting says which units keep a boot from its end.
func starting(units []string) string {
	if n := len(units); n > maxUnits {
		return fmt.Sprintf("systemd is starting %s and %d more", strings.Join(units[:maxUnits], ", "), n-maxUnits)
	}
	return "systemd is starting " + strings.Join(units, ", ")
}

// Status is BootFailed.
func (*StillBootingError) Status() Status { return BootFailed }

// settle starts a machine and waits until its guest has booted. A guest that does
// not get there within the limit is a *StillBootingError. tell is told what keeps a boot
// that takes long from its end.
func (m *Machine) settle(ctx context.Context, tell func(string)) error {
	r, err := m.powered(ctx, "snapshot")
	if err != nil {
		return err
	}
	if d, ok := vmm.As[vmm.Doubtful](r.vm); ok {
		if err := d.WillSave(); err != nil {
			return err
		}
	}
	if err := r.awaitReady(ctx); err != nil {
		return err
	}
	err = r.awaitBooted(ctx, m.lab.host.scale(settleLimit), tell)
	if err == nil {
		err = r.guest.Settle(ctx, m.lab.host.scale(quietLimit))
	}
	return r.explain(ctx, "snapshot", err)
}

// bootedScript ends when systemd, if the guest's init is that, has started all
// that its boot has to start. It asks again when the connection broke, as when
// systemd executes itself anew.
var bootedScript = `while :; do
	case $(systemctl is-system-running --wait 2>/dev/null) in
	running|degraded|maintenance|stopping|offline) exit 0 ;;
	esac
	[ -d /run/systemd/system ] || exit 0
	sleep 0.1
done`

// jobsScript lists what systemd has to do: number, unit, what, and whether it does it.
var jobsScript = "systemctl list-jobs --no-legend --plain"

// bootLook is how long a boot goes on before anybody looks at what it waits for, and
// again after as long, scaled to the speed of the host.
var bootLook = 10 * time.Second

// awaitBooted waits for the end of the guest's boot, and tells what keeps it.
func (r *run) awaitBooted(ctx context.Context, limit time.Duration, tell func(string)) error {
	began := time.Now()
	looking, stop := context.WithCancel(ctx)
	defer stop()
	var aside sync.WaitGroup
	aside.Go(func() {
		for pause := r.machine.lab.host.scale(bootLook); ; {
			select {
			case <-time.After(pause):
			case <-looking.Done():
				return
			}
			if units := r.startingUnits(looking); len(units) > 0 && looking.Err() == nil {
				tell(starting(units))
			}
		}
	})
	res, err := r.guest.Run(ctx, guest.Command{Script: bootedScript, Timeout: limit})
	stop()
	aside.Wait()
	if err != nil || !res.TimedOut && res.ExitCode == 0 { // a look that somebody has killed says nothing
		return err
	}
	return &StillBootingError{Machine: r.machine.Name(), After: time.Since(began), Units: r.startingUnits(ctx)}
}

// startingUnits are the units that systemd is starting; none if it does not say.
func (r *run) startingUnits(ctx context.Context) (units []string) {
	jobs, err := r.guest.Run(ctx, guest.Command{
		Script:  jobsScript + ` | while read -r n unit kind state; do [ "$state" != running ] || echo "$unit"; done`,
		Timeout: r.machine.lab.host.scale(attachTimeout)})
	if err != nil {
		return nil
	}
	for _, unit := range bytes.Fields(jobs.Stdout) {
		units = append(units, printable.Line(string(unit)))
	}
	return units
}

// settle waits until the boots of all machines that run are over.
func (l *Lab) settle(ctx context.Context) error {
	return each(l.Machines(), func(_ int, m *Machine) error {
		r := m.running()
		if r == nil {
			return nil
		}
		err := r.awake("snapshot")
		if err == nil {
			err = r.awaitReady(ctx)
		}
		if err == nil {
			err = r.awaitBooted(ctx, l.host.scale(settleLimit), func(string) {})
		}
		return r.explain(ctx, "snapshot", err)
	})
}

// saveTemplate saves the machine, which ends with that.
func (m *Machine) saveTemplate(ctx context.Context, d *snapshot.Draft) error {
	r := m.running()
	if err := as[vmm.Pauser](r).Pause(ctx); err != nil {
		return err
	}
	device, err := as[vmm.Snapshotter](r).Save(ctx, d.Memory)
	if err != nil {
		return err
	}
	kept, err := m.kind.keep(d.DiskPath)
	if err != nil {
		return err
	}
	for _, b := range kept {
		d.Formats = append(d.Formats, b.Format)
	}
	if d.Extra, err = json.Marshal(savedState{Agent: r.agentInstance(), Booted: true}); err != nil {
		return err
	}
	return d.Finish(device, m.console.Save().SinceBoot())
}

// errNotBooted is an entry of the cache that nobody has seen boot to the end:
// earlier versions saved what had taken too long.
var errNotBooted = errors.New("the machine had not booted")

func templateOf(e *snapshot.Entry) (*template, error) {
	var extra savedState
	if err := json.Unmarshal(e.Extra, &extra); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	if !extra.Booted {
		return nil, errors.Join(errNotBooted, e.Close())
	}
	return &template{entry: e, state: e.State, disks: e.Disks, text: e.Console, agent: extra.Agent}, nil
}

// templateInMemory is saveTemplate without the cache. dir is for the disk.
func (m *Machine) templateInMemory(ctx context.Context, dir string) (*template, error) {
	dir, err := os.MkdirTemp(dir, "t")
	if err != nil {
		return nil, err
	}
	s, err := m.capture(ctx, m.running(), dir)
	if err != nil {
		s.close()
		return nil, err
	}
	return &template{state: s.state, disks: s.disk, text: s.console.SinceBoot(), agent: s.agent}, nil
}
