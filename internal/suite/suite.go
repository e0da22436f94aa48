package suite

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// Options say what to run. The zero value of each field but Files is ready to use.
type Options struct {
	Files         []string               // test files, and directories in which *_test.star are looked for
	Select        *regexp.Regexp         // only tests whose name, or FILE:NAME, matches
	OutDir        string                 // where tests put files; made if missing. Empty: the current directory
	Jobs          int                    // how many tests run at once; 0: half as many as there are processors
	Memory        int                    // MiB that the machines of all tests may take together; 0: what is available
	CPUs          int                    // how many processors they may have together; 0: four times those of the host
	Seed          int64                  // of everything random in the run, such as the order of tests; 0: a random one
	Timeout       time.Duration          // limit of the whole run; 0: that of MachineConfig, or none; negative: none
	Boot          string                 // how machines start: "warm" (or empty), "cold", or "both", each test once either way
	From          string                 // directory of a state that SaveTo has written: tests begin there, and setup does not run
	SaveTo        string                 // run setup only, and write the state that it leaves to this directory
	Keep          bool                   // leave the lab of a failed test in OutDir/kept, for attest debug; a file can ask for that itself
	MachineConfig string                 // path of a machine configuration
	Machines      []attest.MachineConfig // further machines that files find
	Language      string                 // of files whose ending is no language's
	Driver        *script.Driver         // nil: files are test files; see script.Driver. What tests copy out goes to OutDir itself, and machines boot when they are used
	StateDir      string                 // where machines with a start command have their files; see attest.LabConfig.StateDir
	Pcap          string                 // where the networks' frames are captured: a directory with a file for each test, or a file (.pcapng) if there is one test. Empty: nowhere
	NoBuild       bool                   // commands of test files that build what is tested do not run
	Vars          map[string]string      // that test files can ask for by var()
	Standing      *Standing              // what outlives the run; nil: nothing does
	Version       string                 // for the reports
	Stdout        io.Writer              // where print writes; nil: standard output
	Host          attest.HostConfig      // how labs use this host
	Open          Opener                 // nil: OpenHost(Host)
	// GiveUp is called when the run has not ended long after its time was over. It is
	// to end the program. Nil: nothing is done.
	GiveUp func(error)
}

// A Host makes labs. It is opened while the files are read, and used after all were found to make sense.
type Host interface {
	// NewLab makes a lab. What it returns may be an operation.Snapshotter.
	NewLab(context.Context, attest.LabConfig) (operation.Runner, error)
	String() string // one line about the host
	Close() error
}

// A StateHost is a Host that opens states which were saved.
type StateHost interface {
	Host
	// OpenState opens the state in a directory for labs of this configuration. One
	// of other machines is an error.
	OpenState(ctx context.Context, dir string, config attest.LabConfig) (operation.Snapshot, error)
}

// An Opener opens the Host of a run.
type Opener func(context.Context) (Host, error)

// OpenHost opens this host.
func OpenHost(config attest.HostConfig) Opener { return openHost(config, false) }

func openHost(config attest.HostConfig, lazy bool) Opener {
	return func(ctx context.Context) (Host, error) {
		h, err := attest.OpenHost(ctx, config)
		if err != nil {
			return nil, err
		}
		return realHost{h, lazy}, nil
	}
}

type realHost struct {
	*attest.Host
	lazy bool // machines boot when they are used
}

func (h realHost) String() string { return access.Speed(h.Host) }

// NewLab also builds the images and boots each machine that has never booted: a
// package that does not exist is a failure of the file, not of the test that happens
// to be the first to use the machine, and machines boot at once that the test starts
// one after the other.
func (h realHost) NewLab(ctx context.Context, config attest.LabConfig) (operation.Runner, error) {
	lab, err := h.Host.NewLab(ctx, config)
	if err != nil {
		return nil, err
	}
	ctx = event.WithScope(ctx, event.Scope{File: event.ScopeOf(ctx).File})
	err = lab.Prepare(ctx)
	if err == nil && !h.lazy {
		err = lab.WarmUp(ctx)
	}
	if err != nil {
		lab.Close()
		return nil, err
	}
	return operation.Of(lab), nil
}

func (h realHost) OpenState(ctx context.Context, dir string, config attest.LabConfig) (operation.Snapshot, error) {
	state, err := h.OpenSnapshot(ctx, dir, config)
	if err != nil {
		return nil, err
	}
	saved, declared := namesOf(state.Machines()), namesOf(config.Machines)
	if !slices.Equal(saved, declared) {
		state.Close()
		return nil, refusef(event.Invalid, "the state in %s has other machines than the file: %s, the file %s",
			dir, strings.Join(saved, ", "), strings.Join(declared, ", "))
	}
	return operation.StateOf(state), nil
}

func namesOf(machines []attest.MachineConfig) []string {
	var names []string
	for _, m := range machines {
		names = append(names, m.Name)
	}
	slices.Sort(names)
	return names
}

// A Summary is how a run ended.
type Summary struct {
	Status   event.Status
	Counts   map[event.Status]int // tests; also files that are invalid, and setups that failed
	Duration time.Duration
	TimedOut bool // the run's limit has ended it
}

// ExitCode is the exit code of attest run.
func (s Summary) ExitCode() int { return s.Status.ExitCode() }

// A TimeoutError is a run that took longer than it may.
type TimeoutError struct{ Limit time.Duration }

func (e *TimeoutError) Error() string {
	return fmt.Sprintf("the run timed out after %v", e.Limit)
}

// Status is that of a test which waits when the time is over.
func (e *TimeoutError) Status() event.Status { return event.Failed }

// Run runs test files and publishes all that happens on the bus of ctx, from
// RunStarted to RunFinished. Its error is one that belongs to no file: wrong
// usage, for which no event is published, or a host on which nothing runs; the
// Summary has its status. What is wrong with files and tests is no error.
func Run(ctx context.Context, opts Options) (Summary, error) {
	for opts.Seed == 0 {
		opts.Seed = rand.Int64()
	}
	r := &run{opts: opts, started: time.Now(), counts: map[event.Status]int{}, status: event.Skipped}
	if err := r.run(ctx); err != nil {
		r.status = event.Worst(r.status, event.Status(attest.StatusOf(err)))
		if ctx.Err() != nil {
			r.status = event.Interrupted
		}
		return r.finish(ctx), err
	}
	return r.finish(ctx), nil
}

type run struct {
	opts      Options
	started   time.Time
	announced bool // RunStarted was published
	host      Host
	admission *admission
	builds    builds
	early     *early // nil: nothing is started before files are read

	mu       sync.Mutex
	status   event.Status
	counts   map[event.Status]int
	timedOut bool  // its limit has ended it
	stopped  error // why tests did not run any more; nil if all did
}

func (r *run) run(ctx context.Context) (err error) {
	r.opts.Standing.begin(r.opts.Files)
	if r.opts.MachineConfig != "" {
		r.opts.Standing.follow(r.opts.MachineConfig)
	}
	loaded := false
	defer func() {
		if !loaded {
			r.opts.Standing.keepOld()
		}
	}()
	machines, timeout, err := configured(r.opts.MachineConfig)
	if err != nil {
		return err
	}
	ctx, cancel := r.limit(ctx, cmp.Or(r.opts.Timeout, timeout))
	defer cancel()
	defer func() { r.timedOut = timedOut(context.Cause(ctx)) }()
	opened := r.openHost(ctx)
	r.early = &early{opened: opened}
	defer func() {
		r.early.end()
		if host, openErr := opened(); openErr == nil && r.host == nil && r.opts.Standing == nil { // the run has not come to need it
			err = cmp.Or(err, asInfra("clean up", host.Close()))
		}
	}()
	plan, err := r.plan(ctx, machines)
	if err != nil {
		return err
	}
	if r.opts.SaveTo == "" {
		plan.refuseSetups()
	}
	plan.setAside(r.opts.Select)
	if plan.invalid() {
		r.announce(ctx, plan)
		r.refuse(ctx, plan)
		return nil
	}
	if err := plan.selectTests(r.opts.Select); err != nil {
		return err
	}
	if err := r.checkPcap(plan); err != nil {
		return err
	}
	if err := plan.checkVars(r.opts.Vars); err != nil {
		return err
	}
	r.host, err = opened()
	r.announce(ctx, plan)
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return asInfra("use this host", err)
	}
	loaded = true
	r.files(ctx, plan)
	if r.opts.Standing != nil {
		return nil
	}
	return asInfra("clean up", r.host.Close())
}

// openHost begins to open the host, which takes about as long as it takes to read a file in Python,
// and returns the function that waits for it.
func (r *run) openHost(ctx context.Context) func() (Host, error) {
	open := r.opts.Open
	if open == nil {
		config := r.opts.Host
		if strings.Contains(config.Backend, ",") {
			config.Backend = "" // the machines have theirs
		}
		open = openHost(config, r.opts.Driver != nil)
	}
	var host Host
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		host, err = r.opts.Standing.open(ctx, open)
	}()
	return func() (Host, error) {
		<-done
		return host, err
	}
}

// giveUpGrace is how long a run may take to clean up, beside what it keeps.
const giveUpGrace = time.Minute

// limit ends the run when its time is over, and gives it up when it has not ended
// long after that.
func (r *run) limit(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if limit <= 0 {
		return context.WithCancel(ctx)
	}
	over := &TimeoutError{limit}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, over)
	if r.opts.GiveUp == nil {
		return ctx, cancel
	}
	last := time.AfterFunc(limit+keepLimit+giveUpGrace, func() { r.opts.GiveUp(over) })
	return ctx, func() {
		last.Stop()
		cancel()
	}
}

// announce publishes RunStarted, and after it what files said while they were
// loaded.
func (r *run) announce(ctx context.Context, p *plan) {
	e := event.RunStarted{Version: r.opts.Version, Seed: r.opts.Seed, Output: r.opts.OutDir}
	e.Hostname, _ = os.Hostname() // without them a report says less
	e.Dir, _ = os.Getwd()
	if r.opts.Boot != "warm" {
		e.Boot = r.opts.Boot
	}
	for _, f := range p.files {
		e.Files = append(e.Files, f.path)
	}
	if r.host != nil {
		e.Host = r.host.String()
	}
	r.announced = true
	event.Publish(ctx, e)
	for _, rec := range p.said {
		event.Publish(event.WithScope(ctx, rec.Scope), rec.Event)
	}
}

// finish publishes RunFinished.
func (r *run) finish(ctx context.Context) Summary {
	switch {
	case r.stopped == nil:
	case !timedOut(r.stopped):
		r.status = event.Worst(r.status, event.Interrupted)
	case r.status.ExitCode() == 0: // otherwise what ended it says more
		r.status = event.Failed
	}
	if r.status == event.Skipped && ctx.Err() == nil {
		r.status = event.Passed
	}
	s := Summary{Status: r.status, Counts: r.counts, Duration: time.Since(r.started), TimedOut: r.timedOut}
	if r.announced {
		event.Publish(ctx, event.RunFinished{Status: s.Status, Duration: s.Duration, Counts: s.Counts})
	}
	return s
}

// refuse reports the files that cannot be run. The others do not run either.
func (r *run) refuse(ctx context.Context, p *plan) {
	for _, f := range p.files {
		ctx := event.WithScope(ctx, event.Scope{File: f.path})
		done := event.FileFinished{Status: event.Skipped}
		if f.err != nil {
			status := event.Status(attest.StatusOf(f.err))
			if timedOut(f.err) {
				status = event.Invalid // what reads without end is to be mended
			}
			done.Failure = failureOf(f.err, status)
			done.Status = done.Failure.Status
			r.count(done.Status)
		}
		event.Publish(ctx, event.FileStarted{Tests: f.names()})
		event.Publish(ctx, done)
	}
}

// count adds to the run's result.
func (r *run) count(s event.Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[s]++
	r.status = event.Worst(r.status, s)
}

// stop notes why tests do not run any more.
func (r *run) stop(cause error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = cause
}

// boots are the passes of each value of Options.Boot.
var boots = map[string][]pass{
	"":     {{}},
	"warm": {{boot: attest.BootWarm}},
	"cold": {{boot: attest.BootCold}},
	"both": {{boot: attest.BootCold, label: "cold"}, {boot: attest.BootWarm, label: "warm"}},
}

// files runs all files, several at once.
func (r *run) files(ctx context.Context, p *plan) {
	r.admission = r.opts.admission()
	var wg sync.WaitGroup
	for _, f := range p.files {
		if len(f.tests) == 0 && r.opts.SaveTo == "" {
			continue
		}
		var passes []*pass
		for _, pass := range r.passes(f) {
			pass.ticket = r.admission.enqueue(pass.file.begins(), false)
			passes = append(passes, pass)
		}
		wg.Go(func() { r.file(ctx, f, passes) })
	}
	wg.Wait()
}

// cpusEach is how many processors guests may have for each of the host's: most
// of them wait for something most of the time.
const cpusEach = 4

func (o *Options) admission() *admission {
	a := &admission{jobs: o.Jobs, room: need{o.Memory, o.CPUs}}
	if a.jobs <= 0 {
		// A test's machines keep about two processors busy: the guests' and
		// that of the VMM's own threads.
		a.jobs = max(1, runtime.NumCPU()/2)
	}
	if a.room.memory <= 0 {
		a.room.memory = int(image.MemoryAvailable() >> 20 * 9 / 10)
	}
	if a.room.cpus <= 0 {
		a.room.cpus = cpusEach * runtime.NumCPU()
	}
	return a
}

// shuffled are tests in the order in which they run: another one for each seed,
// so that a test that needs what another one left does not go unnoticed.
func (r *run) shuffled(tests []script.Test) []script.Test {
	out := slices.Clone(tests)
	random := rand.New(rand.NewPCG(uint64(r.opts.Seed), 0))
	random.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// asInfra makes an error that has no kind of its own one of the host: no test
// has run when it happens.
func asInfra(action string, err error) error {
	if attest.StatusOf(err) == attest.Failed {
		return &attest.InfraError{Action: action, Err: err}
	}
	return err
}

func (o *Options) stdout() io.Writer {
	if o.Stdout == nil {
		return os.Stdout
	}
	return o.Stdout
}

// A refusal is a reason not to begin, with its kind.
type refusal struct {
	status  event.Status
	message string
}

func (e *refusal) Error() string        { return e.message }
func (e *refusal) Status() event.Status { return e.status }

func refusef(s event.Status, format string, args ...any) error {
	return &refusal{s, strings.TrimSpace(fmt.Sprintf(format, args...))}
}
