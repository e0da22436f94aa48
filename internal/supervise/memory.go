package supervise

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// CopyPrivate writes to target, at their offsets in mapped, the pages of a
// process that differ from the file because the process has written to them:
// the file is mapped there privately. The process must not run meanwhile in
// what it has mapped. This is the supervisor's to do: where only a process's
// ancestors may look into it (Yama), the client may not.
func (p *Process) CopyPrivate(ctx context.Context, mapped, target *os.File) error {
	s := p.supervisor
	answer := make(chan string, 1)
	s.mu.Lock()
	if s.lost != nil {
		s.mu.Unlock()
		return s.lost
	}
	s.lastID++
	id := s.lastID
	s.copies[id] = answer
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.copies, id)
		s.mu.Unlock()
	}()
	err := s.send(request{ID: id, Copy: &copyRequest{Process: p.id}}, []*os.File{mapped, target})
	if err != nil {
		return fmt.Errorf("supervisor: %w", err)
	}
	select {
	case failure := <-answer:
		if failure != "" {
			return fmt.Errorf("copy the memory of process %d: %s", p.pid, failure)
		}
		return nil
	case <-s.done:
		return s.lost
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// copyPrivate does the work in the supervisor.
func copyPrivate(pid int, mapped, target *os.File) error {
	var want unix.Stat_t
	if err := unix.Fstat(int(mapped.Fd()), &want); err != nil {
		return err
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", mapped.Fd()))
	if err != nil {
		return err
	}
	maps, err := os.Open(procFile(pid, "maps"))
	if err != nil {
		return err
	}
	defer maps.Close()
	pages, err := os.Open(procFile(pid, "pagemap"))
	if err != nil {
		return err
	}
	defer pages.Close()
	memory, err := os.Open(procFile(pid, "mem"))
	if err != nil {
		return err
	}
	defer memory.Close()
	found := false
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		m, err := parseMapping(lines.Text())
		if err != nil {
			return err
		}
		// On Btrfs and overlayfs a mapping has another device number than the file.
		if m.ino != want.Ino || m.dev != want.Dev && m.path != path {
			continue
		}
		found = true
		if err := m.copy(pages, memory, target); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	if !found {
		return errors.New("the process does not map the file")
	}
	return nil
}

func procFile(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }

// mapping is a line of /proc/<pid>/maps (proc(5)).
type mapping struct {
	start, end, offset int64
	dev, ino           uint64
	path               string
}

func parseMapping(line string) (m mapping, err error) {
	var mode string
	var major, minor uint32
	if _, err := fmt.Sscanf(line, "%x-%x %s %x %x:%x %d", &m.start, &m.end, &mode, &m.offset, &major, &minor, &m.ino); err != nil {
		// The range of [vsyscall] does not fit into 63 bits, and is no file.
		if strings.Contains(line, "[vsyscall]") {
			return mapping{}, nil
		}
		return m, fmt.Errorf("/proc/<pid>/maps: %q: %w", line, err)
	}
	if page := int64(os.Getpagesize()); m.start < 0 || m.end < m.start || m.offset < 0 || m.start%page != 0 || m.end%page != 0 {
		return mapping{}, fmt.Errorf("/proc/<pid>/maps: %q: not a range of pages", line)
	}
	m.dev = unix.Mkdev(major, minor)
	if fields := strings.SplitN(line, "/", 2); len(fields) == 2 {
		m.path = "/" + fields[1]
	}
	return m, nil
}

const (
	pagePresent = 1 << 63 // bits of an entry of /proc/<pid>/pagemap
	pageSwapped = 1 << 62
	pageOfFile  = 1 << 61 // of a file or shared: nobody wrote to it here

	maxCopy = 4 << 20 // bytes at once
)

// copy copies the pages that belong to the process alone, neighbours together.
func (m mapping) copy(pages, memory, target *os.File) error {
	size := int64(os.Getpagesize())
	entries := make([]byte, 8*(64<<10))
	buf := make([]byte, maxCopy)
	var run, length int64 // a piece of the mapping that is to be copied
	flush := func() error {
		if length == 0 {
			return nil
		}
		b := buf[:length]
		if _, err := io.ReadFull(io.NewSectionReader(memory, run, length), b); err != nil {
			return err
		}
		_, err := target.WriteAt(b, m.offset+run-m.start)
		length = 0
		return err
	}
	for at := m.start; at < m.end; {
		n := min(int64(len(entries)), (m.end-at)/size*8)
		if _, err := pages.ReadAt(entries[:n], at/size*8); err != nil {
			return fmt.Errorf("pagemap: %w", err)
		}
		for i := int64(0); i < n; i, at = i+8, at+size {
			e := binary.NativeEndian.Uint64(entries[i:])
			private := e&pageSwapped != 0 || e&pagePresent != 0 && e&pageOfFile == 0
			if !private || length == maxCopy {
				if err := flush(); err != nil {
					return err
				}
			}
			if private {
				if length == 0 {
					run = at
				}
				length += size
			}
		}
	}
	return flush()
}

// copyRequest asks for CopyPrivate of a process that the client started under
// this number; two files come with it.
type copyRequest struct{ Process uint64 }

// copy answers a copyRequest when it is done. It runs beside the loop.
func (s *server) copy(id uint64, pid int, fds []int) {
	mapped, target := os.NewFile(uintptr(fds[0]), "mapped"), os.NewFile(uintptr(fds[1]), "target")
	defer mapped.Close()
	defer target.Close()
	r := reply{ID: id, Copied: true}
	err := error(syscall.ESRCH)
	if pid != 0 {
		err = copyPrivate(pid, mapped, target)
	}
	if err != nil {
		r.Failure = err.Error()
	}
	s.copied <- r
}
