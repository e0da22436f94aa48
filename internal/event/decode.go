package event

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// maxLine bounds a line that is read. Encode's are shorter: it bounds each string.
const maxLine = 64 << 20

// A DecodeError is a line that is not an event, or not in its place.
type DecodeError struct {
	Line   int // from 1
	Reason string
}

func (e *DecodeError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Reason) }

// Status is that of a file that is to be mended.
func (*DecodeError) Status() Status { return Invalid }

// An Unknown is an event of a type that this version does not have. What its fields
// were is lost.
type Unknown struct {
	Type string `json:"-"`
}

func (u Unknown) kind() string { return u.Type }

// types are all types of events, by their kind.
var types = func() map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for _, e := range []Event{
		RunStarted{}, RunFinished{}, FileStarted{}, FileFinished{}, TestStarted{}, TestFinished{}, SubtestStarted{}, SubtestFinished{},
		StepStarted{}, StepFinished{}, Output{}, Console{}, ConsoleShown{}, MachineState{}, Progress{}, Log{},
		StepWaiting{}, FaultStarted{}, FaultEnded{}, Egress{}, Traffic{}, Artifact{}, Omitted{},
	} {
		out[Kind(e)] = reflect.TypeOf(e)
	}
	return out
}()

// A Decoder reads the lines that Encode has written.
//
// It is strict about what it knows: a value of another type, a line that is not an
// object, a record whose seq is not above the one before, and lines of a later
// Format are errors. What only a later version can have written is tolerated: an
// event of an unknown type is an Unknown, and unknown fields are left out.
type Decoder struct {
	r       *bufio.Reader
	line    int
	seq     uint64
	maxLine int
}

// NewDecoder reads from r.
func NewDecoder(r io.Reader) *Decoder {
	return &Decoder{r: bufio.NewReaderSize(r, 64<<10), maxLine: maxLine}
}

// Decode reads the next record. Its error is io.EOF at the end,
// io.ErrUnexpectedEOF when the last line is not complete, as a run that was killed
// leaves it, or a *DecodeError, after which nothing more can be read.
func (d *Decoder) Decode() (Record, error) {
	line, err := d.read()
	if err != nil {
		return Record{}, err
	}
	r, err := decode(line)
	if err == nil && r.Seq <= d.seq {
		err = fmt.Errorf("seq %d after %d: the lines are out of order, or from several runs", r.Seq, d.seq)
	}
	if err != nil {
		return Record{}, &DecodeError{d.line, err.Error()}
	}
	d.seq = r.Seq
	return r, nil
}

func (d *Decoder) read() ([]byte, error) {
	d.line++
	var line []byte
	for {
		part, err := d.r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > d.maxLine:
			return nil, &DecodeError{d.line, fmt.Sprintf("longer than %d MiB", d.maxLine>>20)}
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err == io.EOF && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		}
		return line, err
	}
}

func decode(line []byte) (Record, error) {
	fields, err := object(line)
	if err != nil {
		return Record{}, err
	}
	var r Record
	var at, kind string
	for _, f := range []struct {
		name string
		to   any
	}{{"seq", &r.Seq}, {"time", &at}, {"type", &kind}} {
		raw, ok := fields[f.name]
		if !ok {
			return r, fmt.Errorf("%q is missing", f.name)
		}
		if err := scalar(raw, f.to); err != nil {
			return r, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	if r.Time, err = time.Parse(time.RFC3339Nano, at); err != nil {
		return r, fmt.Errorf("time: %q is not a time of RFC 3339", at)
	}
	if err := decodeFields(fields, reflect.ValueOf(&r.Scope).Elem()); err != nil {
		return r, err
	}
	t, ok := types[kind]
	if !ok {
		r.Event = Unknown{kind}
		return r, nil
	}
	v := reflect.New(t).Elem()
	if err := decodeFields(fields, v); err != nil {
		return r, err
	}
	r.Event = v.Interface().(Event)
	if started, ok := r.Event.(RunStarted); ok && started.Format > Format {
		return r, fmt.Errorf("it was written by a later version of attest (format %d; this one reads up to %d)", started.Format, Format)
	}
	return r, nil
}

// object is a JSON object; nothing may follow it.
func object(data []byte) (fields map[string]json.RawMessage, err error) {
	if err := scalar(data, &fields); err != nil {
		return nil, err
	}
	if fields == nil {
		return nil, errors.New("null where an object belongs")
	}
	return fields, nil
}

// scalar decodes a value whose type json knows, with an error in a reader's words.
func scalar(data []byte, to any) error {
	err := json.Unmarshal(data, to)
	var mismatch *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &mismatch):
		return fmt.Errorf("%s where %s belongs", mismatch.Value, article(mismatch.Type))
	case errors.As(err, &syntax):
		return fmt.Errorf("not JSON: %w", err)
	}
	return err
}

func article(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Map, reflect.Struct:
		return "an object"
	case reflect.Slice:
		return "a list"
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	}
	return "a whole number"
}

func decodeFields(fields map[string]json.RawMessage, v reflect.Value) error {
	for i := range v.NumField() {
		name, _ := fieldName(v.Type().Field(i))
		raw, ok := fields[name]
		if !ok || name == "-" || bytes.Equal(raw, []byte("null")) {
			continue
		}
		if exact, ok := fields[name+"_base64"]; ok {
			if err := decodeExactly(exact, v.Field(i)); err != nil {
				return fmt.Errorf("%s_base64: %w", name, err)
			}
			continue
		}
		if err := decodeValue(raw, v.Field(i)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// decodeExactly is the reverse of encodeExactly.
func decodeExactly(raw json.RawMessage, v reflect.Value) error {
	switch {
	case v.Kind() == reflect.String:
		var exact []byte
		err := scalar(raw, &exact)
		v.SetString(string(exact))
		return err
	case v.Type() == stringsType:
		var exact [][]byte
		err := scalar(raw, &exact)
		list := make([]string, len(exact))
		for i, b := range exact {
			list[i] = string(b)
		}
		v.Set(reflect.ValueOf(list))
		return err
	}
	return errors.New("not a field of text")
}

func decodeValue(raw json.RawMessage, v reflect.Value) error {
	if v.Type() == durationType {
		d, err := duration(string(raw))
		v.SetInt(int64(d))
		return err
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return decodeValue(raw, v.Elem())
	case reflect.Struct:
		fields, err := object(raw)
		if err != nil {
			return err
		}
		return decodeFields(fields, v)
	case reflect.Slice:
		var list []json.RawMessage
		if err := scalar(raw, &list); err != nil {
			return err
		}
		v.Set(reflect.MakeSlice(v.Type(), len(list), len(list)))
		for i, x := range list {
			if err := decodeValue(x, v.Index(i)); err != nil {
				return err
			}
		}
		return nil
	}
	return scalar(raw, v.Addr().Interface())
}

// duration reads a number of seconds exactly: a float64 would not keep nanoseconds.
func duration(s string) (time.Duration, error) {
	whole, fraction, _ := strings.Cut(strings.TrimPrefix(s, "-"), ".")
	bad := fmt.Errorf("%.40s is not a number of seconds", s)
	n, err := strconv.ParseUint(whole, 10, 63)
	if err != nil || len(fraction) > 9 || n > uint64(1<<63-1)/1e9+1 {
		return 0, bad
	}
	nanos, err := strconv.ParseUint((fraction + "000000000")[:9], 10, 32)
	total := n*1e9 + nanos
	if err != nil || total > 1<<63 || total == 1<<63 && s[0] != '-' {
		return 0, bad
	}
	if s[0] == '-' {
		return time.Duration(-total), nil
	}
	return time.Duration(total), nil
}
