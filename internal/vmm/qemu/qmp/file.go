package qmp

import (
	"context"
	"encoding/json"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// GetFD gives QEMU a descriptor under a name, by which later commands ("fd:NAME"
// in a migration) use it up. The connection must be a unix socket; f stays the
// caller's.
func (c *Client) GetFD(ctx context.Context, name string, f *os.File) error {
	return c.do(ctx, "getfd", map[string]string{"fdname": name}, nil, f)
}

// AddFD gives QEMU a descriptor as /dev/fdset/SET, a path that it opens as often as it
// likes until remove-fd. f stays the caller's.
func (c *Client) AddFD(ctx context.Context, set int, f *os.File) error {
	return c.do(ctx, "add-fd", map[string]int{"fdset-id": set}, nil, f)
}

// write sends a line, with a file if there is one.
func (c *Client) write(line []byte, f *os.File) error {
	u, ok := c.conn.(*net.UnixConn)
	if f == nil || !ok {
		_, err := c.conn.Write(line)
		return err
	}
	n, _, err := u.WriteMsgUnix(line, unix.UnixRights(int(f.Fd())), nil)
	if err == nil && n < len(line) {
		_, err = u.Write(line[n:])
	}
	return err
}

func encode(id uint64, command string, arguments any) ([]byte, error) {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, arguments, id})
	return append(line, '\n'), err
}
