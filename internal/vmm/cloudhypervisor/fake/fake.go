package fake

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/vmm/microvm/fake"
)

// Options are how a fake differs from a cloud-hypervisor that works. The zero value works.
type Options struct {
	Version string // default "53.0"
	Program bool   // it is a program, as the real one, and not a script that starts one

	fake.Faults // a refusal is the innermost error of a chain, with the status 500

	NoSocket bool // the API's socket never appears
	// Driver is how long it takes until the driver of the guest's vsock is up. A host that
	// connects before ends the process.
	Driver time.Duration
	fake.Manners
}

const name = "cloud-hypervisor"

// Main is the fake if this process was started as one, and returns otherwise.
func Main() { fake.Main(name, run) }

// Install makes this test binary the cloud-hypervisor of a test, on a host that seems to
// have KVM. It returns the program.
func Install(t fake.T, o Options) string {
	t.Helper()
	return fake.Install(t, name, "ATTEST_CLOUD_HYPERVISOR", o, o.Program)
}

func (o Options) version() string {
	if o.Version == "" {
		return "53.0"
	}
	return o.Version
}

// since reports whether the fake is of that version or newer.
func (o Options) since(version int) bool {
	var has int
	fmt.Sscanf(o.version(), "%d", &has)
	return has >= version
}

// run is the process.
func run(o Options, args []string) int {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(os.Stderr)
	version := flags.Bool("version", false, "")
	api := flags.String("api-socket", "", "")
	monitor := flags.String("event-monitor", "", "")
	if err := flags.Parse(args); err != nil || flags.NArg() > 0 {
		return 1
	}
	if *version {
		fmt.Printf("cloud-hypervisor v%s\n", o.version())
		return 0
	}
	m := &machine{Options: o, line: &fake.Vsock{Manners: o.Manners}, console: &console{keeps: o.since(53)}}
	var fd int
	if n, _ := fmt.Sscanf(*monitor, "fd=%d", &fd); n == 1 {
		m.events = os.NewFile(uintptr(fd), "events")
	}
	m.say("vmm", "starting", nil)
	if o.NoSocket {
		select {}
	}
	m.api = strings.TrimPrefix(*api, "path=")
	l, err := net.Listen("unix", m.api)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintln(os.Stderr, http.Serve(l, http.HandlerFunc(m.handle)))
	return 1
}

// say reports an event.
func (m *machine) say(source, event string, properties map[string]string) {
	if m.events == nil {
		return
	}
	b, err := json.MarshalIndent(map[string]any{
		"timestamp": map[string]int{"secs": 1, "nanos": 2}, "source": source, "event": event, "properties": properties,
	}, "", "  ")
	if err == nil {
		m.events.Write(b)
	}
}

// A console is the serial line. It has one listener at a time. What it says before there is
// one is lost in old versions.
type console struct {
	keeps bool

	mu   sync.Mutex
	conn net.Conn
	kept []byte
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.conn != nil:
		c.conn.Write(p)
	case c.keeps:
		c.kept = append(c.kept, p...)
	}
	return len(p), nil
}

// listen is the socket, and accept what a VMM does with it that has a VM.
func (c *console) accept(l net.Listener, typed func(net.Conn)) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		if c.conn != nil {
			c.conn.Close()
		}
		c.conn = conn
		conn.Write(c.kept)
		c.kept = nil
		c.mu.Unlock()
		go typed(conn)
	}
}
