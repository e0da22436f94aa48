package mock

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/vmm"
)

// A Script is a guest as data, of which nothing is executed: docs/mock.md
// describes its JSON.
type Script struct {
	Faults
	Console string            `json:"console"` // what it says when it boots
	Answers []Answer          `json:"answers"` // the first that fits counts
	Units   map[string]string `json:"units"`   // systemd units and their states
	Ports   []int             `json:"ports"`   // on which somebody listens
	Sockets []string          `json:"sockets"` // of the Unix domain, on which somebody listens: absolute paths
	Files   map[string]string `json:"files"`   // absolute paths and contents
	Monitor map[string]string `json:"monitor"` // commands of the VMM's monitor and what it says
	Without []Group           `json:"without"` // what its VMM cannot do
}

// An Answer is what becomes of a command.
type Answer struct {
	Command string `json:"command"` // the whole command; or
	Match   string `json:"match"`   // a regular expression (Go's syntax) for all of it
	Times   int    `json:"times"`   // how often it is given; 0: always

	Delay    Duration          `json:"delay"` // before all else
	Stdout   string            `json:"stdout"`
	Stderr   string            `json:"stderr"`
	ExitCode int               `json:"exit_code"`
	Console  string            `json:"console"` // what the guest says on its console
	Units    map[string]string `json:"units"`   // the states that units have then
	// End is what becomes of the machine instead of an answer: one of the reasons of
	// Machine.End, or "hang".
	End string `json:"end"`

	pattern *regexp.Regexp
}

// endHang is an Answer.End that is not the end of a machine.
const endHang = "hang"

var ends = []string{string(vmm.PoweredOff), string(vmm.Reset), string(vmm.Panicked), string(vmm.Broken), endHang}

// A Duration is a number of seconds in JSON, or a string as time.ParseDuration
// reads it.
type Duration time.Duration

func (d *Duration) UnmarshalJSON(b []byte) error {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	bad := fmt.Errorf("want a number of seconds or a string such as \"200ms\", from 0 on, not %s", b)
	switch v := v.(type) {
	case float64:
		if v < 0 || v > math.MaxInt64/1e9 {
			return bad
		}
		*d = Duration(v * float64(time.Second))
		return nil
	case string:
		parsed, err := time.ParseDuration(v)
		if err != nil || parsed < 0 {
			return bad
		}
		*d = Duration(parsed)
		return nil
	}
	return bad
}

// A ScriptError is a script that makes no sense.
type ScriptError struct {
	Pointer string // RFC 6901, in the script: "/answers/0/match"; empty: the script itself
	Reason  string
}

func (e *ScriptError) Error() string {
	if e.Pointer == "" {
		return e.Reason
	}
	return e.Pointer + ": " + e.Reason
}

// hasScript reports whether there is more to a script than nothing.
func hasScript(data []byte) bool {
	var keys map[string]json.RawMessage
	return len(data) > 0 && (json.Unmarshal(data, &keys) != nil || len(keys) > 0)
}

// ParseScript reads a script. Errors are a *ScriptError.
func ParseScript(data []byte) (*Script, error) {
	var s Script
	keys, err := decodeKeys("", data, &s, "answers")
	if err != nil {
		return nil, err
	}
	var answers []json.RawMessage
	if raw := keys["answers"]; raw != nil {
		if err := json.Unmarshal(raw, &answers); err != nil {
			return nil, &ScriptError{"/answers", "want an array"}
		}
	}
	s.Answers = make([]Answer, len(answers))
	for i, raw := range answers {
		if _, err := decodeKeys(fmt.Sprintf("/answers/%d", i), raw, &s.Answers[i], ""); err != nil {
			return nil, err
		}
	}
	for i := range s.Answers {
		if reason := s.Answers[i].compile(); reason != "" {
			return nil, &ScriptError{fmt.Sprintf("/answers/%d", i), reason}
		}
	}
	for i, g := range s.Without {
		if !isGroup(g) {
			return nil, &ScriptError{fmt.Sprintf("/without/%d", i), fmt.Sprintf("%q: want some of %s", g, groupNames())}
		}
	}
	for file := range s.Files {
		if !path.IsAbs(file) || path.Clean(file) != file || file == "/" {
			return nil, &ScriptError{"/files", fmt.Sprintf("%q: want the absolute path of a file", file)}
		}
	}
	for i, port := range s.Ports {
		if port < 1 || port > 65535 {
			return nil, &ScriptError{fmt.Sprintf("/ports/%d", i), fmt.Sprintf("port %d: want 1 to 65535", port)}
		}
	}
	for i, socket := range s.Sockets {
		if !path.IsAbs(socket) {
			return nil, &ScriptError{fmt.Sprintf("/sockets/%d", i), fmt.Sprintf("%q: want the absolute path of a socket", socket)}
		}
	}
	return &s, nil
}

// compile says what is wrong with an answer.
func (a *Answer) compile() string {
	expression := a.Match
	switch {
	case (a.Command == "") == (a.Match == ""):
		return `want either "command" or "match"`
	case a.ExitCode < 0 || a.ExitCode > 255:
		return fmt.Sprintf(`"exit_code" %d: want 0 to 255`, a.ExitCode)
	case a.Times < 0:
		return fmt.Sprintf(`"times" %d: want a number from 0 on`, a.Times)
	case a.End != "" && !slices.Contains(ends, a.End):
		return fmt.Sprintf(`"end" %q: want one of %s`, a.End, strings.Join(ends, ", "))
	case a.Match == "":
		expression = regexp.QuoteMeta(a.Command)
	}
	var err error
	if a.pattern, err = regexp.Compile(`^(?s:` + expression + `)$`); err != nil {
		return fmt.Sprintf(`"match" is not a regular expression: %v`, err)
	}
	return ""
}

// decodeKeys decodes an object into a struct, key by key for errors that say which;
// but for one key. at is a pointer to the object.
func decodeKeys(at string, data []byte, v any, except string) (map[string]json.RawMessage, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(data, &keys); err != nil {
		return nil, &ScriptError{at, "want an object"}
	}
	known := map[string]reflect.Type{}
	for _, f := range reflect.VisibleFields(reflect.TypeOf(v).Elem()) {
		if name := f.Tag.Get("json"); name != "" {
			known[name] = f.Type
		}
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		pointer := at + "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
		if known[key] == nil {
			return nil, &ScriptError{pointer, "unknown key; known keys are " + strings.Join(slices.Sorted(maps.Keys(known)), ", ")}
		}
		if key == except {
			continue
		}
		one, err := json.Marshal(map[string]json.RawMessage{key: keys[key]})
		if err == nil {
			err = json.Unmarshal(one, v)
		}
		var wrong *json.UnmarshalTypeError
		switch {
		case errors.As(err, &wrong):
			return nil, &ScriptError{pointer, fmt.Sprintf("want %s, not a JSON %s", typeName(known[key]), wrong.Value)}
		case err != nil:
			return nil, &ScriptError{pointer, err.Error()}
		}
	}
	return keys, nil
}

// typeName is what a Go type is in JSON.
func typeName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Map:
		return "an object of " + typeName(t.Elem()) + "s"
	case reflect.Slice:
		return "an array of " + typeName(t.Elem()) + "s"
	case reflect.Int:
		return "whole number"
	case reflect.Bool:
		return "true or false"
	}
	return t.Kind().String()
}
