package supervise

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func needView(t *testing.T) {
	t.Helper()
	if !CanView() {
		t.Skip("this kernel has no Landlock")
	}
}

// seen runs a script with a view, and returns what it says.
func seen(t *testing.T, s *Supervisor, v *View, script string, inherits ...*os.File) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	v.Read = append(v.Read, "/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")
	v.Write = append(v.Write, "/dev/null")
	p, err := s.Start(t.Context(), Command{Path: "/bin/bash", Args: []string{"bash", "-c", script}, Stdout: w, Stderr: w, ExtraFiles: inherits, View: v})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		out.Write(buf[:n])
		if err != nil {
			break
		}
	}
	if st, err := p.Wait(t.Context()); err != nil || st.Signal != 0 {
		t.Errorf("%v, %v", st, err)
	}
	return out.String()
}

// A process with a view opens what is in it, and nothing else of the user's: not to
// read, to write, to list, to make or to remove, and not by a program that it starts.
func TestView(t *testing.T) {
	needView(t)
	s, err := Start(t.Context(), Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"secret", "shown", "given", "inherited", "inherited for reading"} {
		if err := os.WriteFile(path(name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(path("own"), 0o700); err != nil {
		t.Fatal(err)
	}
	inherited, err := os.OpenFile(path("inherited"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer inherited.Close()
	toRead, err := os.Open(path("inherited for reading"))
	if err != nil {
		t.Fatal(err)
	}
	defer toRead.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	for _, tt := range []struct {
		script string
		may    bool
	}{
		{"read x < shown; [ $x = shown ]", true},
		{"cat shown", true},
		{"echo x >> shown", false},
		{"echo x >> given", true},
		{"read x < secret", false},
		{"cat secret", false},
		{"ln secret own/secret && cat own/secret", false},
		{"echo x >> secret", false},
		{"truncate -s 0 secret", landlockVersion() < 3},
		{"ls .", false},
		{"ls own", true},
		{"mkdir own/new && echo x > own/new/x && rm -r own/new", true},
		{"echo x > new", false},
		{"rm secret", false},
		{"mv secret own/", false},
		{"echo x >> /proc/self/fd/3", true},
		{"cat /proc/self/fd/4", true},
		{"echo x >> /proc/self/fd/4", false},
		{"cat /proc/1/cmdline", false},
		{"cat ~/.ssh/* /etc/passwd", false},
		{"exec 5<>/dev/tcp/127.0.0.1/" + port, landlockVersion() < 4},
		{"kill -0 $PPID", landlockVersion() < 6},
	} {
		v := &View{Read: []string{path("shown"), path("none")}, Write: []string{path("given"), path("own")}}
		out := seen(t, s, v, "cd "+dir+" && { "+tt.script+"; } && echo worked", inherited, toRead)
		if strings.Contains(out, "worked") != tt.may {
			t.Errorf("%s: %s", tt.script, out)
		}
	}
	if b, err := os.ReadFile(path("secret")); err != nil || landlockVersion() >= 3 && string(b) != "secret" {
		t.Errorf("the secret: %q, %v", b, err)
	}
}

// A process with a view lives as long as one without, and no longer: the kernel ties
// its life to the thread that has started it.
func TestViewLastsAsLongAsTheProcess(t *testing.T) {
	needView(t)
	s, err := Start(t.Context(), Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	start := func() *Process {
		p, err := s.Start(t.Context(), Command{Path: "sleep", Args: []string{"sleep", "1000"}, View: &View{Read: []string{"/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache"}}})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p, another := start(), start()
	for range 20 { // threads of the supervisor come and go
		if out := seen(t, s, &View{}, "echo here"); out != "here\n" {
			t.Fatalf("got %q", out)
		}
	}
	another.Kill()
	<-another.Done()
	select {
	case <-p.Done():
		t.Fatalf("it has ended: %v", p.Status())
	default:
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(p.Pid()))); err == nil {
		t.Error("it outlives its supervisor")
	}
}

// A program that is not in its own view cannot be executed.
func TestViewWithoutTheProgram(t *testing.T) {
	needView(t)
	s, err := Start(t.Context(), Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Start(t.Context(), Command{Path: "/bin/true", View: &View{}}); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("got %v", err)
	}
}
