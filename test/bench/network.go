package main

import (
	"bufio"
	"bytes"
	"cmp"
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
	"github.com/attest-vm/attest/internal/network/vde"
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
	frameSize  = 1514
	frameCount = 40_000 // 58 MiB
	// Round trips are taken a few on one switch and a few on the next, again and
	// again, so that whatever else the host does hits all of them. The first few of
	// each turn, when caches are cold, do not count.
	roundTrips  = 100
	notCounted  = 10
	streamHolds = 64
	// A datagram socket of a Unix domain holds 11 messages unless the administrator
	// has set net.unix.max_dgram_qlen higher.
	messagesHold = 8
)

// networkRows compares attest's switch with others.
func (b *bench) networkRows(ctx context.Context) (rows []Row, err error) {
	const (
		ours = iota
		oursVDE
		vdeSwitch
		qemu
	)
	media := []func(context.Context) (*medium, error){ours: b.attestSwitch, oursVDE: b.attestVDE, vdeSwitch: b.vdeSwitch, qemu: b.qemuSocket}
	bulk, err := b.bulk(ctx, media)
	if err != nil {
		return nil, err
	}
	trips, err := b.roundTrips(ctx, media)
	if err != nil {
		return nil, err
	}
	for _, row := range []struct {
		beside            string
		attest, reference int
		target            Target
	}{
		{"beside `vde_switch`", ours, vdeSwitch, Target{Ratio: 1}},
		{"by VDE's protocol, beside `vde_switch`", oursVDE, vdeSwitch, Target{Ratio: 1}},
		{"beside QEMU's `-netdev socket`", ours, qemu, Target{}},
	} {
		rows = append(rows,
			newRow(fmt.Sprintf("%d MiB in frames of %d bytes through a switch, %s", frameCount*frameSize>>20, frameSize, row.beside),
				bulk[row.reference], bulk[row.attest], row.target),
			newRow("a frame there and one back through a switch, "+row.beside, trips[row.reference], trips[row.attest], row.target))
	}
	return rows, nil
}

// bulk is how long many frames take over each medium.
func (b *bench) bulk(ctx context.Context, media []func(context.Context) (*medium, error)) ([][]time.Duration, error) {
	samples := make([][]time.Duration, len(media))
	for range b.bulks {
		for i, open := range media {
			m, err := open(ctx)
			if err != nil {
				return nil, err
			}
			b.say("frames over %s", m.name)
			took, err := m.bulk(ctx)
			if err = errors.Join(err, m.close()); err != nil {
				return nil, fmt.Errorf("%s: %w", m.name, err)
			}
			samples[i] = append(samples[i], took)
		}
	}
	return samples, nil
}

// roundTrips is how long each of many round trips takes over each medium.
func (b *bench) roundTrips(ctx context.Context, media []func(context.Context) (*medium, error)) (_ [][]time.Duration, err error) {
	var askers []*asker
	for _, open := range media {
		m, err := open(ctx)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, m.close()) }()
		a, err := m.asker(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.name, err)
		}
		defer a.close()
		askers = append(askers, a)
	}
	b.say("frames there and back over each, %d times", b.trips)
	samples := make([][]time.Duration, len(media))
	for range b.trips {
		for i, a := range askers {
			each, err := a.turn()
			if err != nil {
				return nil, err
			}
			samples[i] = append(samples[i], each...)
		}
	}
	return samples, nil
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

// attestVDE is the VDE socket that a lab has, in this process.
func (b *bench) attestVDE(ctx context.Context) (*medium, error) {
	dir, err := os.MkdirTemp("", "vde")
	if err != nil {
		return nil, err
	}
	fabric := network.NewFabric(1)
	hub, err := vde.Listen(ctx, filepath.Join(dir, "s"), func(ctx context.Context, p vde.Plug) (vde.Port, error) {
		return fabric.Switch(1).AttachDatagram(ctx, network.NIC{Machine: fmt.Sprint("m", p.Number), ID: "eth1"}, p.Conn)
	})
	if err != nil {
		return nil, errors.Join(err, fabric.Close(), os.RemoveAll(dir))
	}
	m := &medium{name: "attest's VDE socket"}
	controls, err := m.plugIn(ctx, hub.Dir(), filepath.Join(hub.Dir(), ".port"))
	m.close = func() error {
		for _, c := range controls {
			c.Close()
		}
		return errors.Join(hub.Close(), fabric.Close(), os.RemoveAll(dir))
	}
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

// plugIn makes the links of a medium by VDE's protocol.
func (m *medium) plugIn(ctx context.Context, dir, own string) (controls []net.Conn, err error) {
	for i := range m.links {
		file, control, err := plug(ctx, filepath.Join(dir, "ctl"), fmt.Sprint(own, i))
		if err != nil {
			return controls, err
		}
		controls = append(controls, control)
		m.links[i] = link{file: file, messages: true, window: messagesHold}
	}
	return controls, nil
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
	m := &medium{name: "vde_switch"}
	controls, err := m.plugIn(ctx, filepath.Join(dir, "s"), filepath.Join(dir, "port"))
	m.close = func() error {
		for _, c := range controls {
			c.Close()
		}
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
		return os.RemoveAll(dir)
	}
	if err != nil {
		return nil, errors.Join(err, m.close())
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

// peer runs a process on one of the links.
func (m *medium) peer(ctx context.Context, i int, role string) *exec.Cmd {
	l := m.links[i]
	cmd := exec.CommandContext(ctx, "/proc/self/exe", peerArg, role, strconv.FormatBool(l.messages), strconv.Itoa(l.window))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.ExtraFiles = []*os.File{l.file}
	cmd.Stderr = os.Stderr
	return cmd
}

// bulk is how long all frames take from the first process to the second.
func (m *medium) bulk(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	receiver := m.peer(ctx, 1, "receive")
	if err := receiver.Start(); err != nil {
		return 0, err
	}
	defer func() {
		receiver.Process.Kill()
		receiver.Wait()
	}()
	out, err := m.peer(ctx, 0, "send").Output()
	if err != nil {
		return 0, err
	}
	ns, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	return time.Duration(ns), err
}

// An asker is a process that asks, and one that answers, on a medium.
type asker struct {
	ask, answer *exec.Cmd
	in          io.WriteCloser
	out         *bufio.Scanner
}

func (m *medium) asker(ctx context.Context) (*asker, error) {
	a := &asker{ask: m.peer(ctx, 0, "ask"), answer: m.peer(ctx, 1, "answer")}
	in, err := a.ask.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := a.ask.StdoutPipe()
	if err != nil {
		return nil, err
	}
	a.in, a.out = in, bufio.NewScanner(out)
	if err := a.answer.Start(); err != nil {
		return nil, err
	}
	if err := a.ask.Start(); err != nil {
		a.answer.Process.Kill()
		return nil, errors.Join(err, a.answer.Wait())
	}
	return a, nil
}

// turn has round trips made, and returns how long each took.
func (a *asker) turn() (each []time.Duration, err error) {
	if _, err := io.WriteString(a.in, "\n"); err != nil {
		return nil, err
	}
	for range roundTrips {
		if !a.out.Scan() {
			return nil, fmt.Errorf("who asks has ended: %w", cmp.Or(a.out.Err(), io.EOF))
		}
		ns, err := strconv.ParseInt(a.out.Text(), 10, 64)
		if err != nil {
			return nil, err
		}
		each = append(each, time.Duration(ns))
	}
	return each[notCounted:], nil
}

func (a *asker) close() {
	for _, cmd := range []*exec.Cmd{a.ask, a.answer} {
		cmd.Process.Kill()
		cmd.Wait()
	}
}

// A peer is one of the processes.
type peer struct {
	conn   io.ReadWriter
	in     *bufio.Reader // nil: messages
	buf    []byte
	window int
}

// A polled connection waits as a VMM does: it polls, and reads what is there then.
// (Who waits in read(2) of a stream is also woken when the other end has read.)
type polled struct{ fd int }

func (c polled) Read(b []byte) (int, error) {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, err
		}
		n, err := unix.Read(c.fd, b)
		if err == nil && n == 0 {
			err = io.EOF
		}
		return n, err
	}
}

func (c polled) Write(b []byte) (int, error) { return unix.Write(c.fd, b) }

// runPeer is the life of a process: args are its role, whether frames are messages,
// and its window.
func runPeer(args []string) error {
	messages, _ := strconv.ParseBool(args[1])
	window, _ := strconv.Atoi(args[2])
	conn := polled{3}
	p := &peer{conn: conn, buf: make([]byte, 1<<16), window: window}
	if !messages {
		p.in = bufio.NewReaderSize(conn, 256<<10)
	}
	switch args[0] {
	case "send":
		took, err := p.send()
		fmt.Println(took.Nanoseconds())
		return err
	case "receive":
		return p.receiveAll()
	case "ask":
		return p.ask()
	}
	return p.answer()
}

// ask makes round trips for each line of standard input, and writes to standard
// output how many nanoseconds each took.
func (p *peer) ask() error {
	question := peerFrame(0, 60)
	for turns := bufio.NewScanner(os.Stdin); turns.Scan(); {
		var took [roundTrips]time.Duration
		for i := range took {
			begun := time.Now()
			if err := p.write(question); err != nil {
				return err
			}
			if _, err := p.read(); err != nil {
				return err
			}
			took[i] = time.Since(begun)
		}
		w := bufio.NewWriter(os.Stdout)
		for _, d := range took {
			fmt.Fprintln(w, d.Nanoseconds())
		}
		w.Flush()
	}
	return nil
}

func (p *peer) answer() error {
	for reply := peerFrame(1, 60); ; {
		if _, err := p.read(); err != nil {
			return err
		}
		if err := p.write(reply); err != nil {
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
