package editor_test

import (
	"context"
	"errors"
	"image"
	"image/color"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/attest-vm/attest/internal/screen"
	"github.com/attest-vm/attest/internal/screen/editor"
	"github.com/attest-vm/attest/internal/screen/needle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func picture() *image.RGBA {
	p := image.NewRGBA(image.Rect(0, 0, 40, 30))
	for i := range p.Pix {
		p.Pix[i] = 255
	}
	p.SetRGBA(3, 4, color.RGBA{200, 0, 0, 255})
	return p
}

// open edits a needle until the test ends, or it is saved.
func open(t *testing.T, n *needle.Needle) (url string, ended chan error) {
	t.Helper()
	e, err := editor.Open(n)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended, over := make(chan error, 1), make(chan struct{})
	go func() { defer close(over); ended <- e.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-over; http.DefaultClient.CloseIdleConnections() })
	return e.URL(), ended
}

// ask sends a request, which change may change, and returns the status and the body of the answer.
func ask(t *testing.T, method, url, body string, change func(*http.Request)) (int, string, http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/json")
	}
	if change != nil {
		change(r)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(data), answer.Header
}

const drawn = `{"area": [{"type": "match", "xpos": 2, "ypos": 3, "width": 10, "height": 8, "match": 90, "margin": 20, "click_point": {"xpos": 1, "ypos": 2}}], "tags": ["desktop"]}`

func TestNewNeedle(t *testing.T) {
	dir := t.TempDir()
	const name = `<b>"evil"`
	url, ended := open(t, needle.New(filepath.Join(dir, name+".png"), picture()))
	status, body, head := ask(t, "GET", url, "", nil)
	if status != 200 || strings.Contains(body, name) || !strings.Contains(body, "&lt;b&gt;&#34;evil&#34;") {
		t.Errorf("status %d; the name is markup in %s", status, body)
	}
	if policy := head.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") {
		t.Errorf("policy %q", policy)
	}
	status, body, _ = ask(t, "GET", url+"picture.png", "", nil)
	if got, err := screen.Decode(strings.NewReader(body)); status != 200 || err != nil || !screen.Changed(picture(), got).Empty() {
		t.Errorf("status %d, another picture: %v", status, err)
	}
	if status, body, _ := ask(t, "GET", url+"needle.json", "", nil); status != 200 || !strings.Contains(body, `"area": []`) {
		t.Errorf("status %d: %s", status, body)
	}
	for want, body := range map[string]string{
		"no area of type match":      `{"area": [], "tags": []}`,
		"is not on the picture":      strings.Replace(drawn, `"width": 10`, `"width": 100`, 1),
		`type "other"`:               strings.Replace(drawn, `"match"`, `"other"`, 1),
		"match 200; want percent":    strings.Replace(drawn, "90", "200", 1),
		"unknown field":              strings.Replace(drawn, "tags", "gats", 1),
		"101 areas":                  `{"area": [` + strings.Repeat(`{"type": "match", "width": 1, "height": 1},`, 100) + `{}]}`,
		"request body too large":     `{"tags": ["` + strings.Repeat("x", 2<<20) + `"]}`,
		"unexpected EOF":             drawn[:30],
		"invalid character 'h' look": "hello",
	} {
		if status, said, _ := ask(t, "POST", url+"save", body, nil); status != 400 || !strings.Contains(said, want) {
			t.Errorf("status %d: %s, want %s", status, said, want)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Fatalf("%v was written", left)
	}
	if status, said, _ := ask(t, "POST", url+"save", drawn, nil); status != 200 || !strings.Contains(said, "Saved as ") {
		t.Fatalf("status %d: %s", status, said)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	n, err := needle.Load(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	a := n.Areas[0]
	if a.Box != image.Rect(2, 3, 12, 11) || a.Similarity != .9 || a.Margin != 20 || *a.Click != image.Pt(1, 2) || n.Tags[0] != "desktop" {
		t.Errorf("%+v", n)
	}
}

// What else a needle's file has, and its picture, stay as they are.
func TestEditNeedle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "n")
	n := needle.New(path, picture())
	if err := n.Edit([]byte(drawn)); err != nil {
		t.Fatal(err)
	}
	if err := n.Save(); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(path+".json", []byte(strings.Replace(drawn, "{", `{"properties": [{"name": "workaround"}], `, 1)), 0o644)
	before, _ := os.Stat(path + ".png")
	n, err := needle.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	url, ended := open(t, n)
	if status, said, _ := ask(t, "POST", url+"save", strings.Replace(drawn, "90", "80", 1), nil); status != 200 {
		t.Fatalf("status %d: %s", status, said)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	data, _ := os.ReadFile(path + ".json")
	if text := string(data); !strings.Contains(text, `"workaround"`) || !strings.Contains(text, `"match": 80`) {
		t.Errorf("%s", text)
	}
	if after, err := os.Stat(path + ".png"); err != nil || !os.SameFile(before, after) {
		t.Errorf("the picture was written again, or is gone: %v", err)
	}
}

// Nobody else's page and no other name of this host gets at a needle.
func TestStrangers(t *testing.T) {
	dir := t.TempDir()
	url, ended := open(t, needle.New(filepath.Join(dir, "n"), picture()))
	root := url[:strings.LastIndex(strings.TrimSuffix(url, "/"), "/")+1]
	for name, c := range map[string]struct {
		method, url string
		change      func(*http.Request)
		want        int
	}{
		"no token":           {"GET", root, nil, 404},
		"another token":      {"GET", root + "AAAAAAAAAAAAAAAAAAAAAAAAAA/picture.png", nil, 404},
		"another name":       {"GET", url, func(r *http.Request) { r.Host = "rebound.example:80" }, 404},
		"another page":       {"POST", url + "save", func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }, 403},
		"a form":             {"POST", url + "save", func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }, 415},
		"saving by a link":   {"GET", url + "save", nil, 404},
		"files of this host": {"GET", url + "../../etc/passwd", nil, 404},
	} {
		if status, body, _ := ask(t, c.method, c.url, drawn, c.change); status != c.want {
			t.Errorf("%s: status %d: %s", name, status, body)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("%v was written", left)
	}
	select {
	case err := <-ended:
		t.Errorf("it has ended: %v", err)
	default:
	}
}

func TestInterrupt(t *testing.T) {
	e, err := editor.Open(needle.New(filepath.Join(t.TempDir(), "n"), picture()))
	if err != nil {
		t.Fatal(err)
	}
	why := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if err := e.Run(ctx); err != why {
		t.Errorf("got %v", err)
	}
}
