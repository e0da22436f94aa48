package attest

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/network"
)

// A Capture writes the frames of all machines of a lab to a file that Wireshark
// and tshark read.
type Capture struct {
	capture *network.Capture
	network *Network
	test    string
	once    sync.Once
	err     error
}

// Capture begins to write all frames of all machines to a pcapng file, below the
// lab's OutDir unless the path is absolute. Each network card is an interface; a
// frame that a fault has lost has a comment, and so has the place where each
// fault began and ended. It ends with [Capture.Stop], or with the test.
func (n *Network) Capture(ctx context.Context, path string) (c *Capture, err error) {
	err = step(ctx, "", "network.capture", strconv.Quote(path), func(ctx context.Context) error {
		if path == "" {
			return &ConfigError{"network.capture", "it needs the name of a file"}
		}
		name := path
		if !filepath.IsAbs(name) {
			name = n.lab.out.place(ctx, "", name)
		}
		f, path, err := n.lab.out.create(name, "network.capture")
		if err != nil {
			return fmt.Errorf("network.capture(%q): %w", name, err)
		}
		capture, err := n.fabric.Capture(f, path)
		if err != nil {
			return &InfraError{Action: "capture the network", Err: err}
		}
		c = &Capture{capture: capture, network: n, test: event.ScopeOf(ctx).Test}
		n.captures.add(c)
		return nil
	})
	return c, err
}

// Path is the file's name.
func (c *Capture) Path() string { return c.capture.Path() }

// Stop ends the capture and returns when all of it is in the file. It can be
// called more than once.
func (c *Capture) Stop(ctx context.Context) error {
	c.once.Do(func() {
		if err := c.capture.Close(); err != nil {
			c.err = &InfraError{Action: "write " + c.Path(), Err: err}
		}
		c.network.captures.remove(c)
		if missed := c.capture.Missed(); missed > 0 {
			event.Warnf(ctx, "network: %s lacks %d frames because the disk was too slow", c.Path(), missed)
		}
		event.Publish(ctx, event.Artifact{Kind: "pcap", Path: c.Path()})
	})
	return c.err
}

// String names the capture in messages.
func (c *Capture) String() string { return fmt.Sprintf("capture %s", c.Path()) }
