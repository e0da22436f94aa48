package protocol

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/session"
)

// plainText is how long a text may be that is sent as a string. A longer one is sent
// as base64, because JSON needs up to six bytes for one.
const plainText = 64 << 10

// The names of values that JSON does not have. Each is the only key of an object.
const (
	tagBytes    = "$bytes"    // base64
	tagText     = "$text"     // base64 of UTF-8
	tagMachine  = "$machine"  // its name
	tagObject   = "$object"   // an Object
	tagResult   = "$result"   // how a command ended
	tagFunction = "$function" // a number that the peer gave to a function of its own
	tagImage    = "$image"    // as operation.ImageOf takes it
	tagOther    = "$other"    // the name of a type that no parameter takes
	tagDict     = "$dict"     // an object whose only key begins with $
	tagData     = "$data"     // JSON that is kept as data
)

// result is operation.Result as JSON.
type result struct {
	Status   int     `json:"status"`
	ExitCode int     `json:"exit_code"`
	Signal   string  `json:"signal,omitempty"`
	Stdout   any     `json:"stdout"`
	Stderr   any     `json:"stderr"`
	Duration float64 `json:"duration"` // seconds
	TimedOut bool    `json:"timed_out,omitempty"`
	Detached bool    `json:"detached,omitempty"` // only started: it has no output
}

// encode makes the result of an operation into what json.Marshal takes.
func encode(v any) any {
	switch v := v.(type) {
	case string:
		return encodeText(v)
	case []byte:
		return map[string]any{tagBytes: v} // encoding/json makes it base64
	case operation.MachineName:
		return map[string]any{tagMachine: string(v)}
	case []operation.MachineName:
		return encodeList(v)
	case []string:
		return encodeList(v)
	case []any:
		return encodeList(v)
	case map[string]string:
		return encodeDict(v)
	case map[string]any:
		return encodeDict(v)
	case session.Object:
		return map[string]any{tagObject: v}
	case operation.Result:
		return map[string]any{tagResult: result{
			v.Status, v.ExitCode, v.Signal, encodeOutput(v.Stdout), encodeOutput(v.Stderr), v.Duration.Seconds(), v.TimedOut, v.Status == -2,
		}}
	}
	return v // nil, bool and numbers
}

func encodeText(s string) any {
	if len(s) > plainText {
		return map[string]any{tagText: base64.StdEncoding.EncodeToString([]byte(s))}
	}
	return s
}

// encodeOutput keeps bytes that are not text as they are.
func encodeOutput(s string) any {
	if !utf8.ValidString(s) {
		return map[string]any{tagBytes: []byte(s)}
	}
	return encodeText(s)
}

func encodeList[T any](list []T) any {
	out := make([]any, len(list))
	for i, x := range list {
		out[i] = encode(x)
	}
	return out
}

func encodeDict[T any](dict map[string]T) any {
	out := make(map[string]any, len(dict))
	for k, x := range dict {
		out[k] = encode(x)
	}
	if _, _, tagged := tag(out); tagged {
		return map[string]any{tagDict: out}
	}
	return out
}

// tag is the key of an object that stands for something else.
func tag(dict map[string]any) (key string, value any, ok bool) {
	if len(dict) != 1 {
		return "", nil, false
	}
	for key, value = range dict {
	}
	return key, value, strings.HasPrefix(key, "$")
}

// unmarshal reads JSON with numbers as they are written.
func unmarshal(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("more than one value")
	}
	return nil
}

// Decode reads a value without functions, as operation.Bind takes it.
func Decode(data []byte) (any, error) {
	var v any
	if err := unmarshal(data, &v); err != nil {
		return nil, err
	}
	return decoder{}.decode(v)
}

// A decoder makes JSON into the values that operation.Bind takes.
type decoder struct {
	function func(id int64) operation.Func
}

func (d decoder) decode(v any) (any, error) {
	switch v := v.(type) {
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return i, nil
		}
		if strings.ContainsAny(v.String(), ".eE") {
			if f, err := v.Float64(); err == nil {
				return f, nil
			}
		}
		return nil, fmt.Errorf("the number %s is out of range", v)
	case []any:
		return d.list(v)
	case map[string]any:
		if key, value, ok := tag(v); ok {
			return d.tagged(key, value)
		}
		return d.dict(v)
	}
	return v, nil // nil, bool, string
}

func (d decoder) list(list []any) (_ []any, err error) {
	out := make([]any, len(list))
	for i, x := range list {
		if out[i], err = d.decode(x); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (d decoder) dict(dict map[string]any) (_ map[string]any, err error) {
	out := make(map[string]any, len(dict))
	for k, x := range dict {
		if out[k], err = d.decode(x); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (d decoder) tagged(key string, v any) (any, error) {
	bad := fmt.Errorf("the value of %q makes no sense", key)
	switch key {
	case tagBytes, tagText:
		s, ok := v.(string)
		b, err := base64.StdEncoding.DecodeString(s)
		if !ok || err != nil || key == tagText && !utf8.Valid(b) {
			return nil, bad
		}
		if key == tagText {
			return string(b), nil
		}
		return b, nil
	case tagMachine, tagOther:
		s, ok := v.(string)
		switch {
		case !ok:
			return nil, bad
		case key == tagMachine:
			return operation.MachineName(s), nil
		}
		return operation.Opaque(s), nil
	case tagObject, tagFunction:
		if o, ok := v.(map[string]any); ok && key == tagObject {
			v = o["id"]
		}
		n, ok := v.(json.Number)
		id, err := n.Int64()
		switch {
		case !ok || err != nil || key == tagFunction && d.function == nil:
			return nil, bad
		case key == tagFunction:
			return d.function(id), nil
		}
		return session.Object{ID: int(id)}, nil
	case tagImage:
		value, err := d.decode(v)
		if err != nil {
			return nil, err
		}
		return operation.ImageOf(value)
	case tagDict:
		if dict, ok := v.(map[string]any); ok {
			return d.dict(dict)
		}
		return nil, bad
	}
	return nil, fmt.Errorf("there is no kind of value %q", key)
}
