package fake

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/vmm/microvm/fake"
	"github.com/attest-vm/attest/internal/wire"
)

// A machine is the one of this process.
type machine struct {
	Options
	pci bool

	mu    sync.Mutex
	state string // "Not started", "Running", "Paused"
	saved
	fresh bool // what it was restored from is to be undone for the guest: its connections are cut
	guest *fake.Guest
	line  *fake.Vsock
}

// saved is all that a state file has.
type saved struct {
	Format  string // of the fake's version; empty: it is no state of a Firecracker
	Machine machineConfig
	Boot    bootSource
	Drives  []drive
	Pmem    []pmem
	NICs    []nic
	Vsock   *vsock
	Who     fake.Who
}

// The bodies of requests, with all fields that a version has (swagger/firecracker.yaml).
type (
	machineConfig struct {
		VCPUs     *int   `json:"vcpu_count"`
		Memory    *int   `json:"mem_size_mib"`
		SMT       bool   `json:"smt"`
		Dirty     bool   `json:"track_dirty_pages"`
		HugePages string `json:"huge_pages"`
	}
	bootSource struct {
		Kernel string `json:"kernel_image_path"`
		Args   string `json:"boot_args"`
		Initrd string `json:"initrd_path"`
	}
	drive struct {
		ID       string `json:"drive_id"`
		Root     *bool  `json:"is_root_device"`
		Path     string `json:"path_on_host"`
		ReadOnly bool   `json:"is_read_only"`
		Cache    string `json:"cache_type"`
		Engine   string `json:"io_engine"`

		Limiter fake.Limiter `json:"rate_limiter"`
	}
	nic struct {
		ID  string `json:"iface_id"`
		TAP string `json:"host_dev_name"`
		MAC string `json:"guest_mac"`
		MTU int    `json:"mtu" since:"16"`
	}
	vsock struct {
		CID  int    `json:"guest_cid"`
		Path string `json:"uds_path"`
	}
	pmem struct {
		ID       string `json:"id"`
		Path     string `json:"path_on_host"`
		Root     bool   `json:"root_device"`
		ReadOnly bool   `json:"read_only"`
	}
	entropy struct{}
	action  struct {
		Type string `json:"action_type"`
	}
	vmState struct {
		State string `json:"state"`
	}
	snapshotCreate struct {
		Type   string `json:"snapshot_type"`
		State  string `json:"snapshot_path"`
		Memory string `json:"mem_file_path"`
	}
	snapshotLoad struct {
		State   string `json:"snapshot_path"`
		Memory  string `json:"mem_file_path"`
		Backend *struct {
			Type string `json:"backend_type"`
			Path string `json:"backend_path"`
		} `json:"mem_backend"`
		Resume   bool            `json:"resume_vm"`
		Dirty    bool            `json:"track_dirty_pages" since:"13"`
		Networks json.RawMessage `json:"network_overrides" since:"12"`
		Clock    bool            `json:"clock_realtime" since:"15"`
		Vsock    json.RawMessage `json:"vsock_override" since:"16"`
	}
)

// A fault is a refused request.
type fault struct {
	message string
	exit    bool // the process ends after it
}

func (f *fault) Error() string { return f.message }

func faultf(format string, args ...any) error { return &fault{message: fmt.Sprintf(format, args...)} }

// decode is as strict as serde with deny_unknown_fields.
func (m *machine) decode(body []byte, into any) error {
	const prefix = "An error occurred when deserializing the json body of a request: "
	var given map[string]json.RawMessage
	if err := json.Unmarshal(body, &given); err != nil {
		return faultf("%s%v.", prefix, err)
	}
	typ, known := reflect.TypeOf(into).Elem(), []string{}
	for i := range typ.NumField() {
		f := typ.Field(i)
		var minor int
		fmt.Sscan(f.Tag.Get("since"), &minor)
		if m.since(minor) {
			known = append(known, f.Tag.Get("json"))
		}
	}
	for key := range given {
		if !slices.Contains(known, key) {
			return faultf("%sunknown field `%s`, expected one of `%s` at line 1 column %d.", prefix, key, strings.Join(known, "`, `"), len(body))
		}
	}
	if err := json.Unmarshal(body, into); err != nil {
		return faultf("%s%v.", prefix, err)
	}
	return nil
}

// serve answers requests until the process ends.
func (m *machine) serve(path string) int {
	if m.NoSocket {
		select {}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintln(os.Stderr, http.Serve(l, http.HandlerFunc(m.handle)))
	return 1
}

func (m *machine) handle(w http.ResponseWriter, r *http.Request) {
	request := r.Method + " " + r.URL.Path
	body := new(bytes.Buffer)
	if r.ContentLength < 0 {
		http.Error(w, `{"fault_message":"chunks are not supported"}`, http.StatusBadRequest)
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
		err = faultf("%s", refusal)
	} else {
		m.mu.Lock()
		answer, err = m.answer(request, body.Bytes())
		m.mu.Unlock()
	}
	switch f, _ := err.(*fault); {
	case err != nil:
		text, _ := json.Marshal(map[string]string{"fault_message": err.Error()})
		w.Header().Set("Content-Length", fmt.Sprint(len(text)))
		w.WriteHeader(http.StatusBadRequest)
		w.Write(text)
		if f != nil && f.exit {
			w.(http.Flusher).Flush()
			go func() { os.Exit(1) }()
		}
	case answer != nil:
		json.NewEncoder(w).Encode(answer)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

var (
	withID = regexp.MustCompile(`^(PUT /(?:drives|pmem|network-interfaces))/(.*)$`)
	idRule = regexp.MustCompile(`^[A-Za-z0-9_]+$`)
)

// configures says which requests are for a machine that has not started.
var configures = []string{"PUT /machine-config", "PUT /boot-source", "PUT /drives", "PUT /pmem", "PUT /network-interfaces", "PUT /vsock", "PUT /entropy"}

// answer does what a request asks. mu is held.
func (m *machine) answer(request string, body []byte) (any, error) {
	id := ""
	if found := withID.FindStringSubmatch(request); found != nil {
		if request, id = found[1], found[2]; !idRule.MatchString(id) {
			return nil, faultf("API Resource IDs can only contain alphanumeric characters and underscores.")
		}
	}
	if slices.Contains(configures, request) && m.state != "Not started" {
		return nil, faultf("The requested operation is not supported after starting the microVM.")
	}
	switch request {
	case "GET /":
		return map[string]string{"id": "anonymous-instance", "state": m.state, "vmm_version": m.version(), "app_name": "Firecracker"}, nil
	case "GET /version":
		return map[string]string{"firecracker_version": m.version()}, nil
	case "PUT /machine-config":
		return nil, m.putMachine(body)
	case "PUT /boot-source":
		return nil, m.putBoot(body)
	case "PUT /drives":
		return nil, m.putDrive(id, body)
	case "PUT /pmem":
		if !m.since(14) {
			break
		}
		return nil, m.putPmem(id, body)
	case "PUT /network-interfaces":
		return nil, m.putNIC(id, body)
	case "PUT /vsock":
		return nil, m.putVsock(body)
	case "PUT /entropy":
		return nil, m.decode(body, new(entropy))
	case "PUT /actions":
		return nil, m.act(body)
	case "PATCH /vm":
		return nil, m.patchVM(body)
	case "PUT /snapshot/create":
		return nil, m.create(body)
	case "PUT /snapshot/load":
		return nil, m.load(body)
	}
	return nil, faultf("Invalid request method and/or path: %s.", strings.Replace(request, " /", " ", 1))
}

func (m *machine) putMachine(body []byte) error {
	var c machineConfig
	if err := m.decode(body, &c); err != nil {
		return err
	}
	switch {
	case c.VCPUs == nil || c.Memory == nil:
		return faultf("An error occurred when deserializing the json body of a request: missing field `vcpu_count` at line 1 column %d.", len(body))
	case *c.VCPUs < 1 || *c.VCPUs > 32:
		return faultf("The vCPU number is invalid! The vCPU number can only be 1 or an even number when SMT is enabled.")
	case c.HugePages == "Transparent" && !m.since(17):
		return faultf("An error occurred when deserializing the json body of a request: unknown variant `Transparent`, expected `None` or `2M` at line 1 column %d.", len(body))
	}
	m.Machine = c
	return nil
}

func (m *machine) putBoot(body []byte) error {
	var b bootSource
	if err := m.decode(body, &b); err != nil {
		return err
	}
	for what, path := range map[string]string{"kernel": b.Kernel, "initrd": b.Initrd} {
		if _, err := os.Stat(path); err != nil && path != "" {
			return faultf("Boot source error: The %s file cannot be opened: No such file or directory (os error 2).", what)
		}
	}
	m.Boot = b
	return nil
}

func (m *machine) putDrive(id string, body []byte) error {
	var d drive
	if err := m.decode(body, &d); err != nil {
		return err
	}
	if d.ID != id || d.Root == nil {
		return faultf("The id from the path [%s] does not match the id from the body [%s]!", id, d.ID)
	}
	if err := d.open(); err != nil {
		return faultf("Drive config error: Unable to create the virtio block device: Virtio backend error: %v", err)
	}
	m.Drives = append(m.Drives, d)
	return nil
}

func (m *machine) putPmem(id string, body []byte) error {
	var p pmem
	if err := m.decode(body, &p); err != nil {
		return err
	}
	if p.ID != id {
		return faultf("The id from the path [%s] does not match the id from the body [%s]!", id, p.ID)
	}
	if err := p.drive().open(); err != nil {
		return faultf("Pmem config error: %v", err)
	}
	m.Pmem = append(m.Pmem, p)
	return nil
}

// drive is a disk that is opened in the same way.
func (p pmem) drive() drive { return drive{ID: p.ID, Path: p.Path, ReadOnly: p.ReadOnly} }

func (d drive) open() error {
	flags := os.O_RDWR
	if d.ReadOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(d.Path, flags, 0)
	if err != nil {
		return faultf("Error manipulating the backing file: No such file or directory (os error 2) %s", d.Path)
	}
	return f.Close()
}

func (m *machine) act(body []byte) error {
	var a action
	if err := m.decode(body, &a); err != nil {
		return err
	}
	switch {
	case a.Type == "SendCtrlAltDel" && m.state == "Not started":
		return faultf("The requested operation is not supported before starting the microVM.")
	case a.Type == "SendCtrlAltDel":
		m.guest.Say("reboot: Restarting system")
		time.AfterFunc(50*time.Millisecond, func() { end(wire.PowerRequest{Reboot: true}) })
		return nil
	case a.Type != "InstanceStart":
		return faultf("An error occurred when deserializing the json body of a request: unknown variant `%s`.", a.Type)
	case m.state != "Not started":
		return faultf("The requested operation is not supported after starting the microVM.")
	case m.Boot.Kernel == "":
		return faultf("Start microvm error: Cannot start microvm without kernel configuration.")
	}
	magic, err := os.ReadFile(m.Boot.Kernel)
	if err != nil || !bytes.HasPrefix(magic, []byte("\x7fELF")) && !m.since(17) {
		return faultf("Start microvm error: Cannot load kernel due to invalid memory configuration or invalid kernel image: Kernel Loader: failed to load ELF kernel image: Kernel Loader: Invalid ELF magic number")
	}
	m.state = "Running"
	m.boot()
	return nil
}

func (m *machine) patchVM(body []byte) error {
	var s vmState
	if err := m.decode(body, &s); err != nil {
		return err
	}
	if m.state == "Not started" {
		return faultf("The requested operation is not supported before starting the microVM.")
	}
	switch s.State {
	case "Paused":
		m.state = "Paused"
		m.guest.Stop(true)
	case "Resumed":
		m.state = "Running"
		m.resume()
	default:
		return faultf("An error occurred when deserializing the json body of a request: unknown variant `%s`, expected `Paused` or `Resumed`.", s.State)
	}
	return nil
}
