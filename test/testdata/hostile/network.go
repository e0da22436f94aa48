package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// attackNetwork sends frames for a while, and says how many.
func attackNetwork(args []string) {
	if len(args) != 3 {
		fail(fmt.Errorf("want MODE SECONDS INTERFACE"))
	}
	seconds, err := strconv.Atoi(args[1])
	if err != nil {
		fail(err)
	}
	card, err := net.InterfaceByName(args[2])
	if err != nil {
		fail(err)
	}
	const all = 0x0300 // ETH_P_ALL, big-endian
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, all)
	if err != nil {
		fail(err)
	}
	to := &unix.SockaddrLinklayer{Ifindex: card.Index, Halen: 6, Protocol: all}
	next := map[string]func(int, *net.Interface) []byte{"frames": forgedFrame, "dns": dnsQuery, "fragments": fragment}[args[0]]
	if next == nil {
		fail(fmt.Errorf("unknown mode %s", args[0]))
	}
	sent := 0
	for end := time.Now().Add(time.Duration(seconds) * time.Second); time.Now().Before(end); sent++ {
		if err := unix.Sendto(fd, next(sent, card), 0, to); err != nil && err != unix.ENOBUFS {
			fail(err)
		}
	}
	fmt.Println(sent)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

var broadcast = []byte{255, 255, 255, 255, 255, 255}

func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// forgedFrame is one that pretends to come from somebody else, or is none.
func forgedFrame(i int, card *net.Interface) []byte {
	f := random(60 + rand.IntN(1400))
	other := []byte{0x52, 0x54, 0, 0x12, 1, byte(rand.Uint32N(8))} // of this network
	switch i % 7 {
	case 0: // from nobody to nobody
		f[0] &^= 1
		f[6] &^= 1
	case 1: // ARP that takes others' addresses
		copy(f, broadcast)
		copy(f[6:], other)
		copy(f[12:], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, byte(1 + rand.Uint32N(2))})
		copy(f[22:], other)
		copy(f[28:], []byte{192, 168, 1, byte(rand.Uint32N(8))})
	case 2: // DHCP from invented clients
		dhcp := make([]byte, 300)
		copy(dhcp, []byte{1, 1, 6, 0})
		copy(dhcp[4:], random(4))
		copy(dhcp[28:], random(6))
		copy(dhcp[236:], []byte{99, 130, 83, 99, 53, 1, byte(1 + 2*rand.Uint32N(2)), 255})
		f = ethernet(broadcast, random(6), udp([]byte{0, 0, 0, 0}, broadcast[:4], 68, 67, dhcp))
	case 3: // garbage to attest's own services
		copy(f, []byte{0x52, 0x54, 0, 0x12, 1, 0xfe})
		copy(f[6:], other)
		copy(f[12:], []byte{8, 0, 0x45, 0})
	case 4: // garbage to all
		copy(f, []byte{0x33, 0x33})
		copy(f[12:], []byte{0x86, 0xdd, 0x60})
	case 5: // from a group
		f[0] |= 1
		f[6] |= 1
	case 6: // from a machine that is not this one, to another
		copy(f, other)
		copy(f[6:], []byte{0x52, 0x54, 0, 0x12, 1, byte(rand.Uint32N(8))})
		copy(f[12:], []byte{8, 0, 0x45, 0})
	}
	return f
}

// dnsQuery asks the way out for a name that nobody has, from its own and from invented
// addresses.
func dnsQuery(i int, card *net.Interface) []byte {
	q := append(random(2), 1, 0, 0, byte(1+i%3), 0, 0, 0, 0, 0, 0)
	label := fmt.Sprintf("n%d-%x", i, random(8))
	q = append(q, byte(len(label)))
	q = append(append(q, label...), 7)
	q = append(append(q, "example"...), 0, 0, byte(1+rand.Uint32N(40)), 0, 1)
	from := []byte{10, 0, 2, 15}
	if i%2 == 1 {
		from = append([]byte{10, 0, 2}, random(1)...)
	}
	source := card.HardwareAddr
	if i%4 == 3 {
		source = append([]byte{2}, random(5)...)
	}
	return ethernet(names, source, udp(from, []byte{10, 0, 2, 3}, uint16(1024+i%60000), 53, q))
}

// The addresses of a machine's way out, and of its name server.
var (
	gateway = []byte{0x52, 0x55, 10, 0, 2, 2}
	names   = []byte{0x52, 0x55, 10, 0, 2, 3}
)

// fragment is a piece of a packet that never becomes whole, or overlaps others.
func fragment(i int, card *net.Interface) []byte {
	p := udp([]byte{10, 0, 2, 15}, []byte{10, 0, 2, 2}, uint16(i), 53, random(8*(1+rand.IntN(150))))
	binary.BigEndian.PutUint16(p[4:], uint16(rand.Uint32N(64)+uint32(i/50)))
	binary.BigEndian.PutUint16(p[6:], uint16(0x2000*(i%2))|uint16(rand.Uint32N(0x2000)))
	checksum(p)
	return ethernet(gateway, card.HardwareAddr, p)
}

func ethernet(to, from, packet []byte) []byte {
	f := append(append([]byte{}, to...), from...)
	return append(append(f, 8, 0), packet...)
}

// udp is an IPv4 packet. Its UDP checksum is left out.
func udp(from, to []byte, source, port uint16, data []byte) []byte {
	p := make([]byte, 28, 28+len(data))
	p[0], p[8], p[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(28+len(data)))
	copy(p[12:], from)
	copy(p[16:], to)
	checksum(p)
	binary.BigEndian.PutUint16(p[20:], source)
	binary.BigEndian.PutUint16(p[22:], port)
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(data)))
	return append(p, data...)
}

// checksum makes the header of an IPv4 packet right.
func checksum(p []byte) {
	p[10], p[11] = 0, 0
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
}
