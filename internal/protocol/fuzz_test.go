package protocol

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/session"
)

// A caller is a lab whose operations call the functions that they get.
type caller struct{ lab }

func (c *caller) Invoke(ctx context.Context, object any, o *operation.Operation, args operation.Args) (any, error) {
	for _, p := range []string{"during", "fn", "condition"} {
		if args.Given(p) && args.Func(p) != nil {
			return args.Func(p)(ctx, object, map[string]any{"a": []any{1, "x", nil}})
		}
	}
	if o.Name == "spawn" {
		return operation.Handle{On: operation.Job, Name: "a job"}, nil
	}
	if args.Given("commands") {
		return args.Strings("commands"), nil
	}
	return nil, nil
}

// FuzzServer: whatever a peer sends until it is gone, the server ends then, without an error
// or with one that names the peer.
func FuzzServer(f *testing.F) {
	const hello = `{"jsonrpc":"2.0","id":1,"method":"hello","params":{"protocol":1,"events":true}}` + "\n"
	for _, seed := range []string{
		``, "\n", "garbage\n", hello, hello + hello, `{"jsonrpc":"2.0","id":1,"method":"hello","params":{"protocol":2}}` + "\n",
		hello + `{"jsonrpc":"2.0","id":2,"method":"invoke","params":{"on":{"machine":"a"},"operation":"succeed","args":["x"],"at":{"file":"x","line":-1}}}` + "\n",
		hello + `{"jsonrpc":"2.0","id":2,"method":"invoke","params":{"on":{"kind":"network"},"operation":"partition","args":[{"$machine":"a"},{"$machine":"b"}],"named":{"during":{"$function":5}}}}` + "\n" +
			`{"jsonrpc":"2.0","id":1,"result":{"$bytes":"AA=="}}` + "\n" + `{"jsonrpc":"2.0","id":2,"error":{"code":1,"message":"x","data":{"thrown":{"class":"E","stack":[{"file":"x"}]}}}}` + "\n",
		hello + `{"jsonrpc":"2.0","id":2,"method":"write","params":{"bytes":"AAAA"}}` + "\n" + `{"jsonrpc":"2.0","id":3,"method":"write","params":{"data":1,"bytes":"e30="}}` + "\n" +
			`{"jsonrpc":"2.0","id":4,"method":"read","params":{"data":1,"offset":-1,"length":9223372036854775807}}` + "\n" + `{"jsonrpc":"2.0","id":5,"method":"invoke","params":{"$data":1}}` + "\n" +
			`{"jsonrpc":"2.0","id":6,"method":"release","params":{"data":1,"object":7}}` + "\n",
		hello + `{"jsonrpc":"2.0","id":2,"method":"begin","params":{"kind":"subtest","name":"x"}}` + "\n" + `{"jsonrpc":"2.0","id":3,"method":"watch","params":{"scope":1}}` + "\n" +
			`{"jsonrpc":"2.0","id":4,"method":"finish","params":{"scope":1,"error":{"class":"x"}}}` + "\n",
		hello + `{"jsonrpc":"2.0","id":2,"method":"fork","params":{}}` + "\n" + `{"jsonrpc":"2.0","id":3,"method":"directories","params":{"machine":"a"}}` + "\n" +
			`{"jsonrpc":"2.0","method":"cancel","params":{"id":2}}` + "\n" + `{"jsonrpc":"2.0","id":4,"method":"log","params":{"text":"x","level":"warn"}}` + "\n",
		hello + `{"jsonrpc":"2.0","id":2,"method":"end","params":{"error":{"class":"SystemExit","exit":3,"error":9}}}` + "\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		ours, theirs := net.Pipe()
		ctx := event.WithBus(t.Context(), &event.Bus{})
		s := NewServer(ours, Options{Peer: "Test", Session: session.Over(ctx, &caller{}), Machines: []string{"a", "b"}})
		ended := make(chan error, 1)
		go func() {
			_, err := s.Serve(ctx)
			ended <- err
		}()
		read := make(chan struct{})
		go func() {
			defer close(read)
			io.Copy(io.Discard, theirs)
		}()
		theirs.SetWriteDeadline(time.Now().Add(time.Minute))
		theirs.Write(sent) // an error: it has ended the connection
		theirs.Close()
		select {
		case err := <-ended:
			if peer := (*PeerError)(nil); err != nil && (!errors.As(err, &peer) || peer.Peer != "Test") {
				t.Errorf("%q: got %v", sent, err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%q: it goes on without the peer", sent)
		}
		<-read
	})
}
