package agent

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/wire"
)

// xSocket is where the X server of a display listens, with its number appended. That of
// DISPLAY=:0 is the one which commands have in their environment.
const xSocket = "/tmp/.X11-unix/X"

const (
	minXPoll = 10 * time.Millisecond
	maxXPoll = 250 * time.Millisecond
	// xTimeout is for a server that takes a connection and does not answer. An
	// emulated one may take a while.
	xTimeout = 10 * time.Second
)

// waitX waits until the X server answers, and has a window of the title that is
// wanted.
func waitX(ctx context.Context, q wire.WindowRequest) (any, error) {
	pattern, err := regexp.Compile(q.Pattern)
	if err != nil {
		return nil, errorf(wire.KindInvalid, "not a regular expression: %v", err)
	}
	var state wire.WindowState
	for pause := minXPoll; ; pause = min(2*pause, maxXPoll) {
		titles, err := windowTitles(ctx, q.Display)
		if ctx.Err() != nil {
			return state, context.Cause(ctx) // what was seen before counts
		}
		state.Tries++
		if err == nil {
			state.Windows, state.Seen = titles, ""
			if q.Once || q.Pattern == "" || slices.ContainsFunc(titles, pattern.MatchString) {
				return state, nil
			}
		} else if state.Seen = err.Error(); q.Once || !mayCome(err) {
			return state, errorf(wire.KindFailed, "%v", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return state, context.Cause(ctx)
		}
	}
}

// mayCome reports whether an X server or a compositor may do later what it does not do now.
func mayCome(err error) bool {
	var never *absentError
	var wrong *wire.Error
	return !errors.As(err, &never) && !errors.As(err, &wrong)
}

// windowTitles asks the X server for the titles of all windows that have one,
// as xwininfo -root -tree lists them; or a Wayland compositor, if the display is one's.
func windowTitles(ctx context.Context, display string) ([]string, error) {
	if IsWayland(display) {
		return toplevels(ctx, display)
	}
	x, done, err := dialX(ctx, display)
	if err != nil {
		return nil, err
	}
	defer done()
	return x.titles()
}

// displayNumber is the N of a display :N, or :N.0.
var displayNumber = regexp.MustCompile(`^:([0-9]{1,5})(\.0)?$`)

// dialX connects to the X server of a display, ":0" if it is empty. The caller calls done.
func dialX(ctx context.Context, display string) (x *xClient, done func(), err error) {
	display = cmp.Or(display, ":0")
	found := displayNumber.FindStringSubmatch(display)
	if found == nil {
		return nil, nil, errorf(wire.KindInvalid, "%q is not a display of an X server; want \":0\" or another number", display)
	}
	number := found[1]
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", xSocket+number)
	if err != nil {
		return nil, nil, fmt.Errorf("no X server on display :%s: %w", number, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	done = func() { stop(); conn.Close() }
	conn.SetDeadline(time.Now().Add(xTimeout))
	x, err = newXClient(conn, xCookie(xAuthFiles("/proc"), number))
	if err != nil {
		done()
		return nil, nil, fmt.Errorf("the X server on display :%s: %w", number, err)
	}
	return x, done, nil
}

// An xClient speaks as much of the X protocol (X Window System Protocol, version
// 11) as it takes to ask for windows, their titles and pictures. No library does it: jezek/xgb
// takes as much memory as the length of a reply says, up to 16 GiB, logs to the standard
// error, and starts four goroutines for each connection; the server is the guest's.
type xClient struct {
	conn      io.ReadWriter
	setup     xSetup
	netWMName uint32 // atom _NET_WM_NAME
}

// An xSetup is what the server says of itself and of its first screen.
type xSetup struct {
	root          uint32 // the window behind all others
	width, height int    // of it, in pixels, when the client connected
	colormap      uint32 // the default one
	depth         int    // of the root
	visual        xVisual
	bits, pad     int // of a pixel and of a line of pixels, in pictures of that depth
	bigEndian     bool
}

// An xVisual is how the values of pixels are colours: by masks, or of a palette if those are 0.
type xVisual struct{ red, green, blue uint32 }

var le = binary.LittleEndian

func pad4(n int) int { return (n + 3) &^ 3 }

const cookieName = "MIT-MAGIC-COOKIE-1"

// newXClient sets a connection up. cookie may be empty.
func newXClient(conn io.ReadWriter, cookie []byte) (*xClient, error) {
	x := &xClient{conn: conn}
	name := ""
	if len(cookie) > 0 {
		name = cookieName
	}
	hello := make([]byte, 12+pad4(len(name))+pad4(len(cookie)))
	hello[0] = 'l' // little-endian
	le.PutUint16(hello[2:], 11)
	le.PutUint16(hello[6:], uint16(len(name)))
	le.PutUint16(hello[8:], uint16(len(cookie)))
	copy(hello[12:], name)
	copy(hello[12+pad4(len(name)):], cookie)
	_, err := conn.Write(hello)
	if err != nil {
		return nil, err
	}
	head := make([]byte, 8)
	if _, err := io.ReadFull(conn, head); err != nil {
		return nil, fmt.Errorf("no answer: %w", err)
	}
	rest := make([]byte, 4*int(le.Uint16(head[6:])))
	if _, err := io.ReadFull(conn, rest); err != nil {
		return nil, fmt.Errorf("half an answer: %w", err)
	}
	if head[0] != 1 {
		reason := rest[:min(int(head[1]), len(rest))]
		return nil, fmt.Errorf("connection refused: %s", strings.TrimSpace(string(reason)))
	}
	x.setup, err = parseSetup(rest)
	if err != nil {
		return nil, err
	}
	x.netWMName, err = x.atom("_NET_WM_NAME")
	return x, err
}

// parseSetup reads what comes behind the first 8 bytes of the server's answer.
func parseSetup(rest []byte) (s xSetup, err error) {
	if len(rest) < 32 {
		return s, errors.New("a short answer")
	}
	formats := 32 + pad4(int(le.Uint16(rest[16:]))) // behind the vendor
	screen := formats + 8*int(rest[21])
	if rest[20] < 1 || screen+40 > len(rest) {
		return s, errors.New("the server has no screen")
	}
	s.bigEndian = rest[22] != 0
	first := rest[screen:]
	s.root, s.colormap = le.Uint32(first), le.Uint32(first[4:])
	s.width, s.height = int(le.Uint16(first[20:])), int(le.Uint16(first[22:]))
	visual, depths := le.Uint32(first[32:]), int(first[39])
	s.depth = int(first[38])
	for f := formats; f < screen; f += 8 {
		if int(rest[f]) == s.depth {
			s.bits, s.pad = int(rest[f+1]), int(rest[f+2])
		}
	}
	for at := 40; depths > 0 && at+8 <= len(first); depths-- {
		visuals := int(le.Uint16(first[at+2:]))
		at += 8
		for ; visuals > 0 && at+24 <= len(first); visuals-- {
			if v := first[at:]; le.Uint32(v) == visual && v[4] >= trueColor {
				s.visual = xVisual{le.Uint32(v[8:]), le.Uint32(v[12:]), le.Uint32(v[16:])}
			}
			at += 24
		}
	}
	return s, nil
}

// trueColor and the class above it, DirectColor, have masks of the colours in a pixel.
const trueColor = 4

// maxXReply bounds a reply; titles are cut far below it.
const maxXReply = 16 << 20

// errXGone is a window that went away while it was looked at.
var errXGone = errors.New("the window is gone")

// request sends a request and reads its reply. body begins behind the length.
func (x *xClient) request(opcode, detail byte, body []byte) ([]byte, error) {
	q := make([]byte, 4, 4+pad4(len(body)))
	q[0], q[1] = opcode, detail
	q = append(q, body...)
	q = append(q, make([]byte, pad4(len(q))-len(q))...)
	le.PutUint16(q[2:], uint16(len(q)/4))
	if _, err := x.conn.Write(q); err != nil {
		return nil, err
	}
	for {
		reply := make([]byte, 32)
		if _, err := io.ReadFull(x.conn, reply); err != nil {
			return nil, fmt.Errorf("no reply: %w", err)
		}
		switch reply[0] {
		case 0:
			return nil, errXGone
		case 1:
			more := int64(le.Uint32(reply[4:])) * 4
			if more > maxXReply {
				return nil, fmt.Errorf("a reply of %d bytes", more)
			}
			reply = append(reply, make([]byte, more)...)
			_, err := io.ReadFull(x.conn, reply[32:])
			return reply, err
		} // an event
	}
}

func (x *xClient) atom(name string) (uint32, error) {
	body := le.AppendUint16(nil, uint16(len(name)))
	body = append(append(body, 0, 0), name...)
	reply, err := x.request(16, 0, body) // InternAtom
	if err != nil {
		return 0, err
	}
	return le.Uint32(reply[8:]), nil
}

func (x *xClient) children(window uint32) ([]uint32, error) {
	reply, err := x.request(15, 0, le.AppendUint32(nil, window)) // QueryTree
	if err != nil {
		return nil, err
	}
	n := int(le.Uint16(reply[16:]))
	if 32+4*n > len(reply) {
		return nil, errors.New("a short list of windows")
	}
	out := make([]uint32, n)
	for i := range out {
		out[i] = le.Uint32(reply[32+4*i:])
	}
	return out, nil
}

const wmName = 39 // the predefined atom WM_NAME

// title is a window's title; empty if it has none.
func (x *xClient) title(window uint32) (string, error) {
	for _, property := range []uint32{x.netWMName, wmName} {
		var body []byte
		for _, v := range []uint32{window, property, 0, 0, 4096} { // any type, from the start, 16 KiB
			body = le.AppendUint32(body, v)
		}
		reply, err := x.request(20, 0, body) // GetProperty
		if err != nil {
			return "", err
		}
		n := int(le.Uint32(reply[16:]))
		if reply[1] != 8 || n == 0 || n > len(reply)-32 {
			continue
		}
		text := bytes.TrimRight(reply[32:32+n], "\x00")
		if property == wmName { // of type STRING: ISO 8859-1
			return latin1(text), nil
		}
		return strings.ToValidUTF8(string(text), "\uFFFD"), nil
	}
	return "", nil
}

// latin1 reads what is not UTF-8 as ISO 8859-1.
func latin1(text []byte) string {
	if s := string(text); s == strings.ToValidUTF8(s, "") {
		return s
	}
	var b strings.Builder
	for _, c := range text {
		b.WriteRune(rune(c))
	}
	return b.String()
}

// maxWindows bounds the walk through the tree.
const maxWindows = 10_000

// titles walks the tree of windows, the top of each stack first.
func (x *xClient) titles() ([]string, error) {
	var out []string
	visited := 0
	var walk func(uint32) error
	walk = func(window uint32) error {
		children, err := x.children(window)
		if err != nil {
			return err
		}
		for _, w := range slices.Backward(children) {
			if visited++; visited > maxWindows {
				return nil
			}
			t, err := x.title(w)
			if err == nil && t != "" {
				out = append(out, t)
			}
			if err == nil {
				err = walk(w)
			}
			if err != nil && !errors.Is(err, errXGone) {
				return err
			}
		}
		return nil
	}
	return out, walk(x.setup.root)
}

// xAuthFiles are the files with the cookies of the X servers that run, as their
// command lines name them.
func xAuthFiles(proc string) []string {
	var files []string
	lines, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "cmdline"))
	for _, line := range lines {
		data, err := os.ReadFile(line)
		if err != nil {
			continue
		}
		args := strings.Split(string(data), "\x00")
		switch filepath.Base(args[0]) {
		case "X", "Xorg", "Xvfb", "Xwayland", "Xephyr":
			if i := slices.Index(args, "-auth"); i >= 0 && i+1 < len(args) {
				files = append(files, args[i+1])
			}
		}
	}
	return append(files, "/root/.Xauthority")
}

// xCookie is the cookie for a display in the first file that has one; nil if
// there is none.
func xCookie(files []string, display string) []byte {
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if cookie := parseXauthority(data, display); cookie != nil {
			return cookie
		}
	}
	return nil
}

// parseXauthority reads Xauthority(5): family, address, display, name and data,
// each but the first after its length, big-endian.
func parseXauthority(data []byte, display string) []byte {
	for len(data) >= 2 {
		data = data[2:] // the family: whose address it is does not matter here
		var fields [4][]byte
		for i := range fields {
			if len(data) < 2 {
				return nil
			}
			n := int(binary.BigEndian.Uint16(data))
			if len(data) < 2+n {
				return nil
			}
			fields[i], data = data[2:2+n], data[2+n:]
		}
		number, name, cookie := string(fields[1]), string(fields[2]), fields[3]
		if (number == display || number == "") && name == cookieName {
			return cookie
		}
	}
	return nil
}
