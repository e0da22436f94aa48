package starlark

import (
	"fmt"
	"runtime"
	"runtime/metrics"
	"sync"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/script"
)

// memoryLimit is how much memory attest may have in use while scripts run. All of
// attest counts, since nobody knows whose a value is; without scripts that need
// much it has a few dozen MiB.
var memoryLimit = script.MemoryLimit

// A MemoryError is a script that was ended because scripts had too much memory.
type MemoryError struct {
	Limit   int64 // bytes
	loading bool
}

func (e *MemoryError) Error() string {
	return fmt.Sprintf("the test files have more than %d MiB in memory, which is the limit (%s sets another): a list, a text or a number that grows without end?", e.Limit>>20, script.MemoryEnv)
}

// Status is that of a file which cannot be read, or of a test that is endless.
func (e *MemoryError) Status() attest.Status {
	if e.loading {
		return attest.Invalid
	}
	return attest.Failed
}

// memoryEvery is how often the memory is looked at. A script fills some tens of MiB
// in that time.
const memoryEvery = 50 * time.Millisecond

// evaluations are those that run in this process; they share its memory.
var evaluations = struct {
	sync.Mutex
	running map[*interpreter]bool
	watch   *memoryWatch // while there are some
}{running: map[*interpreter]bool{}}

type memoryWatch struct{ stop, ended chan struct{} }

// watchMemory ends an evaluation when there is too much memory in use. The watch
// ends with what it returns.
func watchMemory(i *interpreter) (end func()) {
	e := &evaluations
	e.Lock()
	defer e.Unlock()
	if len(e.running) == 0 {
		e.watch = &memoryWatch{make(chan struct{}), make(chan struct{})}
		limit, _ := memoryLimit() // it was checked when the file was loaded
		go e.watch.run(limit)
	}
	e.running[i] = true
	w := e.watch
	return func() {
		e.Lock()
		delete(e.running, i)
		last := len(e.running) == 0
		e.Unlock()
		if last {
			close(w.stop)
			<-w.ended
		}
	}
}

func (w *memoryWatch) run(limit int64) {
	defer close(w.ended)
	ticker := time.NewTicker(memoryEvery)
	defer ticker.Stop()
	for {
		select {
		case <-w.stop:
			return
		case <-ticker.C:
			checkMemory(limit)
		}
	}
}

// checkMemory ends the evaluations whose Starlark code runs if more memory is in
// use than the limit. One that is in a built-in function does not see that; when
// half as much again is in use the process has to end before the kernel ends
// something else.
func checkMemory(limit int64) {
	used := memoryInUse()
	if used <= limit {
		return
	}
	if used <= limit+limit/2 {
		runtime.GC() // perhaps it is garbage
		if memoryInUse() <= limit {
			return
		}
	}
	e := &evaluations
	e.Lock()
	defer e.Unlock()
	for i := range e.running {
		if !i.runs() {
			continue
		}
		err := &MemoryError{limit, i.loading}
		i.cancel(err)
		if used > limit+limit/2 {
			script.Exhausted(err)
		}
	}
}

// memoryInUse is what objects and stacks have, with garbage that was not yet
// collected.
func memoryInUse() int64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(sample)
	return int64(sample[0].Value.Uint64() + sample[1].Value.Uint64())
}
