package suite

import (
	"context"
	"path/filepath"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
)

// isFile reports whether Options.Pcap is the name of a file, and not of a directory.
func isFile(pcap string) bool {
	ext := filepath.Ext(pcap)
	return ext == ".pcapng" || ext == ".pcap"
}

// checkPcap refuses one file for several tests.
func (r *run) checkPcap(p *plan) error {
	tests, pcap := 0, r.opts.Pcap
	for _, f := range p.files {
		tests += len(f.tests) * len(r.passes(f))
	}
	if isFile(pcap) && tests > 1 {
		return refusef(event.Invalid, "--pcap %s is one file, but %d tests run and each writes its own; name a directory, or choose one test with --run", pcap, tests)
	}
	return nil
}

// capture writes all frames of a lab to a file of the test that ctx belongs to.
// The capture ends with the test.
func (p *pass) capture(ctx context.Context, lab operation.Runner) error {
	c, ok := lab.(operation.Capturer)
	if p.suite.opts.Pcap == "" || !ok {
		return nil
	}
	path, err := filepath.Abs(p.suite.opts.Pcap)
	if err != nil {
		return asInfra("name the capture", err)
	}
	if !isFile(path) {
		path = filepath.Join(path, event.ScopeOf(ctx).Name()+".pcapng")
	}
	return c.Capture(ctx, path)
}
