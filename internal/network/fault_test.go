package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// These tests run in synctest bubbles: time is virtual and passes when nothing
// else happens, so that what they expect of delays is exact.

// A station is a machine's end of a port, in memory.
type station struct {
	*Port
	name string
	out  chan []byte
	end  chan struct{}
	once sync.Once

	mu  sync.Mutex
	got []arrival
}

// An arrival is a frame and when it came.
type arrival struct {
	at    time.Time
	frame []byte
}

func (s *station) Read(b []byte) (int, error) {
	select {
	case f := <-s.out:
		return copy(b, f), nil
	case <-s.end:
		return 0, io.EOF
	}
}

func (s *station) Write(f []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, arrival{time.Now(), bytes.Clone(f)})
	return len(f), nil
}

func (s *station) Close() error {
	s.once.Do(func() { close(s.end) })
	return nil
}

// A bench is a fabric with some stations on network 1, which know each other.
type bench struct {
	*Fabric
	t        *testing.T
	stations []*station
	begun    time.Time
}

// onBench runs a test with n stations a, b, c, … in a bubble.
func onBench(t *testing.T, n int, test func(*bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{Fabric: NewFabric(7), t: t}
		for i := range n {
			b.attach(string(rune('a'+i)), i)
		}
		for _, s := range b.stations { // all know each other's address
			s.out <- frameOf(broadcast, s.nic.MAC, "hello")
		}
		b.settle()
		for _, s := range b.stations {
			s.take()
		}
		b.begun = time.Now()
		test(b)
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		for _, s := range b.stations {
			if n := s.Port.t.(*framewise).live.Load(); n != 0 {
				t.Errorf("%v: %d chunks are held after the end", s.Port, n)
			}
		}
	})
}

func (b *bench) attach(name string, i int) *station {
	s := &station{name: name, out: make(chan []byte), end: make(chan struct{})}
	p, err := b.Switch(1).AttachFrames(b.t.Context(), NIC{Machine: name, ID: "eth1", MAC: macOf(i)}, s)
	if err != nil {
		b.t.Fatal(err)
	}
	s.Port = p
	b.stations = append(b.stations, s)
	return s
}

// settle waits until everything has happened that does not take time.
func (b *bench) settle() { synctest.Wait() }

// after lets time pass.
func (b *bench) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// begin puts a rule in force; its name is all that the seed depends on.
func (b *bench) begin(r Rule) *Fault {
	b.t.Helper()
	if r.Name == "" {
		r.Name = fmt.Sprintf("%T", r.Effect)
	}
	f, err := b.Begin(r)
	if err != nil {
		b.t.Fatal(err)
	}
	return f
}

// send sends texts from one station to another, one frame each.
func (b *bench) send(from, to int, texts ...string) {
	b.sendOnly(from, to, texts)
	b.settle()
}

func (b *bench) sendOnly(from, to int, texts []string) {
	for _, text := range texts {
		b.stations[from].out <- frameOf(macOf(to), macOf(from), text)
	}
}

func numbered(from, to int) (texts []string) {
	for i := from; i < to; i++ {
		texts = append(texts, fmt.Sprintf("%06d", i))
	}
	return texts
}

// take returns what has arrived since the last time.
func (s *station) take() []arrival {
	s.mu.Lock()
	defer s.mu.Unlock()
	got := s.got
	s.got = nil
	return got
}

// texts is what has arrived at a station: "text@milliseconds", without the time
// if that is zero.
func (b *bench) texts(station int) []string {
	var out []string
	for _, a := range b.stations[station].take() {
		text := string(a.frame[minFrame:])
		if ms := a.at.Sub(b.begun).Milliseconds(); ms != 0 {
			text += fmt.Sprintf("@%d", ms)
		}
		out = append(out, text)
	}
	return out
}

func (b *bench) expect(station int, want ...string) {
	b.t.Helper()
	if got := b.texts(station); !slices.Equal(got, want) {
		b.t.Errorf("%c got %q, want %q", 'a'+station, got, want)
	}
}

var fromA = []Flow{{From: These("a")}}

func TestDelay(t *testing.T) {
	onBench(t, 3, func(b *bench) {
		b.begin(Rule{Effect: Delay{Mean: 50 * time.Millisecond}, Flows: fromA})
		b.send(0, 1, "one", "two")
		b.send(1, 0, "back")
		b.send(2, 1, "aside")
		b.expect(0, "back")
		b.expect(1, "aside")
		b.after(30 * time.Millisecond)
		b.send(0, 1, "three")
		b.after(19 * time.Millisecond)
		b.expect(1)
		b.after(time.Second)
		b.expect(1, "one@50", "two@50", "three@80")
	})
}

// Jitter changes when a frame comes, and not in which order.
func TestDelayKeepsOrder(t *testing.T) {
	for _, distribution := range []string{"uniform", "normal", "exponential"} {
		onBench(t, 2, func(b *bench) {
			b.begin(Rule{Effect: Delay{Mean: 20 * time.Millisecond, Jitter: 15 * time.Millisecond, Distribution: distribution}, Flows: fromA})
			const n = 2000
			for _, text := range numbered(0, n) {
				b.send(0, 1, text)
				b.after(5 * time.Millisecond)
			}
			b.after(time.Minute)
			got := b.stations[1].take()
			var least, most, sum time.Duration = math.MaxInt64, 0, 0
			for i, a := range got {
				if want := fmt.Sprintf("%06d", i); string(a.frame[minFrame:]) != want {
					t.Fatalf("%s: got %s in the place of %s", distribution, a.frame[minFrame:], want)
				}
				d := a.at.Sub(b.begun) - time.Duration(i)*5*time.Millisecond
				least, most, sum = min(least, d), max(most, d), sum+d
			}
			if len(got) != n {
				t.Fatalf("%s: %d of %d frames arrived", distribution, len(got), n)
			}
			// Waiting for the one before makes delays longer, never shorter.
			if least < 0 || distribution != "normal" && least < 5*time.Millisecond || distribution == "uniform" && most > 35*time.Millisecond || sum/n < 20*time.Millisecond || sum/n > 35*time.Millisecond {
				t.Errorf("%s: delays from %v to %v, %v on average", distribution, least, most, sum/n)
			}
		})
	}
}

// What a delay holds back is delivered when it is healed, before what comes
// later; the same when it is healed while frames come.
func TestHealOfDelayKeepsOrder(t *testing.T) {
	onBench(t, 2, func(b *bench) {
		f := b.begin(Rule{Effect: Delay{Mean: time.Hour}, Flows: fromA})
		b.send(0, 1, numbered(0, 100)...)
		b.after(5 * time.Millisecond)
		b.expect(1)
		go b.sendOnly(0, 1, numbered(100, 500))
		if !f.Heal() || f.Heal() {
			t.Error("the first heal is the one that counts")
		}
		b.settle()
		got := b.texts(1)
		for i := range got {
			if want := fmt.Sprintf("%06d@5", i); got[i] != want {
				t.Fatalf("got %s in the place of %s", got[i], want)
			}
		}
		if len(got) != 500 || f.Frames() < 100 || f.Affected() != f.Frames() {
			t.Errorf("%d frames arrived; the fault saw %d and delayed %d", len(got), f.Frames(), f.Affected())
		}
	})
}

func TestDrop(t *testing.T) {
	onBench(t, 2, func(b *bench) {
		f := b.begin(Rule{Effect: Drop{Rate: 0.3}, Flows: fromA})
		b.send(0, 1, numbered(0, 1000)...)
		got := b.texts(1)
		if n := len(got); n < 650 || n > 750 || f.Frames() != 1000 || f.Affected() != 1000-uint64(n) || b.stations[0].Stats().FromMachine.Lost.Fault != f.Affected() {
			t.Errorf("%d of 1000 arrived; the fault saw %d, and dropped %d", n, f.Frames(), f.Affected())
		}
		if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
			t.Error("what arrived is not in order, or came twice")
		}
		f.Heal()
		b.send(0, 1, numbered(0, 100)...)
		if got := b.texts(1); len(got) != 100 {
			t.Errorf("%d of 100 arrived after the heal", len(got))
		}
	})
}

// Correlated losses come in runs and stay as many.
func TestCorrelatedDrop(t *testing.T) {
	runs := func(correlation float64) (lost int, perRun float64) {
		onBench(t, 2, func(b *bench) {
			b.begin(Rule{Effect: Drop{Rate: 0.2, Correlation: correlation}, Flows: fromA})
			const n = 20000
			for _, text := range numbered(0, n) {
				b.stations[0].out <- frameOf(macOf(1), macOf(0), text)
			}
			b.settle()
			got := map[string]bool{}
			for _, text := range b.texts(1) {
				got[text] = true
			}
			runs, before := 0, true
			for _, text := range numbered(0, n) {
				if !got[text] {
					lost++
					if before {
						runs++
					}
				}
				before = got[text]
			}
			perRun = float64(lost) / float64(runs)
		})
		return lost, perRun
	}
	alone, perRun := runs(0)
	if alone < 3600 || alone > 4400 || perRun > 1.4 {
		t.Errorf("without correlation: %d lost in runs of %.2f", alone, perRun)
	}
	together, perRun := runs(0.75)
	if together < 3400 || together > 4600 || perRun < 4 {
		t.Errorf("with correlation: %d lost in runs of %.2f", together, perRun)
	}
}

// The same frames meet the same fate with the same seed, in the same fault of
// the same test, and not otherwise.
func TestSameSeedSameFate(t *testing.T) {
	fate := func(seed int64, scope string, before int) (got []string) {
		onBench(t, 3, func(b *bench) {
			b.seed = seed
			for range before {
				b.begin(Rule{Effect: Drop{Rate: 0.5}, Flows: fromA, Scope: scope}).Heal()
			}
			b.begin(Rule{Effect: Drop{Rate: 0.5}, Flows: fromA, Scope: scope})
			go b.sendOnly(2, 1, numbered(0, 50)) // whatever others do
			b.send(0, 1, numbered(0, 200)...)
			for _, a := range b.stations[1].take() {
				if keyOf(a.frame[6:]) == keyOf(macOf(0)) {
					got = append(got, string(a.frame[minFrame:]))
				}
			}
		})
		return got
	}
	first := fate(7, "test_x", 0)
	for range 3 {
		if again := fate(7, "test_x", 0); !slices.Equal(again, first) {
			t.Fatalf("the second time\n%q, the first time\n%q", again, first)
		}
	}
	for name, other := range map[string][]string{
		"seed": fate(8, "test_x", 0), "test": fate(7, "test_y", 0), "second fault": fate(7, "test_x", 1),
	} {
		if slices.Equal(other, first) {
			t.Errorf("another %s makes no difference", name)
		}
	}
}

func TestDuplicate(t *testing.T) {
	onBench(t, 2, func(b *bench) {
		f := b.begin(Rule{Effect: Duplicate{Rate: 0.5}, Flows: fromA})
		b.send(0, 1, numbered(0, 1000)...)
		got := b.texts(1)
		twice := len(got) - 1000
		if twice < 430 || twice > 570 || f.Affected() != uint64(twice) || !slices.IsSorted(got) || len(slices.Compact(got)) != 1000 {
			t.Errorf("%d frames came twice, the fault says %d", twice, f.Affected())
		}
	})
}

func TestCorrupt(t *testing.T) {
	onBench(t, 2, func(b *bench) {
		f := b.begin(Rule{Effect: Corrupt{Rate: 0.5}, Flows: fromA})
		b.send(0, 1, numbered(0, 1000)...)
		bad := 0
		for i, a := range b.stations[1].take() {
			sent := frameOf(macOf(1), macOf(0), fmt.Sprintf("%06d", i))
			if !bytes.Equal(a.frame[:minFrame], sent[:minFrame]) || len(a.frame) != len(sent) {
				t.Fatalf("frame %d: %q", i, a.frame)
			}
			bits := 0
			for j := range sent {
				for x := sent[j] ^ a.frame[j]; x != 0; x &= x - 1 {
					bits++
				}
			}
			if bits > 1 {
				t.Fatalf("frame %d has %d wrong bits", i, bits)
			}
			bad += bits
		}
		if bad < 430 || bad > 570 || f.Affected() != uint64(bad) {
			t.Errorf("%d frames are corrupt, the fault says %d", bad, f.Affected())
		}
		b.send(0, 1, "") // nothing to corrupt
		b.expect(1, "")
	})
}

// A frame to many is corrupt for one and whole for the others.
func TestCorruptSparesOthers(t *testing.T) {
	onBench(t, 3, func(b *bench) {
		b.begin(Rule{Effect: Corrupt{Rate: 1}, Flows: []Flow{{To: These("b")}}})
		b.stations[0].out <- frameOf(broadcast, macOf(0), "to all")
		b.settle()
		if got := b.texts(1); len(got) != 1 || got[0] == "to all" {
			t.Errorf("b got %q", got)
		}
		b.expect(2, "to all")
	})
}

func TestReorder(t *testing.T) {
	onBench(t, 2, func(b *bench) {
		f := b.begin(Rule{Effect: Reorder{Rate: 1}, Flows: fromA})
		b.send(0, 1, "one", "two") // both wait for a third that never comes
		b.expect(1)
		b.after(time.Second)
		b.expect(1, "one@100", "two@100")
		f.Heal()

		f = b.begin(Rule{Effect: Reorder{Rate: 0.2, Gap: 3}, Flows: fromA})
		b.send(0, 1, numbered(0, 1000)...)
		b.after(time.Second)
		var order []int
		for _, a := range b.stations[1].take() {
			i, _ := strconv.Atoi(string(a.frame[minFrame:]))
			order = append(order, i)
		}
		held := map[int]bool{} // those that came after later ones
		for i, most := 0, -1; i < len(order); i++ {
			held[order[i]] = order[i] < most
			most = max(most, order[i])
		}
		late := 0
		for place, i := range order {
			if !held[i] {
				continue
			}
			late++
			first := 0
			for _, j := range order[:place] {
				if j > i && !held[j] {
					first++
				}
			}
			if first != 3 && i < 990 {
				t.Errorf("%d frames overtook frame %d", first, i)
			}
		}
		if sorted := slices.Sorted(slices.Values(order)); len(slices.Compact(sorted)) != 1000 || len(order) != 1000 || late < 140 || late > 260 || int(f.Affected()) < late || int(f.Affected()) > late+4 { // the last may be overtaken by none
			t.Errorf("%d frames, %d of them late; the fault says %d", len(order), late, f.Affected())
		}
	})
}

// 1000 bytes of Ethernet at 80 kbit/s take 100 ms.
func TestRate(t *testing.T) {
	onBench(t, 2, func(b *bench) {
		text := func(name string) string { return name + strings.Repeat("x", 1000-minFrame-1) }
		got := func() (out []string) {
			for _, x := range b.texts(1) {
				out = append(out, strings.ReplaceAll(x, "x", ""))
			}
			return out
		}
		f := b.begin(Rule{Effect: Rate{Bits: 80_000, Queue: 3000}, Flows: fromA})
		b.send(0, 1, text("1"), text("2"), text("3"), text("4"), text("5"))
		b.after(time.Second)
		if want := []string{"1@100", "2@200", "3@300"}; !slices.Equal(got(), want) || f.Affected() != 2 {
			t.Errorf("%d lost; got %q", f.Affected(), want)
		}
		b.send(0, 1, text("6")) // after a pause the line is free, and saves nothing up
		b.after(time.Second)
		if g := got(); !slices.Equal(g, []string{"6@1100"}) {
			t.Errorf("got %q", g)
		}
		f.Heal()

		b.begin(Rule{Effect: Rate{Bits: 80_000, Burst: 2000}, Flows: fromA})
		b.send(0, 1, text("1"), text("2"), text("3"))
		b.after(time.Second)
		if g := got(); !slices.Equal(g, []string{"1@2000", "2@2000", "3@2100"}) {
			t.Errorf("with a burst: got %q", g)
		}
	})
}

// Faults on one machine add up, and each can go without the others noticing.
func TestFaultsAddUp(t *testing.T) {
	onBench(t, 2, func(b *bench) {
		first := b.begin(Rule{Effect: Delay{Mean: 10 * time.Millisecond}, Flows: fromA})
		b.begin(Rule{Effect: Delay{Mean: 20 * time.Millisecond}, Flows: []Flow{{To: These("b")}}})
		b.begin(Rule{Effect: Duplicate{Rate: 1}, Flows: fromA})
		b.send(0, 1, "x")
		b.after(15 * time.Millisecond) // it is in the second delay
		first.Heal()
		b.after(time.Second)
		b.expect(1, "x@30", "x@30")
		b.send(0, 1, "y")
		b.after(time.Second)
		b.expect(1, "y@1035", "y@1035")
	})
}

// A frame that is in one fault when another begins behind it meets that, too.
func TestFaultBeginsUnderWay(t *testing.T) {
	onBench(t, 2, func(b *bench) {
		b.begin(Rule{Effect: Delay{Mean: 10 * time.Millisecond}, Flows: fromA})
		b.send(0, 1, "x")
		b.begin(Rule{Effect: Down{}, Flows: fromA})
		b.after(time.Second)
		b.expect(1)
	})
}

func TestFlows(t *testing.T) {
	for name, tt := range map[string]struct {
		flows []Flow
		lost  []string // "from to": which of all pairs of a, b, c, d
	}{
		"from one":          {[]Flow{{From: These("a")}}, []string{"ab", "ac", "ad"}},
		"to one":            {[]Flow{{To: These("a")}}, []string{"ba", "ca", "da"}},
		"between two":       {Both(These("a"), These("b")), []string{"ab", "ba"}},
		"from one to two":   {[]Flow{{These("a"), These("b", "c")}}, []string{"ab", "ac"}},
		"isolated":          {Both(These("a"), AllBut("a")), []string{"ab", "ac", "ad", "ba", "ca", "da"}},
		"isolated together": {Both(These("a", "b"), AllBut("a", "b")), []string{"ac", "ad", "bc", "bd", "ca", "cb", "da", "db"}},
		"bridge of three":   {Bridge([]string{"a", "b", "c"}), []string{"ac", "ca"}},
		"bridge of four":    {Bridge([]string{"a", "b", "c", "d"}), []string{"ad", "bd", "da", "db"}},
		"ring of three":     {MajoritiesRing([]string{"a", "b", "c"}), []string{"ab", "bc", "ca"}},
		"ring of four":      {MajoritiesRing([]string{"a", "b", "c", "d"}), []string{"ac", "bd", "ca", "db"}},
	} {
		t.Run(name, func(t *testing.T) {
			onBench(t, 4, func(b *bench) {
				f := b.begin(Rule{Effect: Down{}, Flows: tt.flows})
				for _, way := range []string{"unicast", "broadcast"} {
					var lost []string
					for i := range 4 {
						for j := range 4 {
							if i == j {
								continue
							}
							dst := macOf(j)
							if way == "broadcast" {
								dst = broadcast
							}
							b.stations[i].out <- frameOf(dst, macOf(i), "x")
							b.settle()
							if len(b.stations[j].take()) == 0 {
								lost = append(lost, string([]byte{'a' + byte(i), 'a' + byte(j)}))
							}
							for _, s := range b.stations {
								s.take()
							}
						}
					}
					if !slices.Equal(lost, tt.lost) {
						t.Errorf("%s: lost %v, want %v", way, lost, tt.lost)
					}
				}
				f.Heal()
				for _, s := range b.stations {
					if s.from.head.Load() != nil || s.to.head.Load() != nil {
						t.Errorf("%v: something is left on its paths", s.Port)
					}
				}
			})
		})
	}
}

// With five machines on a ring each hears three, and no two the same three.
func TestMajoritiesRing(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e"}
	heard := map[string]bool{}
	for _, f := range MajoritiesRing(names) {
		var three []string
		for _, n := range names {
			if !slices.Contains(f.From.Machines, n) {
				three = append(three, n)
			}
		}
		if len(three) != 3 || !slices.Contains(three, f.To.Machines[0]) {
			t.Errorf("%s hears %v", f.To.Machines[0], three)
		}
		heard[fmt.Sprint(three)] = true
	}
	if len(heard) != 5 {
		t.Errorf("the majorities are %v", heard)
	}
}

// What a fault does not select passes at once, whatever the fault holds back.
func TestMatchSparesOthers(t *testing.T) {
	onBench(t, 2, func(b *bench) {
		m, err := ParseMatch("tcp:5432")
		if err != nil {
			t.Fatal(err)
		}
		f := b.begin(Rule{Effect: Delay{Mean: time.Second}, Flows: fromA, Match: m})
		b.stations[0].out <- tcp(macOf(1), macOf(0), 40000, 5432)
		b.stations[0].out <- tcp(macOf(1), macOf(0), 40000, 80)
		b.settle()
		if got := b.stations[1].take(); len(got) != 1 || binary.BigEndian.Uint16(got[0].frame[36:]) != 80 || f.Frames() != 1 {
			t.Errorf("%d frames of port 80 passed, the fault saw %d", len(got), f.Frames())
		}
		b.after(2 * time.Second)
		if got := b.stations[1].take(); len(got) != 1 {
			t.Errorf("%d frames came later", len(got))
		}
	})
}

// A machine that restarts comes back to the same faults, and the numbers of its
// frames go on.
func TestFaultsOutliveThePort(t *testing.T) {
	fate := func(restart bool) (got []string) {
		onBench(t, 2, func(b *bench) {
			b.begin(Rule{Effect: Drop{Rate: 0.5}, Flows: fromA})
			b.SetDown("a", "eth1", false)
			b.send(0, 1, numbered(0, 100)...)
			if restart {
				b.stations[0].Port.Close()
				b.stations[0] = b.attach("a", 0)
				b.stations = b.stations[:2]
			}
			b.send(0, 1, numbered(100, 200)...)
			got = b.texts(1)
		})
		return got
	}
	if once, twice := fate(false), fate(true); !slices.Equal(once, twice) {
		t.Errorf("with a restart\n%q, without one\n%q", twice, once)
	}
}

// A fork goes on where its source was: the same faults with the same fate, the
// same cables, the same knowledge of who is where; and is a fabric of its own.
func TestState(t *testing.T) {
	texts := numbered(0, 200)
	run := func(fork bool) (got []string) {
		onBench(t, 4, func(b *bench) {
			b.begin(Rule{Effect: Drop{Rate: 0.5, Correlation: 0.5}, Flows: fromA})
			b.begin(Rule{Effect: Down{}, Flows: fromA}).Heal()
			b.SetDown("d", "eth1", true)
			b.send(0, 1, texts[:100]...)
			b.begin(Rule{Effect: Delay{Mean: time.Second}, Flows: []Flow{{To: These("c")}}})
			b.send(2, 0, "hello")
			b.send(1, 2, "under way")
			other := &bench{t: t}
			if fork {
				other.Fabric = b.State().Fabric()
				for i, name := range []string{"a", "b", "c", "d"} {
					other.attach(name, i)
				}
				for _, f := range b.Faults() {
					f.Heal()
				}
				b.settle()
				got = b.texts(1)
				b.expect(2, "under way")
			} else {
				other = b
				b.after(5 * time.Second)
				b.stations[2].take()
				got = b.texts(1)
			}
			other.begun = time.Now()
			other.send(0, 1, texts[100:]...)
			got = append(got, other.texts(1)...)
			if fork { // nothing was flooded: the fork knows where b is
				other.after(5 * time.Second)
				other.expect(2)
				other.expect(3)
				if !other.Down("d", "eth1") || len(other.Faults()) != 2 || len(b.Faults()) != 0 {
					t.Errorf("faults: %v in the fork, %v in the source", other.Faults(), b.Faults())
				}
				if f := other.Faults()[0]; f.Frames() != 200 {
					t.Errorf("the fault saw %d frames", f.Frames())
				}
				other.Close()
			}
		})
		return got
	}
	if want, got := run(false), run(true); !slices.Equal(want, got) {
		t.Errorf("in the fork\n%q, without one\n%q", got, want)
	}
}

// A port that closes leaves nothing of what was held back for it, or by it.
func TestCloseUnderFault(t *testing.T) {
	onBench(t, 3, func(b *bench) {
		b.begin(Rule{Effect: Delay{Mean: time.Second}, Flows: []Flow{{To: These("b")}}})
		b.begin(Rule{Effect: Delay{Mean: time.Second}, Flows: fromA})
		b.send(0, 1, "held by a")
		b.send(2, 1, "held by b")
		b.stations[0].Port.Close()
		b.after(500 * time.Millisecond)
		b.stations[1].Port.Close()
		b.after(5 * time.Second)
		b.expect(1)
	})
}

// A long delay does not fill the host's memory.
func TestHeldBytesAreBounded(t *testing.T) {
	onBench(t, 2, func(b *bench) {
		f := b.begin(Rule{Effect: Delay{Mean: time.Hour}, Flows: fromA})
		big := strings.Repeat("x", 60000)
		const n = 2 * maxHeldBytes / 60000
		for range n {
			b.stations[0].out <- frameOf(macOf(1), macOf(0), big)
		}
		b.settle()
		if lost := b.stations[0].Stats().FromMachine.Lost.Fault; lost < n/3 || lost > 2*n/3 {
			t.Errorf("%d of %d frames were lost", lost, n)
		}
		f.Heal()
	})
}

func TestBlockedBeforeAttached(t *testing.T) {
	onBench(t, 2, func(b *bench) {
		b.SetDown("c", "eth1", true)
		c := b.attach("c", 2)
		b.stations[0].out <- frameOf(broadcast, macOf(0), "x")
		b.settle()
		if !b.Down("c", "eth1") || len(c.take()) != 0 {
			t.Error("a frame came to a NIC whose cable is pulled")
		}
		b.SetDown("c", "eth1", false)
		b.stations[0].out <- frameOf(broadcast, macOf(0), "y")
		b.settle()
		b.expect(2, "y")
	})
}

func TestRulesThatMakeNoSense(t *testing.T) {
	f := NewFabric(1)
	for _, e := range []Effect{
		Drop{Rate: 1.5}, Drop{Rate: math.NaN()}, Drop{Rate: 0.5, Correlation: 1}, Duplicate{-1}, Corrupt{2}, Reorder{Rate: 0.5, Gap: -1}, Reorder{Rate: 7},
		Delay{Mean: -1}, Delay{Mean: 2 * time.Hour}, Delay{Distribution: "bimodal"}, Rate{}, Rate{Bits: 1, Queue: -1}, Rate{Bits: 1, Burst: -1},
	} {
		if _, err := f.Begin(Rule{Name: "drop(a)", Effect: e, Flows: fromA}); err == nil || !strings.HasPrefix(err.Error(), "drop: ") {
			t.Errorf("%#v: %v", e, err)
		}
	}
	if _, err := f.Begin(Rule{Name: "down([])", Effect: Down{}}); err == nil {
		t.Error("a fault on nobody passes")
	}
	f.Close()
	if _, err := f.Begin(Rule{Effect: Down{}, Flows: fromA}); !errors.Is(err, ErrClosed) {
		t.Errorf("a fault on a closed fabric: %v", err)
	}
}

// tcp is the beginning of a TCP segment in IPv4.
func tcp(dst, src []byte, from, to uint16) []byte {
	f := append(append(bytes.Clone(dst), src...), 0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, protoTCP, 0, 0, 192, 168, 1, 1, 192, 168, 1, 2)
	f = binary.BigEndian.AppendUint16(f, from)
	f = binary.BigEndian.AppendUint16(f, to)
	return append(f, make([]byte, 16)...)
}
