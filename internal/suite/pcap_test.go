package suite

import (
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/script"
)

func TestPcapName(t *testing.T) {
	for _, tt := range []struct {
		scope event.Scope
		want  string
	}{
		{event.Scope{File: "web_test.star", Test: "test_a"}, "web_test-test_a"},
		{event.Scope{File: "./sub/web_test.star", Test: "test_a", Boot: "cold"}, "sub-web_test-test_a-cold"},
		{event.Scope{File: "../../x.star", Test: "main"}, "x-main"},
		{event.Scope{File: "/abs/x.star", Test: "main"}, "abs-x-main"},
	} {
		if got := tt.scope.Name(); got != tt.want {
			t.Errorf("%+v: got %s, want %s", tt.scope, got, tt.want)
		}
	}
}

func TestOnePcapForSeveralTests(t *testing.T) {
	with := func(tests, variants int) *file {
		return &file{tests: make([]script.Test, tests), variants: make([]variant, variants)}
	}
	one := &plan{files: []*file{with(1, 1), with(0, 1)}}
	two := &plan{files: []*file{with(1, 1), with(1, 1)}}
	for _, tt := range []struct {
		plan       *plan
		pcap, boot string
		ok         bool
	}{
		{one, "x", "", true}, {two, "x.pcapng", "", false}, {one, "x.pcap", "both", false}, {two, "dir", "both", true}, {two, "", "warm", true},
		{&plan{files: []*file{with(1, 2)}}, "x.pcap", "", false},
	} {
		r := &run{opts: Options{Pcap: tt.pcap, Boot: tt.boot}}
		err := r.checkPcap(tt.plan)
		if (err == nil) != tt.ok || err != nil && !strings.Contains(err.Error(), "2 tests run") {
			t.Errorf("--pcap %s: %v", tt.pcap, err)
		}
	}
}

// Whatever two files of a run are called, their tests write to places of their own.
func TestLabels(t *testing.T) {
	files := []string{"a/b.star", "a-b.star", "web_test.star", "sub/web_test.star", "../x.star", "x.star", "x.py", "/x.star"}
	seen := map[string]string{}
	for i, label := range event.Labels(files) {
		name := event.Scope{File: files[i], Test: "main", Label: label}.Name()
		if seen[name] != "" || strings.ContainsAny(name, "/.") {
			t.Errorf("%s: %s, as %q", files[i], name, seen[name])
		}
		seen[name] = files[i]
	}
	for _, plain := range []string{"web_test-main", "sub-web_test-main"} {
		if seen[plain] == "" {
			t.Errorf("nothing is called %s: %v", plain, seen)
		}
	}
}
