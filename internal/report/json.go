package report

import (
	"bytes"
	"io"

	"github.com/attest-vm/attest/internal/event"
)

// A JSON writes every event as one line (event.Encode), in one write, when it
// happens: a run that is killed leaves all lines but perhaps the last one whole.
//
// A guest can write for ever. When the stream has grown to its limit, events of
// the kinds that guests and loops make without end are left out, and an
// event.Omitted in their place says how many of which; how everything ended is
// there in any case.
type JSON struct {
	w     io.Writer
	limit int64 // bytes; beyond it the bulk is left out
	size  int64 // of all lines, with those that were left out
	buf   bytes.Buffer
	err   error

	omitted     event.Omitted
	lastOmitted event.Record
}

// maxJSON is the limit of a run's JSON lines.
const maxJSON = 512 << 20

// NewJSON writes to w without buffering.
func NewJSON(w io.Writer) *JSON { return &JSON{w: w, limit: maxJSON} }

// bulk reports whether an event is one of those that come without end.
func bulk(e event.Event) bool {
	switch e.(type) {
	case event.Output, event.Console, event.StepStarted, event.StepFinished, event.Log, event.Egress, event.MachineState, event.Traffic, event.Progress,
		event.StepWaiting, event.FaultStarted, event.FaultEnded, event.SubtestStarted, event.SubtestFinished:
		return true
	}
	return false
}

// Record takes one event. After the first error it writes nothing more.
func (j *JSON) Record(r event.Record) {
	j.buf.Reset()
	event.Encode(&j.buf, r)
	if j.size += int64(j.buf.Len()); bulk(r.Event) && j.size > j.limit {
		if j.omitted.Events == nil {
			j.omitted.Events = map[string]int{}
		}
		j.omitted.Events[event.Kind(r.Event)]++
		j.omitted.Bytes += int64(j.buf.Len())
		j.lastOmitted = r
		return
	}
	j.flush()
	j.write(r)
}

// flush writes what stands for the events that were left out.
func (j *JSON) flush() {
	if j.omitted.Events == nil {
		return
	}
	j.write(event.Record{Seq: j.lastOmitted.Seq, Time: j.lastOmitted.Time, Event: j.omitted})
	j.omitted = event.Omitted{}
}

func (j *JSON) write(r event.Record) {
	if j.err != nil {
		return
	}
	j.buf.Reset()
	event.Encode(&j.buf, r)
	_, j.err = j.w.Write(j.buf.Bytes())
}

// Close writes what is still to be said, and returns the first error of a write.
func (j *JSON) Close() error {
	j.flush()
	return j.err
}
