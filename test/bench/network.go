package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/network"
)

// Switches are measured by what two processes on them do with frames: one sends
// as fast as it may and one receives; or one asks and one answers. Each is this
// program again, with its end of the link as descriptor 3.
const peerArg = "measure-network-peer"

// A link is what a process has of a switch.
type link struct {
	file     *os.File
	messages bool // a frame is a message; otherwise it comes after its length
	window   int  // frames that are under way at most: what the link holds without loss
}

// A medium is a switch with two links on it.
type medium struct {
	name  string
	links [2]link
	close func() error
}

const (
	frameSize   = 1514
	frameCount  = 40_000 // 58 MiB
	roundTrips  = 2000
	streamHolds = 64
	// A datagram socket of a Unix domain holds 11 messages unless the administrator
	// has set net.unix.max_dgram_qlen higher.
	messagesHold = 8
)

// networkRows compares attest's switch with others.
func (b *bench) networkRows(ctx context.Context) (rows []Row, err error) {
	media := []func(context.Context) (*medium, error){b.attestSwitch, b.vdeSwitch, b.qemuSocket}
	bulk, trips := make([][]time.Duration, len(media)), make([][]time.Duration, len(media))
	for range b.switches {
		for i, open := range media {
			m, err := open(ctx)
			if err != nil {
				return nil, err
			}
			b.say("frames over %s", m.name)
			took, err := m.bulk(ctx)
			var each []time.Duration
			if err == nil {
				each, err = m.roundTrips(ctx)
			}
			if err = errors.Join(err, m.close()); err != nil {
				return nil, fmt.Errorf("%s: %w", m.name, err)
			}
			bulk[i], trips[i] = append(bulk[i], took), append(trips[i], each...)
		}
	}
	mib := frameCount * frameSize >> 20
	for i, name := range []string{"", "`vde_switch`", "QEMU's `-netdev socket`"} {
		if name == "" {
			continue
		}
		target := Target{}
		if i == 1 {
			target.Ratio = 1
		}
		rows = append(rows,
			newRow(fmt.Sprintf("%d MiB in frames of %d bytes through a switch, beside %s", mib, frameSize, name), bulk[i], bulk[0], target),
			newRow("a frame there and one back through a switch, beside "+name, trips[i], trips[0], target))
	}
	return rows, nil
}

// pair is two connected sockets.
func pair(typ int) (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	for _, fd := range fds {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
	}
	return os.NewFile(uintptr(fds[0]), "pair"), os.NewFile(uintptr(fds[1]), "pair"), nil
}

// attestSwitch is a switch as a lab has it, in this process.
func (b *bench) attestSwitch(ctx context.Context) (*medium, error) {
	fabric := network.NewFabric(1)
	m := &medium{name: "attest's switch", close: fabric.Close}
	for i := range m.links {
		_, conn, err := fabric.Switch(1).Attach(ctx, network.NIC{Machine: fmt.Sprint("m", i), ID: "eth1"})
		if err != nil {
			return nil, err
		}
		file, err := conn.File()
		conn.Close()
		if err != nil {
			return nil, err
		}
		m.links[i] = link{file: file, window: streamHolds}
	}
	return m, nil
}

// vdeSwitch is Debian's vde_switch, to which the processes speak its plug protocol
// as QEMU's -netdev vde does.
func (b *bench) vdeSwitch(ctx context.Context) (*medium, error) {
	dir, err := os.MkdirTemp("", "vde")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "vde_switch", "-s", filepath.Join(dir, "s"), "-x")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe() // it reads commands there, and ends with it
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("vde_switch (scripts/setup bench installs it): %w", err)
	}
	var controls []net.Conn
	m := &medium{name: "vde_switch", close: func() error {
		for _, c := range controls {
			c.Close()
		}
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
		return os.RemoveAll(dir)
	}}
	for i := range m.links {
		file, control, err := plug(ctx, filepath.Join(dir, "s", "ctl"), filepath.Join(dir, fmt.Sprint("port", i)))
		if err != nil {
			return nil, errors.Join(err, m.close())
		}
		controls = append(controls, control)
		m.links[i] = link{file: file, messages: true, window: messagesHold}
	}
	return m, nil
}

// plug connects to a vde_switch (libvdeplug, version 3 of its protocol): the
// name of one's own datagram socket for the name of the switch's.
func plug(ctx context.Context, ctl, own string) (*os.File, net.Conn, error) {
	var control net.Conn
	var err error
	for { // until vde_switch listens
		if control, err = net.Dial("unix", ctl); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return nil, nil, err
		case <-time.After(5 * time.Millisecond):
		}
	}
	data, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: own})
	if err != nil {
		return nil, nil, err
	}
	defer data.Close()
	request := binary.NativeEndian.AppendUint32(nil, 0xfeedface)
	request = binary.NativeEndian.AppendUint32(request, 3)
	request = binary.NativeEndian.AppendUint32(request, 0)
	request = binary.NativeEndian.AppendUint16(request, unix.AF_UNIX)
	request = append(request, make([]byte, 108+128)...)
	copy(request[14:], own)
	if _, err := control.Write(request); err != nil {
		return nil, nil, err
	}
	reply := make([]byte, 110)
	if _, err := io.ReadFull(control, reply); err != nil {
		return nil, nil, err
	}
	name, _, _ := bytes.Cut(reply[2:], []byte{0})
	file, err := data.File()
	if err != nil {
		return nil, nil, err
	}
	return file, control, unix.Connect(int(file.Fd()), &unix.SockaddrUnix{Name: string(name)})
}

// qemuSocket is a QEMU without a machine, whose -netdev socket and hub carry
// frames from one link to the other.
func (b *bench) qemuSocket(ctx context.Context) (*medium, error) {
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	m := &medium{name: "QEMU's -netdev socket", close: func() error {
		cmd.Process.Kill()
		cmd.Wait()
		return nil
	}}
	for i := range m.links {
		ours, theirs, err := pair(unix.SOCK_STREAM)
		if err != nil {
			return nil, err
		}
		defer theirs.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
		cmd.Args = append(cmd.Args, "-netdev", fmt.Sprintf("socket,id=s%d,fd=%d", i, 3+i), "-netdev", fmt.Sprintf("hubport,id=h%d,hubid=0,netdev=s%[1]d", i))
		m.links[i] = link{file: ours, window: streamHolds}
	}
	return m, cmd.Start()
}

// bulk is how long all frames take from the first process to the second.
func (m *medium) bulk(ctx context.Context) (time.Duration, error) {
	out, err := m.peers(ctx, "send", "receive")
	if err != nil || len(out) != 1 {
		return 0, fmt.Errorf("%d results, %w", len(out), err)
	}
	return out[0], nil
}

func (m *medium) roundTrips(ctx context.Context) ([]time.Duration, error) {
	return m.peers(ctx, "ask", "answer")
}

// peers runs a process on each link and returns what the first one measured.
func (m *medium) peers(ctx context.Context, first, second string) (out []time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	start := func(i int, role string) (*exec.Cmd, *bytes.Buffer, error) {
		l := m.links[i]
		cmd := exec.CommandContext(ctx, "/proc/self/exe", peerArg, role, strconv.FormatBool(l.messages), strconv.Itoa(l.window))
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		cmd.ExtraFiles = []*os.File{l.file}
		cmd.Stderr = os.Stderr
		var stdout bytes.Buffer
		cmd.Stdout = &stdout
		return cmd, &stdout, cmd.Start()
	}
	b, _, err := start(1, second)
	if err != nil {
		return nil, err
	}
	defer func() {
		b.Process.Kill()
		b.Wait()
	}()
	a, stdout, err := start(0, first)
	if err != nil {
		return nil, err
	}
	if err := a.Wait(); err != nil {
		return nil, fmt.Errorf("%s: %w", first, err)
	}
	for line := range strings.Lines(stdout.String()) {
		ns, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		if err != nil {
			return nil, err
		}
		out = append(out, time.Duration(ns))
	}
	return out, nil
}

// A peer is one of the processes.
type peer struct {
	conn   io.ReadWriter
	in     *bufio.Reader // nil: messages
	buf    []byte
	window int
}

// runPeer is the life of a process: args are its role, whether frames are messages,
// and its window.
func runPeer(args []string) error {
	messages, _ := strconv.ParseBool(args[1])
	window, _ := strconv.Atoi(args[2])
	conn := os.NewFile(3, "link")
	p := &peer{conn: conn, buf: make([]byte, 1<<16), window: window}
	if !messages {
		p.in = bufio.NewReaderSize(conn, 256<<10)
	}
	w := bufio.NewWriter(os.Stdout)
	defer w.Flush()
	switch args[0] {
	case "send":
		took, err := p.send()
		fmt.Fprintln(w, took.Nanoseconds())
		return err
	case "receive":
		return p.receiveAll()
	case "ask":
		for range roundTrips {
			begun := time.Now()
			if err := p.write(peerFrame(0, 60)); err != nil {
				return err
			}
			if _, err := p.read(); err != nil {
				return err
			}
			fmt.Fprintln(w, time.Since(begun).Nanoseconds())
		}
		return nil
	}
	for { // answer
		if _, err := p.read(); err != nil {
			return err
		}
		if err := p.write(peerFrame(1, 60)); err != nil {
			return err
		}
	}
}

// peerFrame is a frame from one of the two to the other, behind a length.
func peerFrame(from byte, size int) []byte {
	f := make([]byte, 4+size)
	binary.BigEndian.PutUint32(f, uint32(size))
	copy(f[4:], []byte{0x52, 0x54, 0, 0, 0, 1 - from, 0x52, 0x54, 0, 0, 0, from, 0x88, 0xb5})
	return f
}

func (p *peer) write(f []byte) error {
	if p.in == nil {
		f = f[4:]
	}
	_, err := p.conn.Write(f)
	return err
}

func (p *peer) read() ([]byte, error) {
	if p.in == nil {
		n, err := p.conn.Read(p.buf)
		return p.buf[:n], err
	}
	if _, err := io.ReadFull(p.in, p.buf[:4]); err != nil {
		return nil, err
	}
	f := p.buf[:binary.BigEndian.Uint32(p.buf)]
	_, err := io.ReadFull(p.in, f)
	return f, err
}

// send sends all frames, one per system call as QEMU does, and waits for those
// that are under way as its window says. The first ones wait until the other
// process is there and the switch has learned where.
func (p *peer) send() (time.Duration, error) {
	small, large := peerFrame(0, 60), peerFrame(0, frameSize)
	if err := p.write(small); err != nil {
		return 0, err
	}
	if _, err := p.read(); err != nil {
		return 0, err
	}
	begun := time.Now()
	for sent, acked := 0, 0; acked < frameCount; {
		for ; sent < frameCount && sent < acked+p.window; sent++ {
			if err := p.write(large); err != nil {
				return 0, err
			}
		}
		if _, err := p.read(); err != nil {
			return 0, err
		}
		acked += p.window / 2
	}
	return time.Since(begun), nil
}

// receiveAll answers every half window, and the first frame.
func (p *peer) receiveAll() error {
	ack := peerFrame(1, 60)
	for n := 0; ; n++ {
		if _, err := p.read(); err != nil {
			return err
		}
		if n%(p.window/2) == 0 {
			if err := p.write(ack); err != nil {
				return err
			}
		}
	}
}
