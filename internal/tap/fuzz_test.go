package tap

import (
	"encoding/json"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/socketpair"
)

// FuzzReceive: whatever comes instead of a helper's answer is an answer or an error,
// and a failure that it tells is one.
func FuzzReceive(f *testing.F) {
	for _, seed := range []string{`{}`, ``, `null`, `{"Step":"open /dev/net/tun","Errno":13,"Remedy":"as root: chmod 666 /dev/net/tun"}`,
		`{"Step":"start the program","Err":"no such file"}`, `{"Errno":-1}`, `{"Step":"x","Errno":99999999}`, `{"Step":`, `{"Err":"without a step"}`, `{"Step":"without an error"}`, `{"Step":"start the program"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		ours, theirs, err := socketpair.New(unix.SOCK_SEQPACKET)
		if err != nil {
			t.Fatal(err)
		}
		defer ours.Close()
		defer theirs.Close()
		if _, err := theirs.Write(message); err != nil {
			t.Skip(err) // it does not fit into a packet
		}
		theirs.Close()
		taps, err := receive(ours)
		var known *UnavailableError
		var a answer
		if told := json.Unmarshal(message, &a) == nil && a != (answer{}); told && err == nil {
			t.Errorf("%q is no failure", message)
		}
		if len(taps) > 0 || errors.As(err, &known) && known.Step == "" || err != nil && err.Error() == "" {
			t.Errorf("%q: got %v, %v", message, taps, err)
		}
	})
}
