package network

import "testing"

func TestMACTable(t *testing.T) {
	a, b := new(Port), new(Port)
	table := newMACTable(minMACSlots)
	key := func(i int) macKey { return keyOf([]byte{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}) }

	for i := range 2 * maxMACs {
		table = table.learn(key(i), a).learn(key(i), a) // twice is once
	}
	if a.macs != maxMACs {
		t.Fatalf("learned %d addresses behind one port, want %d", a.macs, maxMACs)
	}
	for i := range 2 * maxMACs {
		if got, want := table.lookup(key(i)) == a, i < maxMACs; got != want {
			t.Fatalf("address %d known: %v, want %v", i, got, want)
		}
	}

	table = table.learn(key(0), b)
	if table.lookup(key(0)) != b || a.macs != maxMACs-1 || b.macs != 1 {
		t.Fatalf("a move was not followed: %d and %d addresses", a.macs, b.macs)
	}
	table = table.learn(key(maxMACs), a) // the place that became free
	table = table.learn(key(0), a)       // there is none left: unknown rather than wrong
	if table.lookup(key(0)) != nil || a.macs != maxMACs || b.macs != 0 {
		t.Fatalf("a move to a full port: %d and %d addresses", a.macs, b.macs)
	}

	table = table.learn(key(0), b).without(a)
	if table.lookup(key(0)) != b || table.lookup(key(1)) != nil || len(table.slots) != minMACSlots {
		t.Fatalf("after the port has gone: %d slots", len(table.slots))
	}
}

// Two guests that pass addresses to and fro must not make the table grow.
func TestMACTableIsBounded(t *testing.T) {
	a, b := new(Port), new(Port)
	table := newMACTable(minMACSlots)
	key := func(i int) macKey { return keyOf([]byte{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}) }
	for i := range maxMACs {
		table = table.learn(key(i), b)
	}
	for i := maxMACs; i < 50*maxMACs; i++ {
		table = table.learn(key(i), a).learn(key(i), b)
	}
	if len(table.slots) > 8*maxMACs {
		t.Errorf("%d slots", len(table.slots))
	}
}

func TestMulticastBit(t *testing.T) {
	for mac, want := range map[[6]byte]bool{
		{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}: true,
		{0x33, 0x33, 0, 0, 0, 1}:             true,
		{0x52, 0x54, 0, 0x12, 1, 1}:          false,
		{0xaa, 0xfc, 0, 1, 1, 1}:             false,
		{}:                                   false,
	} {
		if got := keyOf(mac[:]).multicast(); got != want {
			t.Errorf("%x: %v", mac, got)
		}
	}
}
