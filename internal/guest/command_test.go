package guest_test

import (
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/guest"
)

func TestCommandSemantics(t *testing.T) {
	m := newMachine(t)
	for _, tt := range []struct {
		script string
		code   int
		stdout string
		stderr string // contained
	}{
		{"true", 0, "", ""},
		{"echo hello", 0, "hello\n", ""},
		{"echo out; echo err >&2; exit 7", 7, "out\n", "err\n"},
		{"false; echo not reached", 1, "", ""},
		{"echo $nothing", 1, "", "nothing: unbound variable"},
		{"false | true", 1, "", ""},
		{"pwd; echo $USER $HOME $DISPLAY [$PAGER]", 0, "/tmp\nroot /root :0.0 []\n", ""},
		{"cat", 0, "", ""},
		{"echo $0 $#", 0, "bash 0\n", ""},
		{"nosuchcommand", 127, "", "bash: line 1: nosuchcommand: command not found"},
		{"if", 2, "", "syntax error"},
		{"kill -KILL $$", 137, "", ""},
		{"sleep 0.05 & echo done", 0, "done\n", ""},
		{"(sleep 0.05; echo late) & echo first", 0, "first\nlate\n", ""},
		{"printf '\\377\\000x'", 0, "\xff\x00x", ""},
		{"trap 'echo bye' EXIT; echo hi", 0, "hi\nbye\n", ""},
		{"echo $SHLVL $BASH_SUBSHELL; test $$ = $BASHPID", 0, "2 0\n", ""},
		{"trap; jobs; echo $-", 0, "ehuBc\n", ""},
		{"ls /proc/self/fd | wc -l", 0, "4\n", ""},
		{"cat /proc/self/oom_score_adj", 0, "0\n", ""},
	} {
		for _, warm := range []bool{false, true} {
			if warm {
				if err := m.Warm(testContext(t)); err != nil {
					t.Fatal(err)
				}
			}
			r, err := m.Run(testContext(t), guest.Command{Script: tt.script})
			if err != nil {
				t.Fatalf("%s: %v", tt.script, err)
			}
			if r.ExitCode != tt.code || string(r.Stdout) != tt.stdout || !strings.Contains(string(r.Stderr), tt.stderr) {
				t.Errorf("%s (warm=%v): code %d, stdout %q, stderr %q; want %d, %q, %q",
					tt.script, r.Warm, r.ExitCode, r.Stdout, r.Stderr, tt.code, tt.stdout, tt.stderr)
			}
		}
	}
}
