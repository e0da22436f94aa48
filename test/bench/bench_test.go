package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func milliseconds(n ...int) []time.Duration {
	d := make([]time.Duration, len(n))
	for i, ms := range n {
		d[i] = time.Duration(ms) * time.Millisecond
	}
	return d
}

func TestSummarize(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = 100 - i // 100 … 1: they need not be in order
	}
	for _, tt := range []struct {
		name    string
		samples []time.Duration
		want    *Stats
	}{
		{"none", nil, nil},
		{"one", milliseconds(5), &Stats{Median: 0.005, P95: 0.005, Min: 0.005, Max: 0.005, N: 1}},
		{"odd", milliseconds(9, 1, 5), &Stats{Median: 0.005, P95: 0.009, Min: 0.001, Max: 0.009, N: 3}},
		{"even", milliseconds(4, 2, 8, 6), &Stats{Median: 0.005, P95: 0.008, Min: 0.002, Max: 0.008, N: 4}},
		{"many", milliseconds(hundred...), &Stats{Median: 0.0505, P95: 0.095, Min: 0.001, Max: 0.1, N: 100}},
	} {
		if diff := cmp.Diff(tt.want, summarize(tt.samples)); diff != "" {
			t.Errorf("%s: -want +got\n%s", tt.name, diff)
		}
	}
}

func TestRowMeetsTarget(t *testing.T) {
	yes, no := true, false
	for _, tt := range []struct {
		name              string
		reference, attest []time.Duration
		target            Target
		want              *bool
	}{
		{"no target", milliseconds(100), milliseconds(1), Target{}, nil},
		{"just so", nil, milliseconds(6), Target{Max: 0.006}, &yes},
		{"too slow", nil, milliseconds(7), Target{Max: 0.006}, &no},
		{"both", milliseconds(150), milliseconds(6), Target{Max: 0.006, Ratio: 25}, &yes},
		{"fast, but so is the reference", milliseconds(140), milliseconds(6), Target{Max: 0.006, Ratio: 25}, &no},
		{"no reference to be better than", nil, milliseconds(1), Target{Ratio: 10}, &no},
	} {
		got := newRow("x", tt.reference, tt.attest, tt.target).Met
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", tt.name, diff)
		}
	}
}

func exampleResults() Results {
	noted := newRow("copy 256 MiB in", scale(milliseconds(1500), 128), milliseconds(3000, 4000), Target{Ratio: 10})
	noted.Note = "reference: 2 MiB, scaled"
	return Results{
		Time: time.Date(2025, 3, 14, 0, 0, 0, 0, time.UTC), Seconds: 300,
		Host:  Host{CPU: "A CPU", CPUs: 2, VMM: "QEMU 7.2.22 under TCG", LoadBefore: "0.10", LoadAfter: "1.00"},
		Guest: Guest{System: "Debian GNU/Linux 12", Kernel: "6.1.0", Memory: 512, CPUs: 1},
		Rows: []Row{
			newRow("`true`", milliseconds(150, 150, 150, 160, 200), milliseconds(5, 5, 5, 5, 5, 9), Target{Max: 0.006, Ratio: 25}),
			newRow("boot", nil, milliseconds(20000), Target{Max: 14}),
			noted,
		},
	}
}

func TestMarkdown(t *testing.T) {
	want := "| what | reference | attest | ratio | target | met |\n" +
		"|---|---|---|---|---|---|\n" +
		"| `true` | 150 ms (p95 200 ms, n 5) | 5.0 ms (p95 9.0 ms, n 6) | 30× | ≤ 6 ms, ≥ 25× | yes |\n" +
		"| boot | – | 20.00 s (n 1) | – | ≤ 14 s | **no** |\n" +
		"| copy 256 MiB in (reference: 2 MiB, scaled) | 192 s (n 1) | 3.50 s (n 2) | 55× | ≥ 10× | yes |\n" +
		"\n" +
		"A CPU, 2 CPUs, QEMU 7.2.22 under TCG. Guest: Debian GNU/Linux 12, Linux 6.1.0, 512 MiB, 1 vCPU." +
		" 14 March 2025, in 300 s; load 0.10 before, 1.00 after.\n"
	if diff := cmp.Diff(want, exampleResults().markdown()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestTextHasAlignedColumns(t *testing.T) {
	lines := strings.Split(exampleResults().text(), "\n")
	column := strings.Index(lines[0], "reference")
	for _, line := range lines[1:4] {
		if before := []rune(line)[column-2 : column]; string(before) != "  " {
			t.Errorf("the second column does not begin below its title in %q", line)
		}
	}
}

func TestResultsAreWritten(t *testing.T) {
	dir := t.TempDir()
	page := filepath.Join(dir, "page.md")
	if err := os.WriteFile(page, []byte("before\n"+tableBegin+"\nold\n"+tableEnd+"\nafter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	o := options{json: filepath.Join(dir, "out", "bench.json"), markdown: page}
	for range 2 { // the second time over its own table
		if err := exampleResults().write(o); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	want := "before\n" + tableBegin + "\n\n" + exampleResults().markdown() + "\n" + tableEnd + "\nafter\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("page: -want +got\n%s", diff)
	}
	data, err := os.ReadFile(o.json)
	if err != nil {
		t.Fatal(err)
	}
	var back Results
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(exampleResults(), back); diff != "" {
		t.Errorf("JSON: -want +got\n%s", diff)
	}
}

func TestPageWithoutPlaceForTable(t *testing.T) {
	for _, page := range []string{"", tableBegin + "\n", tableEnd + "\n" + tableBegin + "\n"} {
		if got, err := replaceTable(page, "table\n"); err == nil {
			t.Errorf("%q became %q", page, got)
		}
	}
}

// localDriver speaks with a bash of this machine.
func localDriver(t *testing.T) *driver {
	t.Helper()
	bash := exec.Command("bash", "--norc")
	in, err := bash.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := bash.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := bash.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		bash.Wait()
	})
	return &driver{in, bufio.NewReader(out)}
}

func TestDriverRunsCommands(t *testing.T) {
	d := localDriver(t)
	for _, tt := range []struct {
		command string
		timeout time.Duration
		code    int
		output  string
	}{
		{"true", 0, 0, ""},
		{"echo a; echo b", driverTimeout, 0, "a\nb\n"},
		{"printf 'it'\"'\"'s'", 0, 0, "it's"},
		{"false | true", 0, 1, ""}, // pipefail
		{"exit 7", driverTimeout, 7, ""},
		{"sleep 60", 100 * time.Millisecond, 124, ""},
	} {
		code, output, err := d.execute(tt.command, tt.timeout)
		if err != nil || code != tt.code || output != tt.output {
			t.Errorf("%s: %d %q %v, want %d %q", tt.command, code, output, err, tt.code, tt.output)
		}
	}
	if _, err := d.succeed("echo no; false"); err == nil || !strings.Contains(err.Error(), "exit code 1") {
		t.Errorf("succeed of a command that fails: %v", err)
	}
}

func TestDriverCopies(t *testing.T) {
	d := localDriver(t)
	content := make([]byte, 2*chunk+100)
	rand.NewChaCha8([32]byte{}).Read(content)
	path := filepath.Join(t.TempDir(), "copy")
	if err := d.copyIn(content, path); err != nil {
		t.Fatal(err)
	}
	got, err := d.copyOut(path)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("copied %d bytes in, and %d other ones out: %v", len(content), len(got), err)
	}
}

func TestDriverWaits(t *testing.T) {
	d := localDriver(t)
	path := filepath.Join(t.TempDir(), "file")
	tries := 0
	err := retry(t.Context(), func() (bool, error) {
		if tries++; tries == 2 {
			_, err := d.succeed("touch " + path)
			return false, err
		}
		code, _, err := d.execute("test -e "+path, driverTimeout)
		return code == 0, err
	})
	if err != nil || tries != 3 {
		t.Errorf("%d tries: %v", tries, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.waitForFile(ctx, path+"-never"); err != context.Canceled {
		t.Errorf("a wait that was given up: %v", err)
	}
}

// localClock speaks with a witness in this process.
func localClock(t *testing.T) *clock {
	t.Helper()
	stdin, in := io.Pipe()
	out, stdout := io.Pipe()
	d := &dialogue{in: in, out: bufio.NewReader(out), ended: make(chan error, 1)}
	go func() {
		witness(stdin, stdout)
		stdout.Close()
		d.ended <- nil
	}()
	t.Cleanup(func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	})
	return &clock{dialogue: d, epoch: time.Now()}
}

func TestReactionIsMeasuredByTwoClocks(t *testing.T) {
	w := localClock(t)
	path := filepath.Join(t.TempDir(), "file")
	const late = 30 * time.Millisecond // the wait returns so long after it has seen the file
	c := waitCase{
		arm: func(delay time.Duration, _ int) error { return w.tell("file %d %s", int64(delay), path) },
		when: func(int) (time.Duration, error) {
			answer, err := w.hear()
			if err != nil {
				return 0, err
			}
			return instant(answer)
		},
	}
	wait := func(int) error {
		for {
			if _, err := os.Stat(path); err == nil {
				<-time.After(late)
				return nil
			}
			<-time.After(time.Millisecond)
		}
	}
	got, err := reaction(c, wait, w, 20*time.Millisecond, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got < late-w.worst || got > time.Minute {
		t.Errorf("a wait that returns %v after the event was measured as %v (±%v)", late, got, w.worst)
	}
}

func TestEventBeforeTheWaitIsRefused(t *testing.T) {
	w := localClock(t)
	var at time.Duration
	c := waitCase{
		arm: func(time.Duration, int) error {
			answer, err := w.ask("now")
			if err != nil {
				return err
			}
			at, err = instant(answer)
			return err
		},
		when: func(int) (time.Duration, error) { return at - time.Minute, nil },
	}
	if got, err := reaction(c, func(int) error { return nil }, w, 0, 0); err == nil {
		t.Errorf("measured as %v", got)
	}
}

func TestWitnessOpensPorts(t *testing.T) {
	w := localClock(t)
	free, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).Port
	free.Close()
	answer, err := w.ask("port 0 %d", port)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := instant(answer); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", net.JoinHostPort("localhost", strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestWitnessOpensSockets(t *testing.T) {
	w := localClock(t)
	path := filepath.Join(t.TempDir(), "s")
	answer, err := w.ask("socket 0 %s", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := instant(answer); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{
		"": "''", "plain-1.0": "plain-1.0", "a b": "'a b'", "it's": `'it'"'"'s'`, "$HOME": "'$HOME'",
	} {
		if got := quote(in); got != want {
			t.Errorf("quote(%q) = %s, want %s", in, got, want)
		}
	}
}
