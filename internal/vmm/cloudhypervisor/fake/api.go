package fake

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/vmm/microvm/fake"
	"github.com/attest-vm/attest/internal/wire"
)

// A machine is the one of this process.
type machine struct {
	Options
	api     string // the path of its socket
	events  *os.File
	line    *fake.Vsock
	console *console

	mu     sync.Mutex
	config *config // nil: no machine was created
	state  string  // "Created", "Running", "Paused"
	serial net.Listener
	guest  *fake.Guest
	memory []byte   // of a guest whose memory is not shared with its file
	shared *os.File // the memory of one that is
	disks  []*os.File
}

// A config is what of a machine's configuration matters here. It is written as it came.
type config struct {
	raw     json.RawMessage
	Memory  struct{ Zones []zone }
	Payload *struct{ Kernel, Cmdline, Initramfs string }
	Disks   []struct {
		Path     string
		ReadOnly bool
		Serial   string
		Limiter  fake.Limiter `json:"rate_limiter_config"`
	}
	Net    []struct{ TAP string }
	Serial struct{ Mode, Socket string }
	Vsock  *struct{ ID, Socket string }
}

type zone struct {
	ID, File string
	Size     int64
	Shared   bool
}

// A fault is a refused request.
type fault struct {
	status int
	chain  []string
}

func (f *fault) Error() string { return strings.Join(f.chain, ": ") }

// fail is a fault as versions before 53 number them all.
func (m *machine) fail(status int, chain ...string) error {
	if !m.since(53) {
		status = 500
	}
	return &fault{status, append([]string{"Error from API"}, chain...)}
}

func (m *machine) handle(w http.ResponseWriter, r *http.Request) {
	request := r.Method + " " + strings.TrimPrefix(r.URL.Path, "/api/v1/")
	body := new(bytes.Buffer)
	if r.ContentLength < 0 {
		w.WriteHeader(http.StatusBadRequest) // chunks
		return
	}
	body.ReadFrom(r.Body)
	refusal, done := m.Strike(w, request)
	if done {
		return
	}
	var answer any
	var err error
	if refusal != "" {
		err = m.fail(500, "The request failed", refusal)
	} else {
		m.mu.Lock()
		answer, err = m.answer(request, body.Bytes())
		m.mu.Unlock()
	}
	var f *fault
	switch {
	case errors.As(err, &f):
		text, _ := json.Marshal(f.chain)
		w.Header().Set("Content-Length", fmt.Sprint(len(text)))
		w.WriteHeader(f.status)
		w.Write(text)
	case err != nil:
		w.WriteHeader(http.StatusInternalServerError)
	case answer != nil:
		json.NewEncoder(w).Encode(answer)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// answer does what a request asks. mu is held.
func (m *machine) answer(request string, body []byte) (any, error) {
	switch request {
	case "GET vmm.ping":
		return map[string]any{"build_version": "v" + m.version(), "version": m.version(), "pid": os.Getpid(), "features": []string{"kvm"}}, nil
	case "GET vm.info":
		if m.config == nil {
			return nil, m.fail(404, "The VM info is not available", "VM is not created")
		}
		return map[string]any{"state": m.state, "config": m.config.raw}, nil
	case "PUT vm.create":
		return nil, m.create(body)
	case "PUT vm.boot":
		return nil, m.boot()
	case "PUT vm.pause":
		return nil, m.pause()
	case "PUT vm.resume":
		return nil, m.resume()
	case "PUT vm.snapshot":
		return nil, m.snapshot(body)
	case "PUT vm.restore":
		return nil, m.restore(body)
	case "PUT vm.power-button":
		return nil, m.tell("acpi: power button pressed")
	case "PUT vm.nmi":
		return nil, m.tell("Uhhuh. NMI received for unknown reason 20 on CPU 0.")
	}
	return nil, &fault{404, []string{"Not Found"}}
}

func (m *machine) create(body []byte) error {
	c := &config{raw: bytes.Clone(body)}
	if err := json.Unmarshal(body, c); err != nil {
		return &fault{400, []string{"Failed to deserialize JSON", err.Error()}}
	}
	switch {
	case m.config != nil:
		return m.fail(409, "The VM could not be created", "VM is already created")
	case c.Payload == nil:
		return m.fail(400, "The VM could not be created", "Error validating VM configuration", "Kernel missing")
	}
	return m.open(c)
}

// open binds the serial line's socket, in which connections wait for the VM.
func (m *machine) open(c *config) (err error) {
	if c.Serial.Mode == "Socket" {
		if m.serial, err = net.Listen("unix", c.Serial.Socket); err != nil {
			return m.fail(500, "The VM could not be created", "Error creating console devices", "Address in use (os error 98)")
		}
	}
	m.config, m.state = c, "Created"
	return nil
}

func (m *machine) boot() error {
	failed := func(chain ...string) error {
		return m.fail(500, append([]string{"The VM could not boot"}, chain...)...)
	}
	switch {
	case m.config == nil:
		return m.fail(404, "The VM could not boot", "VM config is missing")
	case m.state != "Created":
		return failed("VM is already created")
	}
	for _, path := range []string{m.config.Payload.Kernel, m.config.Payload.Initramfs} {
		if _, err := os.Stat(path); err != nil && path != "" {
			return failed("Cannot open kernel file", "No such file or directory (os error 2)")
		}
	}
	if err := m.devices(); err != nil {
		return failed(err.Error())
	}
	z := m.config.Memory.Zones[0]
	if !z.Shared {
		return failed("the fake boots on shared memory only")
	}
	var err error
	if m.shared, err = os.OpenFile(z.File, os.O_RDWR, 0); err != nil {
		return failed("Error from memory manager", "Failed to open shared file", err.Error())
	}
	m.say("vm", "booting", nil)
	m.begin(fake.Somebody())
	for _, d := range m.config.Disks {
		m.guest.Limited(d.Path, d.Limiter)
	}
	m.say("vm", "booted", nil)
	m.guest.Flee(m.Manners)
	return nil
}

// devices opens disks, network cards and the vsock.
func (m *machine) devices() error {
	for _, d := range m.config.Disks {
		flags := os.O_RDWR
		if d.ReadOnly {
			flags = os.O_RDONLY
		}
		f, err := os.OpenFile(d.Path, flags, 0)
		if err != nil {
			return fmt.Errorf("%s: I/O error (path=%s op=open): %w", "Cannot open disk path", d.Path, err)
		}
		m.disks = append(m.disks, f)
		// Whoever writes to a disk is alone with it.
		lock := unix.Flock_t{Type: unix.F_WRLCK}
		if d.ReadOnly {
			lock.Type = unix.F_RDLCK
		}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
			return fmt.Errorf("cannot lock %s: %w", d.Path, err)
		}
	}
	for _, n := range m.config.Net {
		if err := fake.Plug(n.TAP); err != nil {
			return fmt.Errorf("cannot open the TAP %s: %w", n.TAP, err)
		}
	}
	if m.config.Vsock != nil {
		if err := m.line.Listen(m.config.Vsock.Socket); err != nil {
			return fmt.Errorf("%s: %w", "Cannot create virtio-vsock backend", err)
		}
	}
	return nil
}

// begin lets a guest boot, whose name is in its memory. mu is held.
func (m *machine) begin(w fake.Who) {
	m.state = "Running"
	m.guest = fake.NewGuest(w, false, m.console, m.end)
	m.shared.WriteAt([]byte(w.Instance), 1<<20)
	guest, id := m.guest, m.config.Vsock.ID
	up := func() {
		m.line.Connect(guest)
		m.say("virtio-device", "activated", map[string]string{"id": id})
	}
	if m.line.Early = m.Driver > 0; m.line.Early {
		time.AfterFunc(m.Driver, up)
	} else {
		up()
	}
	m.listen()
	m.guest.Say("Linux version fake: " + m.config.Payload.Cmdline)
}

// listen lets those in who are interested in the serial line.
func (m *machine) listen() {
	if m.serial != nil {
		l := m.serial
		m.serial = nil
		// One that waits already hears all of it, as the VM takes longer to begin.
		l.(*net.UnixListener).SetDeadline(time.Now().Add(50 * time.Millisecond))
		if conn, err := l.Accept(); err == nil {
			m.console.conn = conn
			go func() { m.guest.Listen(conn) }()
		}
		l.(*net.UnixListener).SetDeadline(time.Time{})
		go m.console.accept(l, func(c net.Conn) { m.guest.Listen(c) })
	}
}

// end is the end of a guest: a power-off ends the process, a reset boots another guest.
func (m *machine) end(q wire.PowerRequest) {
	if q.Panic {
		m.say("guest", "panic", map[string]string{"event": "panic"})
	}
	if q.Reboot || q.Panic {
		m.say("vm", "rebooting", nil)
		time.AfterFunc(500*time.Millisecond, func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.say("vm", "rebooted", nil)
			m.begin(fake.Somebody())
		})
		return
	}
	for _, event := range []string{"shutdown", "deleted"} {
		m.say("vm", event, nil)
	}
	os.Remove(m.api)
	os.Remove(m.config.Vsock.Socket)
	os.Exit(0)
}

// tell has the guest say what its kernel would.
func (m *machine) tell(text string) error {
	if m.guest == nil {
		return m.fail(404, "The VM is not running")
	}
	m.guest.Say(text)
	return nil
}

func (m *machine) pause() error {
	switch m.state {
	case "Running":
	case "":
		return m.fail(404, "The VM could not be paused", "VM is not running")
	default:
		return m.fail(500, "The VM could not be paused", "Cannot pause VM", "Failed to pause migratable component",
			fmt.Sprintf("Invalid transition: InvalidStateTransition(%s, Paused)", m.state))
	}
	m.state = "Paused"
	m.guest.Stop(true)
	m.say("vm", "paused", nil)
	return nil
}

func (m *machine) resume() error {
	if m.state != "Paused" {
		return m.fail(500, "The VM could not resume", "Cannot resume VM", "Failed to resume migratable component",
			fmt.Sprintf("Invalid transition: InvalidStateTransition(%s, Running)", m.state))
	}
	m.state = "Running"
	m.guest.Stop(false)
	m.say("vm", "resumed", nil)
	return nil
}
