package test

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Ctrl-C while several forks run: all of them end, nothing of them is left, and
// the reports have every test, and what was in its way.
func TestInterruptForks(t *testing.T) {
	t.Parallel()
	out := t.TempDir()
	file := writeFile(t, filepath.Join(out, "forks_test.star"), `
m = machine(image = debian(), memory = 256)

def setup():
    m.succeed("true")

def hang():
    m.succeed("sleep infinity & echo started")

def test_a(): hang()
def test_b(): hang()
def test_c(): hang()
`)
	p := start(t, newStateDir(t), nil, "attest", "run", "-o", out, "-j", "2", "--seed", "1", file)
	events := filepath.Join(out, "events.jsonl")
	const held = "its standard output is held open by `sleep infinity` (pid "
	hangs := func(test string) func() bool {
		return func() bool {
			text, _ := os.ReadFile(events) // which may not be there yet
			for line := range strings.Lines(string(text)) {
				if strings.Contains(line, `"type":"step_waiting"`) && strings.Contains(line, `"test":"`+test+`"`) && strings.Contains(line, held) {
					return true
				}
			}
			return false
		}
	}
	p.poll(t, "first fork", hangs("test_c"))
	p.poll(t, "second fork", hangs("test_a"))
	tree := processTree(p.cmd.Process.Pid)
	p.cmd.Process.Signal(syscall.SIGINT)
	if code := p.exitCode(t); code != 130 {
		t.Errorf("exit code %d", code)
	}
	for _, proc := range tree {
		if proc.alive() {
			t.Errorf("%v is left", proc)
		}
	}
	data, err := os.ReadFile(filepath.Join(out, "junit.xml"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Suites []struct {
			Cases []struct {
				Name  string `xml:"name,attr"`
				Error *struct {
					Type    string `xml:"type,attr"`
					Message string `xml:"message,attr"`
				} `xml:"error"`
				Skipped *struct{} `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range doc.Suites[0].Cases {
		how := "?"
		switch {
		case c.Error != nil:
			how = c.Error.Type
			if !strings.Contains(c.Error.Message, "under way was m: succeed(") || !strings.Contains(c.Error.Message, held) {
				t.Errorf("%s does not say what was in its way: %s", c.Name, c.Error.Message)
			}
		case c.Skipped != nil:
			how = "skipped"
		}
		got = append(got, c.Name+" "+how)
	}
	if want := "test_a interrupted, test_b skipped, test_c interrupted"; strings.Join(got, ", ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
