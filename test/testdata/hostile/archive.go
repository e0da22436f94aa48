package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/wire"
)

// victim is the directory of the host that no archive may write to; the test makes it.
const victim = "/tmp/attest-victim"

// archive answers a request for a copy. The stream is slow enough for the credit that
// the host gives, which it does not count.
func (a *agent) archive(stream uint32) {
	var buf bytes.Buffer
	flush := func() {
		for buf.Len() > 0 {
			a.data(stream, wire.Stdout, buf.Next(32<<10))
			time.Sleep(20 * time.Millisecond)
		}
	}
	t := tar.NewWriter(&buf)
	add := func(h tar.Header) {
		h.Format = tar.FormatPAX
		t.WriteHeader(&h)
		if buf.Len() > 30000 {
			flush()
		}
	}
	dir := func(name string) { add(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}) }
	file := func(name, body string) {
		add(tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(body)), Mode: 0o6755})
		t.Write([]byte(body))
	}
	link := func(kind byte, name, to string) { add(tar.Header{Typeflag: kind, Name: name, Linkname: to}) }
	switch a.mode {
	case "tar: dots":
		file("../escaped", "x")
	case "tar: absolute":
		file(victim+"/absolute", "x")
	case "tar: dots inside":
		dir("x")
		file("x/../../../../../../"+victim+"/file", "x")
	case "tar: through a link":
		dir("x")
		link(tar.TypeSymlink, "x/l", victim)
		file("x/l/file", "x")
	case "tar: the root is a link":
		link(tar.TypeSymlink, "x", victim)
		file("x/file", "x")
	case "tar: a link is a file":
		dir("x")
		link(tar.TypeSymlink, "x/f", victim+"/file")
		file("x/f", "x")
	case "tar: hard link":
		dir("x")
		link(tar.TypeLink, "x/f", victim+"/file")
		file("x/f", "x")
	case "tar: hard link through a link":
		dir("x")
		link(tar.TypeSymlink, "x/d", victim)
		link(tar.TypeLink, "x/h", "x/d/file")
		file("x/h", "x")
	case "tar: devices":
		dir("x")
		add(tar.Header{Typeflag: tar.TypeBlock, Name: "x/vda", Devmajor: 254, Mode: 0o666})
		add(tar.Header{Typeflag: tar.TypeChar, Name: "x/null", Devmajor: 1, Devminor: 3, Mode: 0o666})
		add(tar.Header{Typeflag: tar.TypeFifo, Name: "x/fifo", Mode: 0o666})
	case "tar: names":
		dir("x")
		for _, name := range []string{"a\nb", "\x1b[31mred", "\x1b]0;t\a", "<script>", "-rf", "\u202egnp", " ", "$(id)", "\xff\xfe"} {
			file("x/"+name, "x")
			add(tar.Header{Typeflag: tar.TypeFifo, Name: "x/fifo" + name})
		}
	case "tar: a huge hole":
		dir("x")
		add(tar.Header{Typeflag: tar.TypeReg, Name: "x/big", Mode: 0o644, PAXRecords: map[string]string{"ATTEST.size": "9223372036854775807"}})
	case "tar: many entries":
		dir("x")
		for i := range 50000 {
			add(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("x/%d", i), Mode: 0o644})
		}
	case "tar: deep":
		name := "x"
		dir(name)
		for range 2040 {
			name += "/d"
			dir(name)
		}
	case "tar: long name":
		file("x"+strings.Repeat("A", 60000), "x")
	case "tar: cut off":
		file("x", strings.Repeat("x", 10000))
		buf.Truncate(2000)
	case "tar: endless":
		add(tar.Header{Typeflag: tar.TypeReg, Name: "x", Size: 1 << 50, Mode: 0o644})
		flush()
		for {
			buf.Write(make([]byte, 32<<10))
			flush()
		}
	case "tar: garbage":
		buf.WriteString(strings.Repeat("not an archive ", 10000))
	default:
		file("x", "fine")
	}
	t.Close()
	flush()
	a.send(wire.Frame{Type: wire.EOF, Channel: wire.Stdout, Stream: stream})
	a.result(stream, `{"result":{"files":1,"bytes":1,"skipped":["`+"\\u001b]0;PWNED\\u0007"+`"]}}`)
}
