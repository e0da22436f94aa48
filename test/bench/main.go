// Command bench measures attest beside the NixOS test driver's protocol: on one
// host, in one run, on the same guest image, the samples of both taken in turn.
// docs/benchmarks.md says what each row measures. Run it with
//
//	make bench
//
// or, for a look while developing, with few samples:
//
//	go run ./test/bench -attest bin/attest -quick
//
// It prints a table on standard output, its progress on standard error, and
// exits with 0 whether the targets are met or not: it measures, it does not
// assert.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/boot"
	"github.com/attest-vm/attest/internal/event"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == witnessArg {
		witness(os.Stdin, os.Stdout)
		return
	}
	if len(os.Args) > 2 && os.Args[1] == peerArg {
		if err := runPeer(os.Args[2:]); err != nil {
			fmt.Fprintf(os.Stderr, "bench: network peer: %v\n", err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.StringVar(&o.attest, "attest", "bin/attest", "the attest `binary` to measure")
	flag.StringVar(&o.json, "json", "", "write the results as JSON to `file`")
	flag.StringVar(&o.markdown, "markdown", "", "replace the table in `file`, such as docs/benchmarks.md, by this run's")
	flag.BoolVar(&o.quick, "quick", false, "take few samples, to see whether it works")
	flag.BoolVar(&o.network, "network", false, "only the rows about networks, which need no guests")
	flag.BoolVar(&o.python, "python", false, "only the rows about scripts in Python, and the boots that they are compared with")
	flag.BoolVar(&o.root, "root", false, "only the rows about a root on a disk of its own beside an overlay")
	flag.BoolVar(&o.screens, "screens", false, "only the rows about screens, which need no guests")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "bench: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

type options struct {
	attest, json, markdown                string
	quick, network, python, root, screens bool
}

// counts are the numbers of samples, of attest and of the reference. One of the
// reference costs some hundred times as much.
type counts struct {
	starts                  int // of the binary
	bulks, trips            int // over each switch: transfers, and turns of round trips
	boots, referenceBoots   int
	warm                    int // starts from a snapshot, saves, restores and forks
	rounds                  int // of commands; each has as many as the next two say
	commands, references    int
	pauses, referencePauses int // of commands after a pause, in each round
	waits, referenceWaits   int // for each kind of wait
	copies, referenceCopies int
	everyScreen             int // one in so many is read
	sights, referenceSights int // waits for a text
	size, sizeIn, sizeOut   int // of what is copied, and of what the reference copies; MiB
}

var (
	full = counts{
		starts: 20, bulks: 5, trips: 200, boots: 3, referenceBoots: 2, warm: 7,
		rounds: 10, commands: 25, references: 4, pauses: 10, referencePauses: 2,
		waits: 20, referenceWaits: 6, copies: 2, referenceCopies: 1, everyScreen: 1, sights: 10, referenceSights: 5, size: 256, sizeIn: 1, sizeOut: 8,
	}
	quick = counts{
		starts: 5, bulks: 1, trips: 5, boots: 1, referenceBoots: 1, warm: 2,
		rounds: 2, commands: 20, references: 3, pauses: 5, referencePauses: 1,
		waits: 3, referenceWaits: 1, copies: 1, referenceCopies: 1, everyScreen: 6, sights: 2, referenceSights: 1, size: 32, sizeIn: 1, sizeOut: 1,
	}
)

// A bench is one run.
type bench struct {
	counts
	host    *attest.Host
	attest  string // the binary
	dir     string // for files on the host; removed at the end
	started time.Time
}

func run(ctx context.Context, o options) (err error) {
	b := &bench{counts: full, started: time.Now()}
	if o.quick {
		b.counts = quick
	}
	if b.attest, err = filepath.Abs(o.attest); err != nil {
		return err
	}
	if _, err := os.Stat(b.attest); err != nil {
		return fmt.Errorf("no attest binary (make build makes it): %w", err)
	}
	// What is measured is also what runs in the guests.
	if err := os.Setenv(boot.BinaryEnv, b.attest+"-agent"); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "attest-bench"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	bus := &event.Bus{}
	defer bus.Subscribe(func(r event.Record) {
		if p, ok := r.Event.(event.Progress); ok && p.Message != "" {
			b.say("%s: %s", p.Title, p.Message)
		}
	})()
	ctx = event.WithBus(ctx, bus)
	if b.host, err = attest.OpenHost(ctx, attest.HostConfig{}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.host.Close()) }()

	results := Results{Time: b.started.UTC().Truncate(time.Second)}
	if results.Host, err = describeHost(ctx); err != nil {
		return err
	}
	switch {
	case o.network:
		results.Rows, err = b.networkRows(ctx)
	case o.root:
		results.Rows, err = b.rootRows(ctx)
	case o.python:
		results.Rows, err = b.pythonAlone(ctx)
	case o.screens:
		results.Rows, err = b.screenRows(ctx)
	default:
		results.Rows, results.Guest, err = b.measure(ctx)
	}
	if err != nil {
		return err
	}
	results.Host.LoadAfter = load()
	results.Seconds = time.Since(b.started).Seconds()
	return results.write(o)
}

// say reports progress.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%5.0fs  %s\n", time.Since(b.started).Seconds(), fmt.Sprintf(format, args...))
}
