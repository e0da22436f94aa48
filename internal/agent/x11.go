package agent

import (
	"bytes"
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

// The X server that operations look at is that of DISPLAY=:0, which commands
// have in their environment.
const (
	xDisplay = "0"
	xSocket  = "/tmp/.X11-unix/X" + xDisplay
)

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
		titles, err := windowTitles(ctx)
		if ctx.Err() != nil {
			return state, context.Cause(ctx) // what was seen before counts
		}
		state.Tries++
		if err == nil {
			state.Windows, state.Seen = titles, ""
			if q.Once || q.Pattern == "" || slices.ContainsFunc(titles, pattern.MatchString) {
				return state, nil
			}
		} else if state.Seen = err.Error(); q.Once {
			return state, errorf(wire.KindFailed, "%v", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return state, context.Cause(ctx)
		}
	}
}

// windowTitles asks the X server for the titles of all windows that have one,
// as xwininfo -root -tree lists them.
func windowTitles(ctx context.Context) ([]string, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", xSocket)
	if err != nil {
		return nil, fmt.Errorf("no X server on display :%s: %w", xDisplay, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetDeadline(time.Now().Add(xTimeout))
	x, err := newXClient(conn, xCookie(xAuthFiles("/proc"), xDisplay))
	if err != nil {
		return nil, fmt.Errorf("the X server on display :%s: %w", xDisplay, err)
	}
	return x.titles()
}

// An xClient speaks as much of the X protocol (X Window System Protocol, version
// 11) as it takes to ask for windows and their titles.
type xClient struct {
	conn      io.ReadWriter
	root      uint32
	netWMName uint32 // atom _NET_WM_NAME
}

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
	if _, err := conn.Write(hello); err != nil {
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
	if len(rest) < 32 {
		return nil, errors.New("a short answer")
	}
	screen := 32 + pad4(int(le.Uint16(rest[16:]))) + 8*int(rest[21]) // behind the vendor and the formats
	if rest[20] < 1 || screen+4 > len(rest) {
		return nil, errors.New("the server has no screen")
	}
	x.root = le.Uint32(rest[screen:])
	var err error
	x.netWMName, err = x.atom("_NET_WM_NAME")
	return x, err
}

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
	return out, walk(x.root)
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
