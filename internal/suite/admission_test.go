package suite

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// A crowd is labs that want to work. In a synctest bubble, after settle,
// everybody who may work does.
type crowd struct {
	*admission
	ctx     context.Context
	tickets map[string]*ticket
	mu      sync.Mutex
	in      []string // those let in, in order
}

func newCrowd(ctx context.Context, jobs, memory, cpus int) *crowd {
	return &crowd{admission: &admission{jobs: jobs, room: need{memory, cpus}}, ctx: ctx, tickets: map[string]*ticket{}}
}

// comes enqueues a lab; one whose name begins with "t" is a test's.
func (c *crowd) comes(name string, memory, cpus int) {
	t := c.enqueue(need{memory, cpus}, strings.HasPrefix(name, "t"))
	c.tickets[name] = t
	go func() {
		if t.wait(c.ctx) == nil {
			c.mu.Lock()
			c.in = append(c.in, name)
			c.mu.Unlock()
		}
	}()
	synctest.Wait()
}

func (c *crowd) leaves(name string) { c.tickets[name].leave(); synctest.Wait() }
func (c *crowd) rests(name string)  { c.tickets[name].rest(); synctest.Wait() }

func (c *crowd) expect(t *testing.T, want string) {
	t.Helper()
	if got := strings.Join(c.in, " "); got != want {
		t.Errorf("let in: %q, want %q", got, want)
	}
}

func TestAdmission(t *testing.T) {
	for _, tt := range []struct {
		name               string
		jobs, memory, cpus int
		story              func(*testing.T, *crowd)
	}{
		{"jobs", 2, 1000, 10, func(t *testing.T, c *crowd) {
			c.comes("t1", 1, 1)
			c.comes("t2", 1, 1)
			c.comes("t3", 1, 1)
			c.expect(t, "t1 t2")
			c.leaves("t1")
			c.expect(t, "t1 t2 t3")
		}},
		{"memory", 9, 1000, 100, func(t *testing.T, c *crowd) {
			c.comes("t1", 600, 1)
			c.comes("t2", 600, 1)
			c.expect(t, "t1")
			c.leaves("t1")
			c.expect(t, "t1 t2")
		}},
		{"processors", 9, 1000, 4, func(t *testing.T, c *crowd) {
			c.comes("t1", 1, 3)
			c.comes("t2", 1, 2)
			c.expect(t, "t1")
			c.leaves("t1")
			c.expect(t, "t1 t2")
		}},
		{"one that is larger than the host", 9, 1000, 4, func(t *testing.T, c *crowd) {
			c.comes("t1", 1, 1)
			c.comes("t2", 5000, 50)
			c.comes("t3", 1, 1)
			c.expect(t, "t1")
			c.leaves("t1")
			c.expect(t, "t1 t2")
			c.leaves("t2")
			c.expect(t, "t1 t2 t3")
		}},
		{"a small one does not overtake", 9, 1000, 10, func(t *testing.T, c *crowd) {
			c.comes("t1", 900, 1)
			c.comes("t2", 960, 1)
			c.comes("t3", 50, 1)
			c.expect(t, "t1")
			c.leaves("t1")
			c.expect(t, "t1 t2")
			c.leaves("t2")
			c.expect(t, "t1 t2 t3")
		}},
		{"tests before files", 1, 1000, 10, func(t *testing.T, c *crowd) {
			c.comes("f1", 1, 1)
			c.comes("f2", 1, 1)
			c.comes("t1", 1, 1)
			c.comes("t2", 1, 1)
			for _, name := range []string{"f1", "t1", "t2"} {
				c.leaves(name)
			}
			c.expect(t, "f1 t1 t2 f2")
		}},
		{"what rests takes memory only", 1, 1000, 2, func(t *testing.T, c *crowd) {
			c.comes("f1", 400, 2)
			c.comes("t1", 600, 2)
			c.rests("f1")
			c.expect(t, "f1 t1")
			c.leaves("t1")
			c.comes("t2", 601, 1) // too much beside f1, but nobody works
			c.expect(t, "f1 t1 t2")
			c.leaves("f1")
			c.leaves("f1")
			c.leaves("t2")
			if c.taken != (need{}) || c.working != 0 {
				t.Errorf("%+v taken, %d working", c.taken, c.working)
			}
		}},
		{"many that rest do not keep the next out", 2, 1000, 2, func(t *testing.T, c *crowd) {
			for _, name := range []string{"f1", "f2", "f3"} {
				c.comes(name, 400, 1)
				c.rests(name)
			}
			c.comes("t1", 400, 1)
			c.comes("t2", 400, 1)
			c.expect(t, "f1 f2 f3 t1")
			c.leaves("t1")
			c.expect(t, "f1 f2 f3 t1 t2")
		}},
		{"who gives up leaves the queue", 1, 1000, 10, func(t *testing.T, c *crowd) {
			c.comes("t1", 1, 1)
			ctx, cancel := context.WithCancelCause(c.ctx)
			large := c.enqueue(need{5000, 1}, true)
			c.comes("t3", 1, 1)
			cause := errors.New("enough")
			cancel(cause)
			if err := large.wait(ctx); err != cause {
				t.Errorf("got %v", err)
			}
			c.leaves("t1")
			c.expect(t, "t1 t3")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				tt.story(t, newCrowd(ctx, tt.jobs, tt.memory, tt.cpus))
			})
		})
	}
}

// Whatever comes, everybody gets in, nobody shares the host beyond its room,
// and all is given back.
func TestAdmissionProperties(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		a := &admission{jobs: rapid.IntRange(1, 4).Draw(r, "jobs"), room: need{1000, 4}}
		labs := rapid.SliceOfN(rapid.Custom(func(r *rapid.T) need {
			return need{rapid.IntRange(0, 1500).Draw(r, "memory"), rapid.IntRange(0, 6).Draw(r, "cpus")}
		}), 1, 20).Draw(r, "labs")
		failed := ""
		synctest.Test(t, func(t *testing.T) {
			var wg sync.WaitGroup
			for i, n := range labs {
				ticket := a.enqueue(n, i%3 == 0)
				wg.Go(func() {
					ticket.wait(context.Background())
					a.mu.Lock()
					if a.working > a.jobs || a.working > 1 && !a.taken.fits(a.room) {
						failed = fmt.Sprintf("%d working take %+v of %+v", a.working, a.taken, a.room)
					}
					a.mu.Unlock()
					time.Sleep(time.Duration(i%5) * time.Second) // of the bubble
					if i%2 == 0 {
						ticket.rest()
						time.Sleep(time.Second)
					}
					ticket.leave()
				})
			}
			wg.Wait() // a deadlock ends the bubble
		})
		if failed != "" {
			r.Fatal(failed)
		}
		if a.working != 0 || a.taken != (need{}) || a.tests.Len()+a.files.Len() != 0 {
			r.Fatalf("left: %d working, %+v taken", a.working, a.taken)
		}
	})
}
