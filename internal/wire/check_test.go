package wire

import (
	"encoding/json"
	"reflect"
	"testing"
)

// FuzzReply decodes what an agent may send as the result of each operation, and as
// the start of a session.
func FuzzReply(f *testing.F) {
	for _, seed := range []string{
		`{"result":{"exit_code":3,"signal":"SIGKILL","duration":1,"pid":7}}`, `{"result":{"exit_code":-9223372036854775808}}`,
		`{"result":{"held":[{"pid":7,"name":"x"}],"memory":{"total":-1,"stalled":1e9},"units":[{"unit":"a.service","restarts":4294967295}]}}`,
		`{"error":{"kind":"failed","message":"x"}}`, `{"result":{"files":-1,"bytes":-5,"skipped":["\u001b[2J"]}}`,
		`{"result":{"time":"9999-12-31T23:59:59Z"}}`, `{"result":{"tries":-1,"seen":"x"},"error":{}}`,
		`{"result":[[[[]]]]}`, `{"result":{"jobs":[{"id":"x","pid":-1,"stdout":-1}]}}`, `null`, `{"result":null}`, `[]`, "",
		`{"session":"s","version":1,"instance":"i","uptime":-5}`, `{"result":{"ended":-1,"tries":1}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var exec ExecResult
		if _, err := DecodeReply(b, &exec); exec.ExitCode < 0 || exec.ExitCode > maxExitCode || exec.Pid < 0 || exec.Duration < 0 || err != nil && !reflect.DeepEqual(exec, ExecResult{}) {
			t.Errorf("%+v, %v", exec, err)
		}
		var look LookResult
		if DecodeReply(b, &look); len(look.Units) > MaxTroubles || look.Memory.Total < 0 || look.Memory.Stalled < 0 {
			t.Errorf("%+v", look)
		}
		var until UntilResult
		if DecodeReply(b, &until); until.Tries < 0 || until.Ended != nil && (*until.Ended < 0 || *until.Ended > maxExitCode) {
			t.Errorf("%+v", until)
		}
		var copied CopyResult
		if DecodeReply(b, &copied); copied.Files < 0 || copied.Bytes < 0 || len(copied.Skipped) > maxSkipped {
			t.Errorf("%+v", copied)
		}
		var clock ClockResult
		if _, err := DecodeReply(b, &clock); err != nil && !clock.Time.IsZero() {
			t.Errorf("%+v, %v", clock, err)
		}
		var seen Observation
		if DecodeReply(b, &seen); seen.Tries < 0 {
			t.Errorf("%+v", seen)
		}
		var windows WindowState
		if DecodeReply(b, &windows); windows.Tries < 0 {
			t.Errorf("%+v", windows)
		}
		var jobs JobsResult
		DecodeReply(b, &jobs)
		for _, j := range jobs.Jobs {
			if j.Pid < 0 || j.Stdout < 0 || j.Stderr < 0 {
				t.Errorf("%+v", j)
			}
		}
		DecodeReply(b, new(UnitState))
		DecodeReply(b, new(TTYState))
		DecodeReply(b, nil)
		var welcome WelcomeMessage
		if json.Unmarshal(b, &welcome) == nil && welcome.Check() == nil && (welcome.Instance == "" || welcome.Uptime < 0) {
			t.Errorf("%+v", welcome)
		}
		json.Unmarshal(b, new(AnnounceMessage))
	})
}
