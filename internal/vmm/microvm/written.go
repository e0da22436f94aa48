package microvm

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxWritten is how much ReadWritten reads: a state has 100 KB.
const maxWritten = 64 << 20

// OpenWritten opens a file that a VMM has written somewhere below a directory. A guest that has
// taken over its VMM can have put anything there: a link to a file that this process may read and the
// VMM may not, or a pipe that nobody writes to. That is an error.
func OpenWritten(dir, name string) (*os.File, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(fmt.Errorf("%s is not a file", name), err)
	}
	return f, nil
}

// ReadWritten reads such a file.
func ReadWritten(dir, name string) ([]byte, error) {
	f, err := OpenWritten(dir, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxWritten+1))
	if err == nil && len(b) > maxWritten {
		err = fmt.Errorf("%s has more than %d bytes", name, maxWritten)
	}
	return b, err
}
