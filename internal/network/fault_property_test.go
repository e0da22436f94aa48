package network

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// An act is one thing that happens in a drawn run: frames are sent, time passes,
// a fault begins, or the oldest one ends.
type act struct {
	from, to, count int
	pause           time.Duration
	begin           *Rule
	heal            bool
}

func drawAct(r *rapid.T) act {
	station := rapid.IntRange(0, 2)
	switch rapid.IntRange(0, 5).Draw(r, "act") {
	case 0:
		return act{pause: time.Duration(rapid.IntRange(1, 50).Draw(r, "ms")) * time.Millisecond}
	case 1:
		rule := &Rule{Name: "fault", Effect: drawEffect(r)}
		for range rapid.IntRange(1, 2).Draw(r, "flows") {
			rule.Flows = append(rule.Flows, Flow{drawSet(r), drawSet(r)})
		}
		return act{begin: rule}
	case 2:
		return act{heal: true}
	}
	return act{from: station.Draw(r, "from"), to: station.Draw(r, "to"), count: rapid.IntRange(1, 20).Draw(r, "frames")}
}

func drawSet(r *rapid.T) Set {
	return rapid.SampledFrom([]Set{{}, These("a"), These("b"), These("a", "c"), AllBut("a")}).Draw(r, "set")
}

func drawEffect(r *rapid.T) Effect {
	share := rapid.SampledFrom([]float64{0, 0.1, 0.5, 1}).Draw(r, "rate")
	ms := time.Duration(rapid.IntRange(0, 40).Draw(r, "mean")) * time.Millisecond
	return rapid.SampledFrom([]Effect{
		Drop{Rate: share}, Drop{Rate: share, Correlation: 0.5}, Down{}, Delay{Mean: ms}, Delay{Mean: ms, Jitter: ms, Distribution: "normal"},
		Duplicate{share}, Corrupt{share}, Reorder{Rate: share, Gap: 2}, Rate{Bits: 100_000, Queue: 2000}, Rate{Bits: 1_000_000, Burst: 500},
	}).Draw(r, "effect")
}

// Whatever faults come and go while frames are under way: none is invented, none
// is changed unless a fault corrupts, none comes twice unless one duplicates,
// none is lost unless one loses, and what one station sends another stays in its
// order unless one reorders. When the faults are healed nothing is left of them.
func TestFaultProperties(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		acts := rapid.SliceOfN(rapid.Custom(drawAct), 1, 40).Draw(r, "acts")
		var wrong string
		onBench(t, 3, func(b *bench) { wrong = b.play(acts) })
		if wrong != "" {
			r.Fatal(wrong)
		}
	})
}

// play does what was drawn and says what is wrong with what came of it.
func (b *bench) play(acts []act) string {
	var corrupt, duplicate, lose, reorder bool
	sent := map[[2]int]int{} // by sender and receiver
	for _, a := range acts {
		switch {
		case a.pause > 0:
			b.after(a.pause)
		case a.begin != nil:
			b.begin(*a.begin)
			switch a.begin.Effect.(type) {
			case Corrupt:
				corrupt = true
			case Duplicate:
				duplicate = true
			case Drop, Down, Rate:
				lose = true
			case Reorder:
				reorder = true
			}
		case a.heal:
			if f := b.Faults(); len(f) > 0 {
				f[0].Heal()
			}
		case a.from != a.to:
			pair := [2]int{a.from, a.to}
			b.sendOnly(a.from, a.to, numbered(sent[pair], sent[pair]+a.count))
			sent[pair] += a.count
		}
	}
	for _, f := range b.Faults() {
		f.Heal()
	}
	b.settle()
	for _, s := range b.stations {
		if s.from.head.Load() != nil || s.to.head.Load() != nil {
			return fmt.Sprintf("%v: something is left on its paths", s.Port)
		}
	}
	b.after(time.Hour)
	for i := range b.stations {
		received := map[int][]int{}
		for _, x := range b.stations[i].take() {
			from := int(x.frame[11]) - 1
			n, err := strconv.Atoi(string(x.frame[minFrame:]))
			if from < 0 || from > 2 || from == i {
				return fmt.Sprintf("%c got %q, which nobody sent", 'a'+i, x.frame)
			}
			if x.frame[5] != byte(i+1) || !corrupt && (err != nil || n >= sent[[2]int{from, i}]) {
				return fmt.Sprintf("%c got %q, which nobody sent it", 'a'+i, x.frame)
			}
			received[from] = append(received[from], n)
		}
		for from, got := range received {
			if corrupt {
				continue // the numbers themselves may be wrong
			}
			if !reorder && !slices.IsSorted(got) {
				return fmt.Sprintf("from %c to %c: out of order: %v", 'a'+from, 'a'+i, got)
			}
			slices.Sort(got)
			if n := len(slices.Compact(slices.Clone(got))); !duplicate && n != len(got) {
				return fmt.Sprintf("from %c to %c: twice: %v", 'a'+from, 'a'+i, got)
			}
		}
		for from := range b.stations {
			got := slices.Compact(received[from])
			if from != i && !lose && !corrupt && len(got) != sent[[2]int{from, i}] {
				return fmt.Sprintf("from %c to %c: %d of %d arrived: %v", 'a'+from, 'a'+i, len(got), sent[[2]int{from, i}], got)
			}
		}
	}
	return ""
}
