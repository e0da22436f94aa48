package firecracker

import (
	"encoding/json"
	"testing"
)

// FuzzFaultMessage: whatever comes as the reason of a refusal is shown as one.
func FuzzFaultMessage(f *testing.F) {
	for _, seed := range []string{`{"fault_message":"no entropy"}`, `{"fault_message":""}`, `{"fault_message":7}`, ``, `  `, `garbage`, `null`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if faultMessage(body) == "" {
			t.Errorf("%q gives no reason", body)
		}
	})
}

// FuzzOptions: what is taken for options is what Firecracker knows.
func FuzzOptions(f *testing.F) {
	for _, seed := range []string{``, `{}`, `null`, `{"huge_pages": "2M", "entropy": false, "enable_pci": true}`, `{"io_engine": "Fast"}`, `{"unknown": 1}`, `{"entropy": "no"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		o, err := parseOptions(text)
		if err != nil {
			return
		}
		b, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseOptions(b)
		if err != nil || again.HugePages != o.HugePages || again.entropy() != o.entropy() {
			t.Errorf("%q became %+v, and that %+v, %v", text, o, again, err)
		}
	})
}
