package agent

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/wire"
)

// A command for which there are no descriptors left fails, and leaves none behind.
func TestNoDescriptorsLeft(t *testing.T) {
	open := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(d)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	for _, q := range []wire.ExecRequest{{}, {Stdin: true}, {Detach: true}} {
		before, failed := open(), 0
		for n := uint64(3); ; n++ {
			unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: limit.Max})
			files, c, err := childFiles(q)
			unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
			if err == nil {
				closeAll(append(files, c.stdout, c.stderr))
				if c.stdin != nil {
					c.stdin.Close()
				}
			} else if failed++; !errors.Is(err, unix.EMFILE) {
				t.Fatal(err)
			}
			if after := open(); after != before {
				t.Fatalf("with %d descriptors, %d are open after %v; before, %d", n, after, err, before)
			}
			if err == nil {
				break
			}
		}
		if failed < 3 {
			t.Errorf("%+v failed %d times only", q, failed)
		}
	}
}
