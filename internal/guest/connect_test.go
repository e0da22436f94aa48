package guest_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/guest"
)

// A service listens in the "guest" and gives each connection to fn.
func service(t *testing.T, address string, fn func(*net.TCPConn)) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.SetDeadline(time.Now().Add(patience))
			running.Go(func() {
				defer conn.Close()
				fn(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { l.Close(); running.Wait() })
	return l.Addr().(*net.TCPAddr).Port
}

// connect is a client's end of a connection to a port in the guest, and how it ended.
func connect(t *testing.T, c *guest.Client, port int) (client *net.TCPConn, ended <-chan error) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	done := make(chan error, 1)
	ctx := testContext(t)
	go func() {
		tcp := accepted.(*net.TCPConn)
		done <- c.Connect(ctx, port, tcp, func() { tcp.SetLinger(0) })
	}()
	return conn.(*net.TCPConn), done
}

// randomBytes is a stream that a test can tell from any other.
func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
	return b
}

// TestConnect sends much both ways at once over many connections. Each side
// ends its own direction, and the service answers what it got when all is there.
func TestConnect(t *testing.T) {
	c := newMachine(t)
	port := service(t, "127.0.0.1:0", func(conn *net.TCPConn) {
		var first [1]byte
		io.ReadFull(conn, first[:])
		var sent sync.WaitGroup
		sent.Go(func() { conn.Write(randomBytes(uint64(first[0]), 1<<20)) })
		h := sha256.New()
		io.Copy(h, conn)
		sent.Wait()
		conn.Write(h.Sum(nil))
	})
	var all sync.WaitGroup
	for i := range 20 {
		client, ended := connect(t, c, port)
		all.Go(func() {
			up, down := randomBytes(uint64(100+i), 1<<19+i), randomBytes(uint64(i), 1<<20)
			all.Go(func() {
				client.Write(append([]byte{byte(i)}, up...))
				client.CloseWrite()
			})
			got, err := io.ReadAll(client)
			sum := sha256.Sum256(up)
			if want := append(down, sum[:]...); err != nil || !bytes.Equal(got, want) {
				t.Errorf("connection %d: %d bytes, %v; want %d", i, len(got), err, len(want))
			}
			client.Close()
			if err := <-ended; err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
		})
	}
	all.Wait()
}

func TestConnectToIPv6Alone(t *testing.T) {
	if l, err := net.Listen("tcp6", "[::1]:0"); err != nil {
		t.Skip("this host has no IPv6")
	} else {
		l.Close()
	}
	port := service(t, "[::1]:0", func(conn *net.TCPConn) { io.WriteString(conn, "hello") })
	client, _ := connect(t, newMachine(t), port)
	if got, err := io.ReadAll(client); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
}

// Nobody listens: the client's connection is reset, not ended as if all were well.
func TestConnectIsRefused(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	client, ended := connect(t, newMachine(t), l.Addr().(*net.TCPAddr).Port)
	if n, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%d, %v", n, err)
	}
	wantError[*guest.OpError](t, ended, "no process listens on port")
}

func TestConnectIsReset(t *testing.T) {
	port := service(t, "127.0.0.1:0", func(conn *net.TCPConn) {
		io.ReadFull(conn, make([]byte, 5))
		conn.SetLinger(0)
	})
	client, ended := connect(t, newMachine(t), port)
	io.WriteString(client, "hello")
	if n, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%d, %v", n, err)
	}
	wantError[*guest.OpError](t, ended, "connection reset")
}

// A client that goes away takes the service's connection with it.
func TestConnectIsCutOff(t *testing.T) {
	got := make(chan error, 1)
	port := service(t, "127.0.0.1:0", func(conn *net.TCPConn) {
		io.WriteString(conn, "hello")
		_, err := io.Copy(io.Discard, conn)
		got <- err
	})
	client, ended := connect(t, newMachine(t), port)
	io.ReadFull(client, make([]byte, 5))
	client.SetLinger(0)
	client.Close()
	if err := <-ended; err == nil {
		t.Error("no error")
	}
	if err := <-got; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the service: %v", err)
	}
}

// The service ends its direction first.
func TestConnectToAServiceThatSaysNoMore(t *testing.T) {
	port := service(t, "127.0.0.1:0", func(conn *net.TCPConn) {
		io.WriteString(conn, "all there is")
		conn.CloseWrite()
		io.Copy(io.Discard, conn)
	})
	client, ended := connect(t, newMachine(t), port)
	if got, err := io.ReadAll(client); err != nil || string(got) != "all there is" {
		t.Errorf("%q, %v", got, err)
	}
	client.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
