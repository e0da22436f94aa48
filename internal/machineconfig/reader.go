package machineconfig

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// A reader turns decoded JSON into values and keeps the first error.
type reader struct {
	file string
	name string // of the machine that is being read
	err  error
}

func (r *reader) fail(at, reason string) {
	if r.err == nil {
		r.err = &Error{File: r.file, Machine: r.name, Pointer: at, Reason: reason}
	}
}

// take calls fn with the value of a key, if it is there. null counts as absent,
// as generators write it for "not set".
func (r *reader) take(o map[string]any, key string, fn func(any)) {
	if v, ok := o[key]; ok && v != nil && r.err == nil {
		fn(v)
	}
}

// rest refuses unknown keys.
func (r *reader) rest(at string, o map[string]any, known ...string) {
	for _, key := range slices.Sorted(maps.Keys(o)) {
		if !slices.Contains(known, key) {
			slices.Sort(known)
			r.fail(at+"/"+escape(key), "unknown key; known keys are "+strings.Join(known, ", "))
		}
	}
}

// escape is RFC 6901's.
func escape(key string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
}

func (r *reader) want(at, what string, v any) {
	r.fail(at, fmt.Sprintf("want %s, not %s", what, kind(v)))
}

func kind(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return fmt.Sprintf("the boolean %v", v)
	case json.Number:
		return fmt.Sprintf("the number %v", v)
	case string:
		return fmt.Sprintf("the string %q", v)
	case []any:
		return "an array"
	}
	return "an object"
}

func (r *reader) object(at string, v any) map[string]any {
	o, ok := v.(map[string]any)
	if !ok {
		r.want(at, "an object", v)
	}
	return o
}

func (r *reader) array(at string, v any) []any {
	a, ok := v.([]any)
	if !ok {
		r.want(at, "an array", v)
	}
	return a
}

func (r *reader) string(at string, v any) string {
	s, ok := v.(string)
	if !ok {
		r.want(at, "a string", v)
	}
	return s
}

func (r *reader) bool(at string, v any) bool {
	b, ok := v.(bool)
	if !ok {
		r.want(at, "true or false", v)
	}
	return b
}

func (r *reader) positive(at string, v any) int {
	n, ok := v.(json.Number)
	i, err := n.Int64()
	if !ok || err != nil || i < 1 || i > 1<<31-1 {
		r.want(at, "a positive whole number", v)
		return 0
	}
	return int(i)
}

func (r *reader) seconds(at string, v any) time.Duration {
	n, ok := v.(json.Number)
	s, err := n.Float64()
	if !ok || err != nil || s <= 0 || s > 1e9 {
		r.want(at, "a positive number of seconds", v)
		return 0
	}
	return time.Duration(s * float64(time.Second))
}

func (r *reader) vlans(at string, v any) []int {
	list := []int{} // an empty list is not an absent one
	for i, e := range r.array(at, v) {
		list = append(list, r.positive(fmt.Sprintf("%s/%d", at, i), e))
	}
	return list
}

func (r *reader) strings(at string, v any) (out []string) {
	for i, x := range r.array(at, v) {
		out = append(out, r.string(fmt.Sprintf("%s/%d", at, i), x))
	}
	return out
}

func (r *reader) taps(at string, v any) []TAP {
	var taps []TAP
	for i, e := range r.array(at, v) {
		at := fmt.Sprintf("%s/%d", at, i)
		parts := r.array(at, e)
		if len(parts) != 3 {
			r.fail(at, "want [interface, host device, MAC address]")
			return nil
		}
		taps = append(taps, TAP{r.string(at+"/0", parts[0]), r.string(at+"/1", parts[1]), r.string(at+"/2", parts[2])})
	}
	return taps
}

// files reads files of a guest: a string or an object for each.
func (r *reader) files(at string, v any) map[string]any {
	out := map[string]any{}
	for path, v := range r.object(at, v) {
		at := at + "/" + escape(path)
		if content, ok := v.(string); ok {
			out[path] = content
			continue
		}
		if _, ok := v.(map[string]any); !ok {
			r.want(at, "a string or an object", v)
		}
		file := map[string]any{}
		o := r.object(at, v)
		for _, key := range fileKeys {
			r.take(o, key, func(v any) { file[key] = r.string(at+"/"+key, v) })
		}
		r.rest(at, o, slices.Clone(fileKeys)...)
		out[path] = file
	}
	return out
}

// fileKeys are the keys of a file's object; mode is an octal number such as "0755".
var fileKeys = []string{"content", "mode", "path"}

// paths reads paths of the host by paths in the guest.
func (r *reader) paths(at string, v any) map[string]string {
	out := map[string]string{}
	for path, v := range r.object(at, v) {
		out[path] = r.string(at+"/"+escape(path), v)
	}
	return out
}

// raw keeps a value as JSON. Another package knows its form.
func (r *reader) raw(v any) json.RawMessage {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // v was decoded from JSON
	}
	return data
}
