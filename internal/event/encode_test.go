package event

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 123456789, time.UTC)

// TestDecodeErrors shows what is refused, and with which words.
func TestDecodeErrors(t *testing.T) {
	const ok = `{"seq":1,"time":"2026-01-02T12:00:00Z","type":"console","machine":"m","line":"l"}` + "\n"
	line := func(fields string) string {
		return `{"seq":2,"time":"2026-01-02T12:00:00Z",` + fields + "}\n"
	}
	for _, tt := range []struct{ name, text, want string }{
		{"text", "hello\n", "line 2: not JSON: invalid character 'h' looking for beginning of value"},
		{"two in a line", strings.TrimSpace(line(`"type":"log"`)) + "{}\n", "line 2: not JSON: invalid character '{' after top-level value"},
		{"a list", "[]\n", "line 2: array where an object belongs"},
		{"null", "null\n", "line 2: null where an object belongs"},
		{"no type", `{"seq":2,"time":"2026-01-02T12:00:00Z"}` + "\n", `line 2: "type" is missing`},
		{"no seq", `{"time":"2026-01-02T12:00:00Z","type":"log"}` + "\n", `line 2: "seq" is missing`},
		{"a time of another kind", `{"seq":2,"time":"noon","type":"log"}` + "\n", `line 2: time: "noon" is not a time of RFC 3339`},
		{"a number for a string", line(`"type":"console","line":3`), "line 2: line: number where a string belongs"},
		{"a string for a number", line(`"type":"step_started","id":"5"`), "line 2: id: string where a whole number belongs"},
		{"a negative seq", `{"seq":-2,"time":"2026-01-02T12:00:00Z","type":"log"}` + "\n", "line 2: seq: number -2 where a whole number belongs"},
		{"a duration", line(`"type":"test_finished","duration_s":"1"`), `line 2: duration_s: "1" is not a number of seconds`},
		{"a huge duration", line(`"type":"test_finished","duration_s":9223372037`), `line 2: duration_s: 9223372037 is not a number of seconds`},
		{"in a failure", line(`"type":"test_finished","failure":{"stack":[{"line":"x"}]}`), "line 2: failure: stack: line: string where a whole number belongs"},
		{"base64", line(`"type":"console","line":"x","line_base64":"?"`), "line 2: line_base64: illegal base64 data at input byte 0"},
		{"again", ok, "line 2: seq 1 after 1: the lines are out of order, or from several runs"},
		{"a later format", line(`"type":"run_started","format":99`), fmt.Sprintf("line 2: it was written by a later version of attest (format 99; this one reads up to %d)", Format)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := NewDecoder(strings.NewReader(ok + tt.text))
			if _, err := d.Decode(); err != nil {
				t.Fatal(err)
			}
			_, err := d.Decode()
			var bad *DecodeError
			if !errors.As(err, &bad) || err.Error() != tt.want || bad.Status() != Invalid {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

// What only a later version can have written is tolerated.
func TestDecodeLaterVersions(t *testing.T) {
	d := NewDecoder(strings.NewReader(
		`{"seq":1,"time":"2026-01-02T12:00:00Z","type":"earthquake","file":"a.star","depth":3}` + "\n" +
			`{"seq":3,"time":"2026-01-02T12:00:00Z","type":"log","level":"info","text":"t","color":{"r":1}}` + "\n" +
			`{"seq":4,"time":"2026`))
	r, err := d.Decode()
	if err != nil || r.Event != (Unknown{"earthquake"}) || r.Scope.File != "a.star" {
		t.Errorf("got %+v, %v", r, err)
	}
	if r, err = d.Decode(); err != nil || r.Event != (Log{Level: "info", Text: "t"}) {
		t.Errorf("got %+v, %v", r, err)
	}
	if _, err := d.Decode(); err != io.ErrUnexpectedEOF {
		t.Errorf("got %v", err)
	}
}

// endless is a line without end.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}

func TestDecodeIsBounded(t *testing.T) {
	d := NewDecoder(endless{})
	d.maxLine = 1 << 20
	_, err := d.Decode()
	if err == nil || err.Error() != "line 1: longer than 1 MiB" {
		t.Errorf("got %v", err)
	}
}

// A long string says what it has lost.
func TestEncodeIsBounded(t *testing.T) {
	long := "begin\xff" + strings.Repeat("x", maxString+7) + "\xffend"
	f := &Failure{Stdout: long}
	var b bytes.Buffer
	Encode(&b, Record{Seq: 1, Time: noon, Event: TestFinished{Failure: f}})
	r, err := NewDecoder(&b).Decode()
	if err != nil {
		t.Fatal(err)
	}
	got := r.Event.(TestFinished).Failure.Stdout
	if !strings.HasPrefix(got, "begin\xff") || !strings.HasSuffix(got, "\xffend") || !strings.Contains(got, fmt.Sprintf("\n… %d bytes left out …\n", len(long)-maxString)) {
		t.Errorf("%d bytes: %.20q", len(got), got)
	}
}

// fuzzed fills an event's strings and durations.
func fuzzed(t reflect.Type, s string, d int64) Event {
	v := reflect.New(t).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); {
		case f.Type() == durationType:
			f.SetInt(d)
		case f.Kind() == reflect.String:
			f.SetString(s)
		case f.Type() == stringsType:
			f.Set(reflect.ValueOf([]string{s, "x"}))
		}
	}
	return v.Interface().(Event)
}

// Every event comes back as it was, whatever a guest has put into it.
func FuzzEncode(f *testing.F) {
	f.Add("</pre>\x00\x1b[31m\xff\xfe\u202e\u2028\r\n\"\\", int64(1))
	f.Add("cut \xc3", int64(-5))
	f.Add("", int64(-1<<63))
	f.Add("x", int64(1<<63-1))
	f.Fuzz(func(t *testing.T, s string, d int64) {
		for kind, typ := range types {
			var b bytes.Buffer
			e := fuzzed(typ, s, d)
			if started, ok := e.(RunStarted); ok {
				started.Format = Format
				e = started
			}
			want := Record{Seq: 7, Time: noon, Scope: Scope{File: "file " + s, Test: "test " + s, Boot: "boot " + s, Step: 9, Subtest: "subtest " + s}, Event: e}
			Encode(&b, want)
			if n := bytes.Count(b.Bytes(), []byte("\n")); n != 1 {
				t.Fatalf("%s: %d lines", kind, n)
			}
			got, err := NewDecoder(&b).Decode()
			if err != nil {
				t.Fatalf("%s: %v", kind, err)
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" && len(s) < maxString {
				t.Fatalf("%s (-want +got)\n%s", kind, diff)
			}
		}
	})
}

// Whatever is read, the answer is a record or an error.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"seq":1,"time":"2026-01-02T12:00:00Z","type":"test_finished","duration_s":1.5,"failure":{"stack":[{"line":1}],"exit_code":null}}` + "\n"))
	f.Add([]byte(`{"seq":1,"time":"2026-01-02T12:00:00Z","type":"run_finished","counts":{"passed":1}}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		d := NewDecoder(bytes.NewReader(data))
		for {
			r, err := d.Decode()
			if err != nil {
				return
			}
			var b bytes.Buffer
			Encode(&b, r)
			if _, err := NewDecoder(&b).Decode(); err != nil {
				t.Fatalf("%s became %s: %v", data, b.Bytes(), err)
			}
		}
	})
}
