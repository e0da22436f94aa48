package supervise

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseMapping(t *testing.T) {
	for line, want := range map[string]mapping{
		"7f1c00000000-7f1c10000000 rw-p 00001000 00:01 1037 /memfd:attest-memory (deleted)": {
			0x7f1c00000000, 0x7f1c10000000, 0x1000, unix.Mkdev(0, 1), 1037, "/memfd:attest-memory (deleted)"},
		"7ffd1000-7ffd2000 rw-p 00000000 00:00 0 [stack]":                    {0x7ffd1000, 0x7ffd2000, 0, 0, 0, ""},
		"7ffd1000-7ffd2000 rw-p 00000000 00:00 0 ":                           {0x7ffd1000, 0x7ffd2000, 0, 0, 0, ""},
		"7ffd1000-7ffd2000 r--p 00000000 fe:00 12    /a b/c":                 {0x7ffd1000, 0x7ffd2000, 0, unix.Mkdev(0xfe, 0), 12, "/a b/c"},
		"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]": {},
	} {
		if got, err := parseMapping(line); err != nil || got != want {
			t.Errorf("%q: got %+v, %v", line, got, err)
		}
	}
	if m, err := parseMapping("nonsense"); err == nil {
		t.Errorf("got %+v", m)
	}
}

// FuzzParseMapping: a line is refused, or is a range of whole pages of a file.
func FuzzParseMapping(f *testing.F) {
	f.Add("7f1c00000000-7f1c10000000 rw-p 00001000 00:01 1037 /memfd:attest-memory (deleted)")
	f.Add("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]")
	f.Add("7ffd2000-7ffd1000 rw-p 00000000 00:00 0 ")
	f.Add("1-800 rw-p 00000000 00:00 0 ")
	f.Add("-1000-1000 rw-p -1000 00:00 0 ")
	page := int64(os.Getpagesize())
	f.Fuzz(func(t *testing.T, line string) {
		m, err := parseMapping(line)
		if err == nil && (m.start < 0 || m.end < m.start || m.offset < 0 || m.start%page != 0 || m.end%page != 0) {
			t.Errorf("%q: got %+v", line, m)
		}
	})
}
