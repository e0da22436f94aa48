package event

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Format is the version of the lines that Encode writes. What only adds types and
// fields does not change it; a Decoder refuses lines of a later one.
const Format = 1

// maxString bounds a string in a line. Of a longer one the middle is left out, and
// the string says so.
const maxString = 1 << 20

// Encode writes a record as one line of JSON, with its newline.
//
// A line is an object: "seq", "time" (RFC 3339, UTC, nanoseconds), "type" (Kind),
// the fields of the scope ("file", "test", "boot", "step", "subtest"; left out when
// they are empty), then the event's own fields. Durations are numbers of seconds
// and their names end in "_s": "duration_s", "elapsed_s", "after_s". A string that
// is not valid UTF-8 has U+FFFD for what is not, and the exact bytes in a field
// beside it: "data" and "data_base64" (RFC 4648, section 4); a list of strings of
// which one is such has a list beside it.
func Encode(b *bytes.Buffer, r Record) {
	if e, ok := r.Event.(RunStarted); ok {
		e.Format = Format
		r.Event = e
	}
	fmt.Fprintf(b, `{"seq":%d,"time":"%s","type":"%s"`, r.Seq, r.Time.UTC().Format(time.RFC3339Nano), Kind(r.Event))
	encodeFields(b, reflect.ValueOf(r.Scope))
	encodeFields(b, reflect.ValueOf(r.Event))
	b.WriteString("}\n")
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	stringsType  = reflect.TypeFor[[]string]()
)

// fieldName is the name of a struct's field in a line, and whether the field is
// left out when it is empty.
func fieldName(f reflect.StructField) (name string, omit bool) {
	name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
	if f.Type == durationType {
		name += "_s"
	}
	return name, strings.HasPrefix(options, "omit")
}

// encodeFields writes the fields of a struct, each after a comma.
func encodeFields(b *bytes.Buffer, v reflect.Value) {
	for i := range v.NumField() {
		name, omit := fieldName(v.Type().Field(i))
		f := v.Field(i)
		if name == "-" || omit && (f.IsZero() || f.Kind() == reflect.Slice && f.Len() == 0) {
			continue
		}
		fmt.Fprintf(b, `,"%s":`, name)
		encodeValue(b, f)
		encodeExactly(b, name, f)
	}
}

// encodeExactly adds the bytes of strings that are not text.
func encodeExactly(b *bytes.Buffer, name string, v reflect.Value) {
	switch {
	case v.Kind() == reflect.String && !utf8.ValidString(v.String()):
		fmt.Fprintf(b, `,"%s_base64":`, name)
		encodeScalar(b, []byte(bounded(v.String())))
	case v.Type() == stringsType && !utf8.ValidString(strings.Join(v.Interface().([]string), "\n")):
		var exact [][]byte
		for _, s := range v.Interface().([]string) {
			exact = append(exact, []byte(bounded(s)))
		}
		fmt.Fprintf(b, `,"%s_base64":`, name)
		encodeScalar(b, exact)
	}
}

func encodeValue(b *bytes.Buffer, v reflect.Value) {
	if v.Type() == durationType {
		b.WriteString(seconds(time.Duration(v.Int())))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			b.WriteString("null")
			return
		}
		encodeValue(b, v.Elem())
	case reflect.Struct:
		var fields bytes.Buffer
		encodeFields(&fields, v)
		b.WriteByte('{')
		b.Write(bytes.TrimPrefix(fields.Bytes(), []byte(",")))
		b.WriteByte('}')
	case reflect.Slice:
		b.WriteByte('[')
		for i := range v.Len() {
			if i > 0 {
				b.WriteByte(',')
			}
			encodeValue(b, v.Index(i))
		}
		b.WriteByte(']')
	case reflect.Map: // of names to numbers
		counts := map[string]int64{}
		for _, k := range v.MapKeys() {
			counts[k.String()] = v.MapIndex(k).Int()
		}
		b.WriteByte('{')
		for i, k := range slices.Sorted(maps.Keys(counts)) {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(b, `%q:%d`, k, counts[k])
		}
		b.WriteByte('}')
	case reflect.String:
		encodeScalar(b, bounded(v.String()))
	default: // numbers, booleans
		encodeScalar(b, v.Interface())
	}
}

func encodeScalar(b *bytes.Buffer, v any) {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	_ = e.Encode(v)         // cannot fail for these kinds
	b.Truncate(b.Len() - 1) // its newline
}

// bounded is a string with its middle left out if it is too long.
func bounded(s string) string {
	if len(s) <= maxString {
		return s
	}
	const half = maxString / 2
	return fmt.Sprintf("%s\n… %d bytes left out …\n%s", s[:half], len(s)-2*half, s[len(s)-half:])
}

// seconds is a duration in seconds, exactly.
func seconds(d time.Duration) string {
	sign, n := "", uint64(d)
	if d < 0 {
		sign, n = "-", -n
	}
	s := strconv.FormatUint(n/1e9, 10)
	if fraction := n % 1e9; fraction != 0 {
		s += "." + strings.TrimRight(fmt.Sprintf("%09d", fraction), "0")
	}
	return sign + s
}
