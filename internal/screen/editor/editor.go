// Package editor shows needles to a person, in a browser, who draws what of them counts.
//
// Its page is on loopback, at an address that nobody can guess. A request that comes by another name (DNS rebinding) or
// from another page is refused.
package editor

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	_ "embed"
	"fmt"
	"html/template"
	"image/png"
	"io"
	"mime"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/screen/needle"
)

//go:embed page.html
var pageSource string

var page = template.Must(template.New("page").Parse(pageSource))

// maxEdit bounds what the page sends, in bytes. It is more than a needle of the largest number of areas has.
const maxEdit = 1 << 20

// An Editor has one needle on a page until it is saved.
type Editor struct {
	mu      sync.Mutex // held while the needle is read or changed
	needle  *needle.Needle
	token   string
	picture []byte // as PNG
	listen  net.Listener
	saved   chan struct{} // closed when the needle is on disk
}

// Open begins to listen for a browser. Run has to be called.
func Open(n *needle.Needle) (*Editor, error) {
	var picture bytes.Buffer
	if err := png.Encode(&picture, n.Picture); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return &Editor{needle: n, token: rand.Text(), picture: picture.Bytes(), listen: l, saved: make(chan struct{})}, nil
}

// URL is the address of the page.
func (e *Editor) URL() string { return fmt.Sprintf("http://%s/%s/", e.listen.Addr(), e.token) }

// goodbye is how long the last answers may take.
const goodbye = 5 * time.Second

// Run serves the page until the needle is saved, or ctx ends; its cause is the error then.
func (e *Editor) Run(ctx context.Context) error {
	server := &http.Server{Handler: e, ReadTimeout: time.Minute, WriteTimeout: time.Minute, MaxHeaderBytes: 64 << 10}
	served := make(chan error, 1)
	go func() { served <- server.Serve(e.listen) }()
	var err error
	select {
	case err = <-served:
		return err
	case <-e.saved:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	end, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	if server.Shutdown(end) != nil {
		server.Close()
	}
	<-served
	return err
}

// ServeHTTP answers the browser.
func (e *Editor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if subtle.ConstantTimeCompare([]byte(token), []byte(e.token)) != 1 || r.Host != e.listen.Addr().String() {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	switch r.Method + " " + name {
	case "GET ":
		nonce := rand.Text()
		h.Set("Content-Security-Policy", "default-src 'none'; img-src 'self'; connect-src 'self'; form-action 'none'; base-uri 'none'; script-src 'nonce-"+nonce+"'; style-src 'nonce-"+nonce+"'")
		h.Set("Content-Type", "text/html; charset=utf-8")
		page.Execute(w, struct{ Name, Nonce string }{e.needle.Name, nonce})
	case "GET picture.png":
		h.Set("Content-Type", "image/png")
		w.Write(e.picture)
	case "GET needle.json":
		e.mu.Lock()
		data, err := e.needle.JSON()
		e.mu.Unlock()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		h.Set("Content-Type", "application/json")
		w.Write(data)
	case "POST save":
		e.save(w, r)
	default:
		http.NotFound(w, r)
	}
}

// save makes the needle what the page sends, and writes it. It answers with a sentence for the person.
func (e *Editor) save(w http.ResponseWriter, r *http.Request) {
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind != "application/json" {
		http.Error(w, "want JSON", http.StatusUnsupportedMediaType)
		return
	}
	if origin := r.Header.Get("Origin"); origin != "" && origin != "http://"+r.Host {
		http.Error(w, "another page has asked for this", http.StatusForbidden)
		return
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEdit))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.saved:
		http.Error(w, "the needle has been saved already", http.StatusConflict)
		return
	default:
	}
	if err := e.needle.Edit(data); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := e.needle.Save(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintf(w, "Saved as %s. attest has ended; this page can be closed.", e.needle.Path)
	close(e.saved)
}
