package cloudhypervisor

import (
	"encoding/json"
	"os"
	"testing"
)

// FuzzChain: whatever comes as the reason of a refusal is shown as one.
func FuzzChain(f *testing.F) {
	for _, seed := range []string{`["Error from API","The VM could not boot","no memory"]`, `["Error from API"]`, `[]`, `[""]`, `{}`, `null`, ``, ` `, `text`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if chain(body) == "" {
			t.Errorf("%q gives no reason", body)
		}
	})
}

// FuzzEvents: whatever is said to have happened, all of it is read, or the rest is nothing; and
// a guest was reset just when that was told.
func FuzzEvents(f *testing.F) {
	for _, seed := range []string{
		`{"source":"vm","event":"booted","properties":null}{"source":"guest","event":"panic"}`, `{"source":"vm","event":"rebooting"} {"source":"vm","event":"rebooting"}`,
		`{"source":"vm","event":"rebooting"}x{"source":"guest","event":"panic"}`, `{"source":7}`, `{"source":"virtio-device","event":"activated","properties":{"id":"vsock"}}`, `{"source":"virtio-device","event":"activated","properties":{"id":7}}`, `[`, `null null`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		resets := 0
		e := &events{up: make(chan struct{})}
		e.watch(r, func() { resets++ })
		w.Write(said) // an error: nobody reads on
		w.Close()
		_, reset := e.happened()
		<-e.up // at the end, if not before
		if reset != (resets > 0) {
			t.Errorf("%q: a reset: %v, told %d times", said, reset, resets)
		}
		r.Close()
	})
}

// FuzzCloned: a saved machine that is taken for one has its memory where it is told, mapped
// privately.
func FuzzCloned(f *testing.F) {
	const ranges = `{"snapshots":{"memory-manager":{"snapshot_data":{"state":"{\"memory_ranges\":{\"data\":[{}]},\"x\":1}"}}}}`
	for _, seed := range []string{
		`{"config":{"memory":{"zones":[{"id":"mem0","size":1,"file":"x","shared":true}]},"cpus":{}},"state":` + ranges + `}`,
		`{"config":{"memory":{"zones":[]}},"state":{}}`, `{"config":{"memory":{"zones":{}}}}`, `{"config":null}`, `{}`, `null`, `7`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, device []byte) {
		s, err := cloned(device, "/memory")
		if err != nil {
			return
		}
		var c struct{ Memory memoryConfig }
		if err := json.Unmarshal(s.Config, &c); err == nil && (len(c.Memory.Zones) == 0 || c.Memory.Zones[0].File != "/memory" || c.Memory.Zones[0].Shared) {
			t.Errorf("%q: the memory is %+v", device, c.Memory)
		}
		state, err := withoutRanges(s.State)
		if err == nil && !json.Valid(state) {
			t.Errorf("%q: its state is %q", device, state)
		}
	})
}
