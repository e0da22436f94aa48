package fake

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// mains are the fakes that this binary can be, by their names.
var mains = map[string]bool{}

// Main runs a fake if this process was started as one of that name, and returns otherwise. It is
// for TestMain.
func Main[Options any](name string, run func(o Options, args []string) int) {
	mains[name] = true
	text, args := os.Getenv(Variable(name)), os.Args[1:]
	if len(os.Args) >= 3 && os.Args[1] == argument(name) {
		text, args = os.Args[2], os.Args[3:]
	}
	if text == "" {
		return
	}
	var o Options
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(153)
	}
	os.Exit(run(o, args))
}

// A fake is told what it is by an argument, or by a variable where no script adds one.
func argument(name string) string { return "fake-" + name }

// Variable is the name of the environment variable by which this binary is the fake of a name.
func Variable(name string) string {
	return strings.ToUpper(strings.ReplaceAll(argument(name), "-", "_"))
}

// T is what Install needs of a test.
type T interface {
	Helper()
	TempDir() string
	Setenv(key, value string)
	Fatal(args ...any)
}

// Install makes this test binary the VMM of a test, on a host that seems to have KVM: the
// variable env names it, if that is not empty. It is a script that starts this binary, or the binary itself. Install
// returns the program.
func Install(t T, name, env string, options any, itself bool) string {
	t.Helper()
	if !mains[name] {
		t.Fatal("TestMain has not called Main: this binary would start its tests again, and they it, without end")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("ATTEST_ACCEL", "kvm")
	named := func(path string) string {
		if env != "" {
			t.Setenv(env, path)
		}
		return path
	}
	if itself {
		t.Setenv(Variable(name), string(b))
		return named(self)
	}
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	path := filepath.Join(t.TempDir(), name)
	script := fmt.Sprintf("#!/bin/sh\nGORACE=atexit_sleep_ms=0 exec %s %s %s \"$@\"\n", quote(self), argument(name), quote(string(b)))
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return named(path)
}

// Faults are what goes wrong with requests, by how they begin, such as "PUT /vm.boot".
type Faults struct {
	Refuse map[string]string // for this reason
	Status map[string]int    // another status, and a body that is not JSON
	Exit   map[string]int    // the process exits so instead of an answer
	Half   map[string]bool   // the answer ends in its middle, and with it the process
}

// Strike does to a request what is to go wrong with it. The reason of a refusal is for the
// caller to put into its VMM's form; otherwise done says that there is nothing left to do.
func (f Faults) Strike(w http.ResponseWriter, request string) (refusal string, done bool) {
	for key, code := range f.Exit {
		if strings.HasPrefix(request, key) {
			fmt.Fprintln(os.Stderr, "the fake was told to end at "+key)
			os.Exit(code)
		}
	}
	for key := range f.Half {
		if strings.HasPrefix(request, key) {
			conn, _, _ := w.(http.Hijacker).Hijack()
			conn.Write([]byte("HTTP/1.1 200 \r\nContent-Length: 100\r\n\r\n{\"fau"))
			os.Exit(1)
		}
	}
	for key, status := range f.Status {
		if strings.HasPrefix(request, key) {
			http.Error(w, "something went wrong", status)
			return "", true
		}
	}
	for key, text := range f.Refuse {
		if strings.HasPrefix(request, key) {
			return text, false
		}
	}
	return "", false
}
