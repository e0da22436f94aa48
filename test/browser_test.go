package test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"image"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A browser is a Chromium without a window, which tests use as a person uses theirs: with a mouse and a keyboard. It
// is driven by the DevTools protocol (chromedevtools.github.io/devtools-protocol) over a pair of pipes.
type browser struct {
	t         *testing.T
	session   string // of its only page
	modifiers int    // of the mouse
	write     io.Writer

	mu      sync.Mutex
	last    int
	waiting map[int]chan reply
	ended   error // why nothing is answered any more
}

type reply struct {
	Result json.RawMessage
	Error  *struct{ Message string }
}

// browserPictures is where tests leave pictures of pages, for a person to look at.
var browserPictures = flag.String("browser-pictures", "", "write pictures of the pages that tests open to this directory")

// browserPatience is what one call may take on a busy host.
const browserPatience = 2 * time.Minute

// openBrowser opens a page in a browser that ends with the test.
func openBrowser(t *testing.T, url string, size image.Point) *browser {
	t.Helper()
	// It is root in containers, where its own sandbox cannot be; it shows nothing but pages of attest.
	cmd := exec.Command("chromium", "--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage",
		"--no-first-run", "--disable-background-networking", "--user-data-dir="+t.TempDir(), "about:blank")
	toBrowser, ours, err := os.Pipe()
	must(t, err)
	theirs, fromBrowser, err := os.Pipe()
	must(t, err)
	cmd.ExtraFiles = []*os.File{toBrowser, fromBrowser} // 3 and 4
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(t, cmd.Start())
	toBrowser.Close()
	fromBrowser.Close()
	b := &browser{t: t, write: ours, waiting: map[int]chan reply{}}
	read := make(chan struct{})
	go func() { defer close(read); b.read(theirs) }()
	t.Cleanup(func() {
		ours.Close() // it ends
		kill := time.AfterFunc(10*time.Second, func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		cmd.Wait()
		kill.Stop()
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it has left behind
		<-read
		theirs.Close()
	})
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	b.resize(size)
	b.call("Page.navigate", map[string]any{"url": url}, nil)
	b.await("document.readyState === 'complete' && location.href !== 'about:blank'")
	return b
}

// read hands out answers until the browser ends.
func (b *browser) read(from io.Reader) {
	r := bufio.NewReader(from)
	for {
		text, err := r.ReadBytes(0)
		b.mu.Lock()
		if err != nil {
			b.ended = fmt.Errorf("the browser has ended: %w", err)
			for _, c := range b.waiting {
				close(c)
			}
			b.waiting = nil
			b.mu.Unlock()
			return
		}
		var m struct {
			ID int
			reply
		}
		if json.Unmarshal(text[:len(text)-1], &m) == nil && b.waiting[m.ID] != nil {
			b.waiting[m.ID] <- m.reply
			delete(b.waiting, m.ID)
		}
		b.mu.Unlock()
	}
}

// ask calls a method of the protocol.
func (b *browser) ask(ctx context.Context, method string, params any, result any) error {
	got := make(chan reply, 1)
	b.mu.Lock()
	if b.ended != nil {
		defer b.mu.Unlock()
		return b.ended
	}
	b.last++
	b.waiting[b.last] = got
	message := map[string]any{"id": b.last, "method": method, "params": params}
	if b.session != "" {
		message["sessionId"] = b.session
	}
	text, err := json.Marshal(message)
	if err == nil {
		_, err = b.write.Write(append(text, 0))
	}
	b.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case a, ok := <-got:
		switch {
		case !ok:
			return b.ended
		case a.Error != nil:
			return errors.New(a.Error.Message)
		case result != nil:
			return json.Unmarshal(a.Result, result)
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (b *browser) call(method string, params any, result any) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), browserPatience)
	defer cancel()
	if err := b.ask(ctx, method, params, result); err != nil {
		b.t.Fatalf("browser: %s: %v", method, err)
	}
}

// eval evaluates an expression of JavaScript on the page, and waits for a promise.
func (b *browser) eval(expression string, result any) {
	b.t.Helper()
	var got struct {
		Result struct {
			Value json.RawMessage
		}
		ExceptionDetails *struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	b.call("Runtime.evaluate", map[string]any{"expression": expression, "awaitPromise": true, "returnByValue": true}, &got)
	if e := got.ExceptionDetails; e != nil {
		b.t.Fatalf("browser: %s: %s %s", expression, e.Text, e.Exception.Description)
	}
	if result != nil {
		if err := json.Unmarshal(got.Result.Value, result); err != nil {
			b.t.Fatalf("browser: %s is %s: %v", expression, got.Result.Value, err)
		}
	}
}

// await waits until an expression is true.
func (b *browser) await(expression string) {
	b.t.Helper()
	for deadline := time.Now().Add(browserPatience); ; {
		var so bool
		b.eval("new Promise(done => setTimeout(() => done(!!("+expression+")), 10))", &so)
		if so {
			return
		}
		if time.Now().After(deadline) {
			var text string
			b.eval("document.body.innerText", &text)
			b.t.Fatalf("browser: it stays untrue that %s; the page shows:\n%s", expression, text)
		}
	}
}

// resize gives the page a size in pixels.
func (b *browser) resize(size image.Point) {
	b.t.Helper()
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": size.X, "height": size.Y, "deviceScaleFactor": 1, "mobile": false}, nil)
}

// colours has the page be "light" or "dark".
func (b *browser) colours(scheme string) {
	b.t.Helper()
	b.call("Emulation.setEmulatedMedia", map[string]any{"features": []any{map[string]any{"name": "prefers-color-scheme", "value": scheme}}}, nil)
}

// middle is where an element is.
func (b *browser) middle(selector string) image.Point {
	b.t.Helper()
	var at []float64
	b.eval(fmt.Sprintf("(() => { const e = document.querySelector(%q); e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()", selector), &at)
	return image.Pt(int(at[0]), int(at[1]))
}

// mouse is "mouseMoved", "mousePressed" or "mouseReleased", with the left button.
func (b *browser) mouse(what string, at image.Point, held int) {
	b.t.Helper()
	button := "left"
	if what == "mouseMoved" && held == 0 {
		button = "none"
	}
	b.call("Input.dispatchMouseEvent", map[string]any{"type": what, "x": at.X, "y": at.Y, "button": button, "buttons": held, "clickCount": 1, "modifiers": b.modifiers}, nil)
}

// Modifiers of keys and of the mouse.
const (
	ctrl  = 2
	shift = 8
)

// drag presses the button at the first place, and releases it at the last.
func (b *browser) drag(places ...image.Point) { b.t.Helper(); b.dragWith(0, places...) }

// dragWith is drag with modifiers.
func (b *browser) dragWith(modifiers int, places ...image.Point) {
	b.t.Helper()
	b.modifiers = modifiers
	defer func() { b.modifiers = 0 }()
	b.mouse("mouseMoved", places[0], 0)
	b.mouse("mousePressed", places[0], 1)
	for _, p := range places[1:] {
		b.mouse("mouseMoved", p, 1)
	}
	b.mouse("mouseReleased", places[len(places)-1], 0)
}

func (b *browser) click(selector string) {
	b.t.Helper()
	b.drag(b.middle(selector))
}

// typeText types a text where the focus is.
func (b *browser) typeText(text string) {
	b.t.Helper()
	b.call("Input.insertText", map[string]any{"text": text}, nil)
}

// key presses a key, by its name in the DOM.
func (b *browser) key(name string, modifiers int) {
	b.t.Helper()
	codes := map[string]int{"Tab": 9, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Delete": 46, "s": 83}
	for _, what := range []string{"rawKeyDown", "keyUp"} {
		b.call("Input.dispatchKeyEvent", map[string]any{"type": what, "key": name, "code": name, "windowsVirtualKeyCode": codes[name], "modifiers": modifiers}, nil)
	}
}

// picture writes what the page shows to a PNG file.
func (b *browser) picture(path string) {
	b.t.Helper()
	var shot struct{ Data string }
	b.call("Page.captureScreenshot", map[string]any{"format": "png"}, &shot)
	data, err := base64.StdEncoding.DecodeString(shot.Data)
	must(b.t, err)
	must(b.t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(b.t, os.WriteFile(path, data, 0o644))
}
