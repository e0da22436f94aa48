package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

var waylandName = regexp.MustCompile(`^wayland(-[0-9]{1,5})?$`)

// IsWayland reports whether a display is a Wayland compositor's: "wayland" is the first one,
// others have the names or paths of their sockets.
func IsWayland(display string) bool { return waylandName.MatchString(filepath.Base(display)) }

// findCompositor returns the path of the socket on which a compositor listens.
func findCompositor(display string) (string, error) {
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return "", err
	}
	defer f.Close()
	socket := listening(f, func(path string) bool {
		name := filepath.Base(path)
		return waylandName.MatchString(name) && name != "wayland" &&
			(display == "" || display == "wayland" || display == name || display == path)
	})
	if socket == "" {
		if display == "" || display == "wayland" {
			display = "with a name such as wayland-1"
		}
		return "", absent("no Wayland compositor listens on a socket %s", display)
	}
	return socket, nil
}

// listening is the first path in proc(5)'s net/unix on which somebody listens, and that is
// wanted; empty if there is none.
func listening(table io.Reader, wanted func(path string) bool) string {
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		// Num RefCount Protocol Flags Type St Inode Path
		f := strings.Fields(lines.Text())
		const accepts = "00010000" // __SO_ACCEPTCON
		if len(f) == 8 && f[3] == accepts && filepath.IsAbs(f[7]) && wanted(f[7]) {
			return f[7]
		}
	}
	return ""
}

// showWayland has a program of the guest take a picture of what a compositor shows.
func showWayland(ctx context.Context, display string, w io.Writer) error {
	socket, err := findCompositor(display)
	if err != nil {
		return err
	}
	env := append(os.Environ(), "XDG_RUNTIME_DIR="+filepath.Dir(socket), "WAYLAND_DISPLAY="+filepath.Base(socket))
	var failed []string
	for _, tool := range []struct {
		name string
		run  func(ctx context.Context, path string, env []string, w io.Writer) error
	}{{"grim", runGrim}, {"weston-screenshooter", runScreenshooter}} {
		path, err := lookPath(tool.name, nil)
		if err != nil {
			continue
		}
		counted := &counter{w: w}
		err = tool.run(ctx, path, env, counted)
		if err == nil || counted.n > 0 || ctx.Err() != nil {
			return err
		}
		failed = append(failed, fmt.Sprintf("%s: %v", tool.name, err))
	}
	const install = "install grim for a compositor of wlroots (sway, cage), or weston for weston itself, which must run with --debug"
	if len(failed) == 0 {
		return fmt.Errorf("the guest has no program that takes a picture of the compositor on %s: %s", socket, install)
	}
	return fmt.Errorf("the compositor on %s gives no picture (%s): %s", socket, strings.Join(failed, "; "), install)
}

// A counter counts what is written to it.
type counter struct {
	w io.Writer
	n int
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += n
	return n, err
}

// runGrim runs grim(1), which knows compositors that have wlr-screencopy.
func runGrim(ctx context.Context, path string, env []string, w io.Writer) error {
	c := exec.CommandContext(ctx, path, "-t", "ppm", "-")
	c.Env, c.Stdout = env, w
	return runTool(c)
}

// runScreenshooter runs weston's own program, which writes a PNG file to a directory.
func runScreenshooter(ctx context.Context, path string, env []string, w io.Writer) error {
	dir, err := os.MkdirTemp("", "screenshot-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c := exec.CommandContext(ctx, path)
	c.Env, c.Dir = append(env, "XDG_PICTURES_DIR="+dir), dir
	if err := runTool(c); err != nil {
		return err
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*.png"))
	if len(files) == 0 {
		return errors.New("it has written no file")
	}
	f, err := os.Open(files[0])
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// toolOutput is how much of what a program complains about is kept, in bytes.
const toolOutput = 300

// runTool runs a program. Its error has what the program complained about.
func runTool(c *exec.Cmd) error {
	var complaint tail
	c.Stderr, c.WaitDelay = &complaint, time.Second
	err := c.Run()
	if text := strings.TrimSpace(string(complaint)); err != nil && text != "" {
		return fmt.Errorf("%w: %s", err, strings.ReplaceAll(text, "\n", "; "))
	}
	return err
}

// A tail keeps the end of what is written to it.
type tail []byte

func (t *tail) Write(p []byte) (int, error) {
	*t = append(*t, p...)
	*t = (*t)[max(0, len(*t)-toolOutput):]
	return len(p), nil
}

// The interfaces with which a compositor tells of its windows, the better one first. The numbers are
// those of the events with which a window tells its title and that it is gone.
var toplevelProtocols = []toplevelProtocol{
	{"ext_foreign_toplevel_list_v1", 2, 0},
	{"zwlr_foreign_toplevel_manager_v1", 0, 6},
}

type toplevelProtocol struct {
	name          string
	title, closed uint16
}

// toplevels asks a Wayland compositor for the titles of its windows.
func toplevels(ctx context.Context, display string) ([]string, error) {
	socket, err := findCompositor(display)
	if err != nil {
		return nil, errors.New(err.Error()) // it may still come
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetDeadline(time.Now().Add(xTimeout))
	titles, err := askToplevels(conn)
	if a := (*absentError)(nil); err != nil && !errors.As(err, &a) {
		err = fmt.Errorf("the Wayland compositor on %s: %w", socket, err)
	}
	return titles, err
}

// The objects of a conversation with a compositor. It numbers the windows itself, from 0xff000000 on.
const (
	wlDisplay = iota + 1
	wlRegistry
	wlSynced
	wlManager
	wlTold
)

// askToplevels speaks as much of the Wayland protocol as it takes to ask for windows.
func askToplevels(conn io.ReadWriter) ([]string, error) {
	offers := map[string]uint32{} // the numbers of the compositor's interfaces that are of use
	_, err := conn.Write(slices.Concat(wlRequest(wlDisplay, 1, wlRegistry), wlRequest(wlDisplay, 0, wlSynced)))
	if err == nil {
		err = wlEvents(conn, wlSynced, func(object uint32, event uint16, body []byte) error {
			if object != wlRegistry || event != 0 || len(body) < 8 {
				return nil
			}
			name, err := wlString(body[4:])
			if slices.ContainsFunc(toplevelProtocols, func(p toplevelProtocol) bool { return p.name == name }) {
				offers[name] = le.Uint32(body)
			}
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(toplevelProtocols, func(p toplevelProtocol) bool { return offers[p.name] != 0 })
	if i < 0 {
		return nil, absent("this Wayland compositor does not tell of its windows (it has neither %s nor %s; sway has one, weston and cage do not)", toplevelProtocols[0].name, toplevelProtocols[1].name)
	}
	p := toplevelProtocols[i]
	bind := wlRequest(wlRegistry, 0, offers[p.name])
	bind = append(le.AppendUint32(bind, uint32(len(p.name)+1)), p.name...)
	bind = append(bind, make([]byte, pad4(len(p.name)+1)-len(p.name))...)
	bind = le.AppendUint32(le.AppendUint32(bind, 1), wlManager) // version 1
	le.PutUint16(bind[6:], uint16(len(bind)))
	if _, err := conn.Write(append(bind, wlRequest(wlDisplay, 0, wlTold)...)); err != nil {
		return nil, err
	}
	var order []uint32
	titles := map[uint32]string{}
	err = wlEvents(conn, wlTold, func(object uint32, event uint16, body []byte) (err error) {
		_, known := titles[object]
		switch {
		case object == wlManager && event == 0 && len(body) >= 4 && len(titles) < maxWindows:
			order = append(order, le.Uint32(body))
			titles[le.Uint32(body)] = ""
		case known && event == p.title:
			titles[object], err = wlString(body)
		case known && event == p.closed:
			titles[object] = ""
		}
		return err
	})
	var out []string
	for _, window := range order {
		if t := titles[window]; t != "" {
			out = append(out, t)
		}
	}
	return out, err
}

// wlRequest is a request with numbers.
func wlRequest(object uint32, request uint16, numbers ...uint32) []byte {
	b := le.AppendUint32(nil, object)
	b = le.AppendUint16(b, request)
	b = le.AppendUint16(b, uint16(8+4*len(numbers)))
	for _, n := range numbers {
		b = le.AppendUint32(b, n)
	}
	return b
}

// maxWlEvents bounds an answer.
const maxWlEvents = 100_000

// wlEvents reads events up to the one that says that all before were done.
func wlEvents(conn io.Reader, synced uint32, take func(object uint32, event uint16, body []byte) error) error {
	for range maxWlEvents {
		var head [8]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return fmt.Errorf("no answer: %w", err)
		}
		object, event, size := le.Uint32(head[:]), le.Uint16(head[4:]), int(le.Uint16(head[6:]))
		if size < 8 {
			return fmt.Errorf("an event of %d bytes", size)
		}
		body := make([]byte, size-8)
		if _, err := io.ReadFull(conn, body); err != nil {
			return fmt.Errorf("half an answer: %w", err)
		}
		switch {
		case object == synced:
			return nil
		case object == wlDisplay && event == 0 && len(body) >= 8:
			reason, _ := wlString(body[8:])
			return fmt.Errorf("it refuses: %s", reason)
		}
		if err := take(object, event, body); err != nil {
			return err
		}
	}
	return errors.New("an answer without end")
}

// wlString is a string as an argument: its length with a zero at its end, and the bytes.
func wlString(b []byte) (string, error) {
	if len(b) >= 4 {
		if n := int(le.Uint32(b)); n > 0 && n <= len(b)-4 {
			return strings.ToValidUTF8(strings.TrimRight(string(b[4:4+n]), "\x00"), "\uFFFD"), nil
		}
	}
	return "", errors.New("a string that is cut off")
}
