package console

import (
	"strings"
	"testing"
)

// What systemd draws while a boot waits is left out, and all else is as it came.
func TestAnimation(t *testing.T) {
	const up = "\x1bM\r\x1b[K"
	said := "[  OK  ] Started a.service.\r\n" +
		"[*     ] Job slow.service/start running (5s / no limit)\r\n" +
		up + "[**    ] Job slow.service/start running (6s / no limit)\r\n" +
		up + "[***   ] (1 of 2) Job slow.service/start running (6s / no limit): Processing requests...\r\n" +
		up + "[ ***  ] (2 of 2) A start job is running for /dev/sda (1min 5s / 1min 30s)\r\n" +
		up + "[  *** ] (2 of 2) A start job is running for /dev/sda (1min 6s / 1min 30s)\r\n" +
		up + "[FAILED] Failed to start b.service.\r\n" +
		"[      ] a line of somebody else\r\n" +
		"[   12.3] kernel: line\r\n\x1b[1;31mred\x1b[0m\r\n\r\nlogin: "
	want := "[  OK  ] Started a.service.\n" +
		"[FAILED] Failed to start b.service.\n" +
		"[      ] a line of somebody else\n" +
		"[   12.3] kernel: line\n\x1b[1;31mred\x1b[0m\n\nlogin: "
	for _, piece := range []int{1, 7, len(said)} {
		var lines []string
		c := New(nil, func(line string) { lines = append(lines, line) })
		c.Begin()
		for rest := said; rest != ""; {
			n := min(piece, len(rest))
			c.add([]byte(rest[:n]))
			rest = rest[n:]
		}
		if got := c.SinceBoot(); got != want {
			t.Errorf("in pieces of %d:\n%q\nwant\n%q", piece, got, want)
		}
		if got := strings.Join(lines, "\n"); strings.Contains(got, "running") || len(lines) != 5 {
			t.Errorf("in pieces of %d, lines:\n%s", piece, got)
		}
	}
}
