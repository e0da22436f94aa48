package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// maxTTY is MAX_NR_CONSOLES of linux/vt.h.
const maxTTY = 63

// waitTTY waits until a virtual terminal shows what is wanted. The kernel says
// when something on it has changed.
func waitTTY(ctx context.Context, q wire.TTYRequest) (any, error) {
	if q.TTY < 1 || q.TTY > maxTTY {
		return nil, errorf(wire.KindInvalid, "there is no terminal %d; they are 1 to %d", q.TTY, maxTTY)
	}
	pattern, err := regexp.Compile("(?m)" + q.Pattern)
	if err != nil {
		return nil, errorf(wire.KindInvalid, "not a regular expression: %v", err)
	}
	var state wire.TTYState
	for {
		t, err := openTTY(q.TTY)
		switch {
		case errors.Is(err, fs.ErrNotExist) && q.Pattern != "": // nobody has opened it yet
			state.Missing = true
			if err := poll(ctx, func() bool { t, err = openTTY(q.TTY); return err == nil || !errors.Is(err, fs.ErrNotExist) }); err != nil {
				return state, err
			}
			if err != nil {
				return state, err
			}
		case errors.Is(err, fs.ErrNotExist):
			return state, errorf(wire.KindNotFound, "nothing has used tty%d", q.TTY)
		case err != nil:
			return state, err
		}
		err = t.watch(ctx, func(text string) bool {
			state = wire.TTYState{Text: text}
			return pattern.MatchString(text)
		})
		t.Close()
		if !errors.Is(err, fs.ErrNotExist) {
			return state, err
		}
	}
}

// A tty is the screen of a virtual terminal: /dev/vcsaN, vcs(4).
type tty struct {
	*os.File
	number int
}

func openTTY(number int) (*tty, error) {
	f, err := os.Open(fmt.Sprintf("/dev/vcsa%d", number))
	if errors.Is(err, unix.ENXIO) { // the node is there, the terminal is not
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	return &tty{f, number}, nil
}

// watch calls check with what the terminal shows, now and whenever that
// changes, until it says yes.
func (t *tty) watch(ctx context.Context, check func(text string) bool) error {
	for {
		text, err := t.text()
		if err != nil {
			return err
		}
		if check(text) {
			return nil
		}
		fds := []unix.PollFd{{Fd: int32(t.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, int(recheck/time.Millisecond)); err != nil && err != unix.EINTR {
			return fmt.Errorf("poll %s: %w", t.Name(), err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// text is what the terminal shows, as lines of its full width.
func (t *tty) text() (string, error) {
	var head [4]byte // lines, columns, and the cursor
	if _, err := t.ReadAt(head[:], 0); err != nil {
		if errors.Is(err, unix.ENXIO) {
			err = fs.ErrNotExist
		}
		return "", err
	}
	lines, columns := int(head[0]), int(head[1])
	cells, err := t.cells(lines * columns)
	if err != nil {
		return "", err
	}
	return screen(cells, columns), nil
}

// ScreenText is what a virtual terminal shows, of the first bytes of its /dev/vcsaN and of
// its /dev/vcsuN, vcs(4).
func ScreenText(head, cells []byte) (string, error) {
	if len(head) < 2 || len(cells) != 4*int(head[0])*int(head[1]) {
		return "", fmt.Errorf("a terminal with %d bytes of characters", len(cells))
	}
	return screen(characters(cells), int(head[1])), nil
}

// screen is the text of a terminal that is so many columns wide.
func screen(cells []rune, columns int) string {
	var b strings.Builder
	for i, r := range cells {
		if i > 0 && i%columns == 0 {
			b.WriteByte('\n')
		}
		b.WriteRune(max(r, ' '))
	}
	return b.String()
}

// cells are the characters on the screen. A kernel before 4.19, or a terminal
// that is not in UTF-8 mode, has only the numbers of its font's glyphs.
func (t *tty) cells(n int) ([]rune, error) {
	if data, err := readFile(fmt.Sprintf("/dev/vcsu%d", t.number), 4*n); err == nil {
		return characters(data), nil
	}
	data, err := readFile(fmt.Sprintf("/dev/vcs%d", t.number), n)
	return glyphs(data), err
}

// characters are those of /dev/vcsuN: numbers of 32 bits, native-endian.
func characters(data []byte) []rune {
	cells := make([]rune, len(data)/4)
	for i := range cells {
		cells[i] = rune(binary.NativeEndian.Uint32(data[4*i:]))
	}
	return cells
}

// glyphs are those of /dev/vcsN. What is not ASCII depends on the font.
func glyphs(data []byte) []rune {
	cells := make([]rune, len(data))
	for i, b := range data {
		if cells[i] = rune(b); b >= 0x7f {
			cells[i] = '?'
		}
	}
	return cells
}

// readFile reads exactly n bytes.
func readFile(path string, n int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, n)
	_, err = f.ReadAt(data, 0)
	return data, err
}
