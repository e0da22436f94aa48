package main

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// takeOver ends attest's agent and serves the host in its place, detached from the
// command that has started it.
func takeOver(mode string) {
	if os.Getenv("HOSTILE") == "" {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err == nil {
			_, err = os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
				Env: []string{"HOSTILE=1"}, Files: []*os.File{null, null, null}, Sys: &syscall.SysProcAttr{Setsid: true},
			})
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	kmsg, _ := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	say := func(format string, args ...any) { fmt.Fprintf(kmsg, "hostile: "+format+"\n", args...) }
	time.Sleep(time.Second) // until the host knows that the command has ended
	for range 3 {
		pids := agents()
		for _, signal := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
			for _, pid := range pids {
				syscall.Kill(pid, signal)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	if mode == "nobody" {
		say("nobody serves this guest")
		return
	}
	port, err := openPort()
	for ; err != nil; port, err = openPort() {
		time.Sleep(20 * time.Millisecond)
	}
	say("%s serves this guest", mode)
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	a := &agent{mode: mode, port: port, boot: strings.TrimSpace(string(boot))}
	a.w = wire.NewWriter(port)
	a.serve()
}

// agents are the processes of attest's agent, which looks after itself.
func agents() (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		args, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
		if pid != 1 && pid != os.Getpid() && (bytes.HasPrefix(args, []byte(wire.AgentArg0)) || bytes.HasPrefix(comm, []byte("attest-"))) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func openPort() (*os.File, error) {
	names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, file := range names {
		if name, _ := os.ReadFile(file); strings.TrimSpace(string(name)) == wire.AgentPort {
			return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(file)), os.O_RDWR, 0)
		}
	}
	return nil, unix.ENOENT
}

// An agent breaks the rules in the way that its mode says.
type agent struct {
	mode string
	port *os.File
	boot string // the kernel's: another would be that of another boot
	w    *wire.Writer

	mu  sync.Mutex
	seq uint32
}

// Read waits while nobody is at the host's end.
func (a *agent) Read(p []byte) (int, error) {
	for {
		n, err := a.port.Read(p)
		if n > 0 || err != nil && err.Error() != "EOF" {
			return n, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// send numbers what has to be.
func (a *agent) send(frames ...wire.Frame) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range frames {
		if frames[i].Type >= wire.Open {
			a.seq++
			frames[i].Seq = a.seq
		}
	}
	a.w.Send(frames...)
}

func (a *agent) result(stream uint32, json string) {
	a.send(wire.Frame{Type: wire.Result, Stream: stream, Payload: []byte(json)})
}

func (a *agent) data(stream uint32, channel uint8, p []byte) {
	for len(p) > 0 {
		n := min(len(p), wire.MaxPayload)
		a.send(wire.Frame{Type: wire.Data, Channel: channel, Stream: stream, Payload: bytes.Clone(p[:n])})
		p = p[n:]
	}
}

// raw is a header of any sort.
func raw(typ, channel byte, stream, length uint32) []byte {
	b := []byte{0xA7, typ, channel, 0}
	b = binary.BigEndian.AppendUint32(b, stream)
	b = binary.BigEndian.AppendUint32(b, length)
	var sum byte
	for _, c := range b {
		sum += c
	}
	b[3] = -sum
	return b
}

func (a *agent) serve() {
	p, _ := json.Marshal(wire.AnnounceMessage{Instance: "hostile", BootID: a.boot})
	announcement := wire.Frame{Type: wire.Announce, Payload: p}
	a.w.Restart(announcement)
	switch a.mode {
	case "announce":
		for {
			a.w.Restart(announcement)
			time.Sleep(time.Millisecond)
		}
	case "garbage":
		b := make([]byte, wire.MaxPayload)
		for {
			rand.Read(b)
			a.port.Write(b)
		}
	case "headers":
		for i := uint32(0); ; i++ {
			a.w.Restart(announcement)
			a.port.Write(raw(byte(i%20), byte(i), i, []uint32{0xffffffff, wire.MaxPayload + 1, 0, 7}[i%4]))
		}
	}
	dec := wire.NewDecoder(a)
	for {
		f, err := dec.Next()
		if err != nil {
			continue
		}
		switch f.Type {
		case wire.Hello:
			a.hello(f.Payload)
		case wire.Ping:
			if a.mode != "silent" {
				a.send(wire.Frame{Type: wire.Pong, Stream: f.Stream})
			}
		case wire.Open:
			op, _, _ := bytes.Cut(f.Payload, []byte{0})
			go a.operation(string(op), f.Stream)
		}
	}
}

func (a *agent) hello(payload []byte) {
	var h wire.HelloMessage
	json.Unmarshal(payload, &h)
	a.mu.Lock()
	a.seq = 0
	a.mu.Unlock()
	info := wire.Info{Version: wire.Version, Build: "x\x1b[31m", Instance: "hostile", BootID: a.boot, Kernel: "6\n\x1b]0;title\a", Hostname: "<script>", Uptime: time.Minute}
	switch a.mode {
	case "no welcome":
		return
	case "version":
		info.Version++
	case "implausible welcome":
		info.Uptime = -5
	case "large welcome":
		info.Kernel = strings.Repeat("A", 60000)
	}
	p, _ := json.Marshal(wire.WelcomeMessage{Session: h.Session, Try: h.Try, Info: info})
	a.w.Restart(wire.Frame{Type: wire.Welcome, Payload: p})
	switch a.mode {
	case "unasked results":
		for i := uint32(1); i < 200; i++ {
			a.result(i, `{"result":{"exit_code":0}}`)
			a.data(i, wire.Stdout, []byte("x"))
		}
	case "opens":
		a.send(wire.Frame{Type: wire.Open, Stream: 1, Payload: []byte("exec\x00{}\x00")})
	case "unasked pongs":
		for i := range uint32(100) {
			a.send(wire.Frame{Type: wire.Pong, Stream: i})
		}
	case "acknowledges all":
		a.send(wire.Frame{Type: wire.Ack, Stream: 1 << 31})
	}
}

const escapes = "\x1b]0;PWNED\x07\x1b[2J<script>alert(1)</script>]]>&#0;\x00\x9b31m\u202egnp\u2066\r\n\xff\xfe\n\x1b]52;c;cm0gLXJm\x07"

func (a *agent) operation(op string, stream uint32) {
	switch op {
	case wire.OpIdentity, wire.OpClock, wire.OpEcho, wire.OpWarm, wire.OpSettle, wire.OpJobs:
		p, _ := json.Marshal(map[string]any{"result": map[string]any{"time": time.Now()}})
		a.result(stream, string(p))
		return
	case wire.OpGetTar:
		a.archive(stream)
		return
	}
	data := bytes.Repeat([]byte("yes\n"), wire.MaxPayload/4)
	switch a.mode {
	case "endless output":
		for {
			a.data(stream, wire.Stdout, data)
			time.Sleep(5 * time.Millisecond)
		}
	case "more than its credit":
		for range 20 {
			a.data(stream, wire.Stdout, data)
		}
	case "endless credit":
		for range 4 {
			a.send(wire.Frame{Type: wire.Credit, Stream: stream, Payload: []byte{0xff, 0xff, 0xff, 0xff}})
		}
	case "restarts":
		for range 100000 {
			a.send(wire.Frame{Type: wire.Data, Channel: wire.Stderr, Stream: stream, Payload: []byte("x")}, wire.Frame{Type: wire.Restart, Channel: wire.Stderr, Stream: stream})
		}
		a.result(stream, `{"result":{}}`)
	case "half a frame":
		a.port.Write(append(raw(byte(wire.Data), wire.Stdout, stream, 1000), "half"...))
	case "no result", "silent":
	case "deep result":
		a.result(stream, `{"result":`+strings.Repeat("[", 30000)+strings.Repeat("]", 30000)+`}`)
	case "wrong result":
		a.result(stream, `{"result":{"exit_code":"<script>"}}`)
	case "implausible result":
		a.data(stream, wire.Stdout, []byte("out"))
		a.result(stream, `{"result":{"exit_code":-9223372036854775808,"signal":"\u001b[2J","duration":-1,"pid":-1}}`)
	case "escapes":
		a.data(stream, wire.Stdout, []byte(escapes))
		a.data(stream, wire.Stderr, []byte(escapes))
		a.result(stream, `{"result":{"exit_code":3}}`)
	case "error with escapes":
		p, _ := json.Marshal(map[string]any{"error": map[string]any{"kind": escapes, "message": escapes + strings.Repeat("A", 50000)}})
		a.result(stream, string(p))
	case "wrong numbers":
		a.w.Send(wire.Frame{Type: wire.Data, Channel: wire.Stdout, Stream: stream, Seq: 1 << 30, Payload: []byte("x")})
	default:
		a.send(wire.Frame{Type: wire.EOF, Channel: wire.Stdout, Stream: stream}, wire.Frame{Type: wire.EOF, Channel: wire.Stderr, Stream: stream})
		a.result(stream, `{"result":{"exit_code":0}}`)
	}
}
