package attest

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"image"
	"image/color"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/report"
	"github.com/attest-vm/attest/internal/screen/ocr"
	"github.com/attest-vm/attest/internal/screen/screentest"
	"github.com/attest-vm/attest/internal/vmm/mock"
)

// pngChunk is a part of a PNG file.
func pngChunk(kind string, data []byte) []byte {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
	out = append(append(out, kind...), data...)
	return binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(out[4:]))
}

// bomb is a PNG file that says how large its picture is, and has so many bytes of it.
func bomb(width, height uint32, bytesOf int) []byte {
	head := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, width), height)
	head = append(head, 8, 2, 0, 0, 0)
	var packed bytes.Buffer
	z, _ := zlib.NewWriterLevel(&packed, zlib.BestSpeed)
	zeros := make([]byte, 1<<20)
	for ; bytesOf > 0; bytesOf -= len(zeros) {
		z.Write(zeros[:min(len(zeros), bytesOf)])
	}
	z.Close()
	out := []byte("\x89PNG\r\n\x1a\n")
	out = append(out, pngChunk("IHDR", head)...)
	out = append(out, pngChunk("IDAT", packed.Bytes())...)
	return append(out, pngChunk("IEND", nil)...)
}

// Needles that somebody else has made take no more memory or time than a needle may.
func TestHostileNeedles(t *testing.T) {
	dir := needleFiles(t, map[string]string{"huge-picture": buttonArea, "huge-text": buttonArea, "bomb": buttonArea, "long-bomb": buttonArea})
	for path, data := range map[string][]byte{"bomb.png": bomb(60_000, 60_000, 1000), "long-bomb.png": bomb(640, 480, 4<<20)} {
		if err := os.WriteFile(filepath.Join(dir, path), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"huge-picture.png", "huge-text.json"} {
		if err := os.Truncate(filepath.Join(dir, path), 1<<30); err != nil { // holes
			t.Fatal(err)
		}
	}
	s := newStage(t, mock.Options{})
	m, _ := s.shows(t, desktop(image.Pt(100, 100)))
	for name, want := range map[string]string{
		"huge-picture": "has 1024 MiB; a picture has at most 160", "huge-text": "more than 1048576", "bomb": "a picture of 60000×60000", "long-bomb": "too much pixel data",
	} {
		var ce *ConfigError
		if _, err := m.AssertScreen(limited(t), filepath.Join(dir, name)); !errors.As(err, &ce) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
}

// A screen that changes with each look, in size too, is looked at until the limit, and no longer.
func TestHostileScreen(t *testing.T) {
	s := newStage(t, mock.Options{})
	dir := needleFiles(t, map[string]string{"button": buttonArea})
	m, vm := s.shows(t, desktop(image.Pt(300, 300)))
	var reads atomic.Int32
	m.text = ocr.NewReader(func(context.Context, []byte, ...string) ([]byte, error) { reads.Add(1); return nil, nil })
	over, stop := context.WithCancel(t.Context())
	changing := make(chan struct{})
	go func() {
		defer close(changing)
		for i := 0; over.Err() == nil; i++ {
			p := screentest.Uniform(image.Pt(320+i%7*40, 200+i%5*30), color.RGBA{uint8(i), uint8(i >> 8), 90, 255})
			screentest.Fill(p, image.Rect(10, 10, 100+i%50, 40), color.RGBA{uint8(3 * i), 200, uint8(i), 255})
			vm.Show(p)
			select {
			case <-over.Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	limit := Timeout(2 * time.Second)
	for name, wait := range map[string]func() error{
		"wait_for_text":   func() error { return m.WaitForText(limited(t), "never shown", limit) },
		"wait_for_screen": func() error { _, err := m.WaitForScreen(limited(t), dir+"/button", limit); return err },
	} {
		var we *WaitError
		if err := wait(); !errors.As(err, &we) || !we.Timeout() || we.Operation != name || we.Tries < 1 {
			t.Errorf("%s: %+v", name, err)
		}
	}
	if _, err := m.FindOnScreen(limited(t), dir+"/button"); err != nil {
		t.Error(err)
	}
	if err := m.MouseMove(limited(t), 100, 100); err != nil {
		t.Error(err)
	}
	// A region may be outside of the screen at the next look.
	var ce *ConfigError
	if err := m.WaitForText(limited(t), "never shown", limit, Region(image.Rect(1000, 1000, 1100, 1100))); !errors.As(err, &ce) {
		t.Errorf("got %v", err)
	}
	stop()
	<-changing
	if reads.Load() < 3 {
		t.Errorf("tesseract was asked %d times", reads.Load())
	}
}

// What a guest draws is text in the report, whatever it looks like.
func TestHostileTextInReport(t *testing.T) {
	s := newStage(t, mock.Options{})
	const markup = `</pre><script>alert(1)</script><img src=x onerror=alert(2)> & "`
	m, _ := s.shows(t, screentest.VGA(consoleFont(t)).Draw(markup))
	path := filepath.Join(t.TempDir(), "report.html")
	reports, err := report.Open(report.Options{HTML: path})
	if err != nil {
		t.Fatal(err)
	}
	var bus event.Bus
	defer bus.Subscribe(reports.Record)()
	scope := event.Scope{File: "a_test.star", Test: "test_it"}
	bus.Publish(scope, event.TestStarted{})
	failed := m.WaitForText(event.WithScope(event.WithBus(limited(t), &bus), scope), "something else", Timeout(0))
	if failed == nil {
		t.Fatal("it is on the screen")
	}
	bus.Publish(scope, event.TestFinished{Status: event.Failed, Failure: failureOf(failed, "m", "wait_for_text")})
	if _, err := reports.Close(); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text := string(page); strings.Contains(text, "<script>alert") || strings.Contains(text, "<img src=x") || !strings.Contains(text, "&lt;script&gt;alert(1)&lt;/script&gt;") {
		t.Errorf("the page has the guest's markup, or not its text")
	}
}
