package guest

import (
	"context"
	"errors"
	"io"

	"github.com/attest-vm/attest/internal/wire"
)

// A Duplex is a connection whose two directions end one by one, such as a
// *net.TCPConn.
type Duplex interface {
	io.ReadWriteCloser
	CloseWrite() error
}

var errHungUp = errors.New("the connection was cut off")

// Connect connects conn with a TCP port of the guest, at localhost or, where
// nothing listens there, at one of the guest's own addresses. It closes conn and
// returns when both directions have ended in order, or with an error when the
// connection broke or was never made; abort is called before conn is closed then.
func (c *Client) Connect(ctx context.Context, port int, conn Duplex, abort func()) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { abort(); conn.Close() })()
	k, err := c.open(ctx, wire.OpConnect, wire.ConnectRequest{Port: port}, nil)
	if err != nil {
		abort()
		return err
	}
	up, down := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(up)
		if _, err := io.Copy(k.stream.Writer(wire.Stdin), conn); err != nil {
			k.stream.Cancel(errHungUp)
		} else {
			k.stream.CloseWrite(wire.Stdin)
		}
	}()
	go func() {
		defer close(down)
		if _, err := io.Copy(conn, k.stream.Reader(wire.Stdout)); err != nil {
			k.stream.Cancel(errHungUp)
		} else if k.stream.Context().Err() == nil {
			conn.CloseWrite()
		}
	}()
	if err = k.wait(ctx, nil); err == nil {
		<-down
	} else {
		abort()
	}
	conn.Close()
	<-up
	<-down
	return err
}
