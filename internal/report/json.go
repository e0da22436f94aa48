package report

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/attest-vm/attest/internal/event"
)

// A JSON writes every event as one line, in one write, when it happens: a run
// that is killed leaves all lines but perhaps the last one whole.
//
// A line is an object: "seq", "time" (RFC 3339, UTC, nanoseconds), "type"
// (event.Kind), the fields of the scope ("file", "test", "step", "subtest"; left
// out when they are empty), then the event's own fields. Durations are numbers of
// seconds and their names end in "_s": "duration_s", "elapsed_s", "after_s". A
// string that is not valid UTF-8 has U+FFFD for what is not, and the exact bytes
// in a field beside it: "data" and "data_base64" (RFC 4648, section 4); in lists
// of strings the replacements stay.
type JSON struct {
	w   io.Writer
	buf bytes.Buffer
	err error
}

// NewJSON writes to w without buffering.
func NewJSON(w io.Writer) *JSON { return &JSON{w: w} }

// Record takes one event. After the first error it writes nothing more.
func (j *JSON) Record(r event.Record) {
	if j.err != nil {
		return
	}
	j.buf.Reset()
	fmt.Fprintf(&j.buf, `{"seq":%d,"time":"%s","type":"%s"`, r.Seq, r.Time.UTC().Format(time.RFC3339Nano), event.Kind(r.Event))
	appendFields(&j.buf, reflect.ValueOf(r.Scope))
	appendFields(&j.buf, reflect.ValueOf(r.Event))
	j.buf.WriteString("}\n")
	_, j.err = j.w.Write(j.buf.Bytes())
}

// Err is the first error of a write.
func (j *JSON) Err() error { return j.err }

var durationType = reflect.TypeFor[time.Duration]()

// appendFields writes the fields of a struct, each after a comma, by the names
// and the omitempty of their json tags.
func appendFields(b *bytes.Buffer, v reflect.Value) {
	for i := range v.NumField() {
		name, options, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		f := v.Field(i)
		if strings.HasPrefix(options, "omit") && (f.IsZero() || f.Kind() == reflect.Slice && f.Len() == 0) {
			continue
		}
		if f.Type() == durationType {
			name += "_s"
		}
		fmt.Fprintf(b, `,"%s":`, name)
		appendValue(b, f)
		if f.Kind() == reflect.String && !utf8.ValidString(f.String()) {
			fmt.Fprintf(b, `,"%s_base64":"%s"`, name, base64.StdEncoding.EncodeToString([]byte(f.String())))
		}
	}
}

func appendValue(b *bytes.Buffer, v reflect.Value) {
	if v.Type() == durationType {
		b.WriteString(strconv.FormatFloat(time.Duration(v.Int()).Seconds(), 'f', -1, 64))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			b.WriteString("null")
			return
		}
		appendValue(b, v.Elem())
	case reflect.Struct:
		var fields bytes.Buffer
		appendFields(&fields, v)
		b.WriteByte('{')
		b.Write(bytes.TrimPrefix(fields.Bytes(), []byte(",")))
		b.WriteByte('}')
	case reflect.Slice:
		b.WriteByte('[')
		for i := range v.Len() {
			if i > 0 {
				b.WriteByte(',')
			}
			appendValue(b, v.Index(i))
		}
		b.WriteByte(']')
	case reflect.Map: // of Status to int
		counts := v.Interface().(map[event.Status]int)
		b.WriteByte('{')
		for i, k := range slices.Sorted(maps.Keys(counts)) {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(b, `%q:%d`, k, counts[k])
		}
		b.WriteByte('}')
	default: // strings, numbers, booleans
		e := json.NewEncoder(b)
		e.SetEscapeHTML(false)
		_ = e.Encode(v.Interface()) // cannot fail for these kinds
		b.Truncate(b.Len() - 1)     // its newline
	}
}
