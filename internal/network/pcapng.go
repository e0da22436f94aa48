package network

import (
	"encoding/binary"
	"time"
)

// What is written of pcapng (draft-ietf-opsawg-pcapng), little-endian. Blocks
// and options are padded to 4 bytes.
const (
	blockSection   = 0x0a0d0d0a
	blockInterface = 1
	blockPacket    = 6

	optionEnd      = 0
	optionComment  = 1
	optionAppl     = 4 // of a section
	optionName     = 2 // of an interface
	optionAbout    = 3
	optionMAC      = 6
	optionResol    = 9
	optionFlags    = 2 // of a packet
	optionDropped  = 4
	flagInbound    = 1
	flagOutbound   = 2
	linkEthernet   = 1
	linkUpperPDU   = 252 // Wireshark's own: a payload with the name of its dissector
	maxOptionBytes = 1<<16 - 1
)

// A pcapng is blocks in memory.
type pcapng []byte

// block appends a block: its body is what fill appends.
func (b *pcapng) block(kind uint32, fill func()) {
	start := len(*b)
	b.u32(kind, 0)
	fill()
	length := uint32(len(*b) - start + 4)
	b.u32(length)
	binary.LittleEndian.PutUint32((*b)[start+4:], length)
}

func (b *pcapng) u16(values ...uint16) {
	for _, v := range values {
		*b = binary.LittleEndian.AppendUint16(*b, v)
	}
}

func (b *pcapng) u32(values ...uint32) {
	for _, v := range values {
		*b = binary.LittleEndian.AppendUint32(*b, v)
	}
}

func (b *pcapng) padded(data []byte) {
	*b = append(*b, data...)
	*b = append(*b, make([]byte, -len(data)&3)...)
}

func (b *pcapng) option(code uint16, value []byte) {
	value = value[:min(len(value), maxOptionBytes)]
	b.u16(code, uint16(len(value)))
	b.padded(value)
}

func (b *pcapng) section() {
	b.block(blockSection, func() {
		b.u32(0x1a2b3c4d) // byte order
		b.u16(1, 0)       // version
		b.u32(0xffffffff, 0xffffffff)
		b.option(optionAppl, []byte("attest"))
		b.u32(optionEnd)
	})
}

// An iface is an interface of a capture; times are in nanoseconds.
type iface struct {
	name, about string
	mac         []byte
	link        uint16
}

func (b *pcapng) iface(i iface) {
	b.block(blockInterface, func() {
		b.u16(i.link, 0)
		b.u32(0) // no limit of a packet's length
		b.option(optionName, []byte(i.name))
		b.option(optionAbout, []byte(i.about))
		if len(i.mac) == 6 {
			b.option(optionMAC, i.mac)
		}
		b.option(optionResol, []byte{9})
		b.u32(optionEnd)
	})
}

// A packet is one of a capture.
type packet struct {
	iface   int
	time    time.Time
	data    []byte
	flags   uint32
	dropped uint64 // packets of this interface that the capture lost before it
	comment string
}

func (b *pcapng) packet(p packet) {
	b.block(blockPacket, func() {
		ns, n := uint64(p.time.UnixNano()), uint32(len(p.data))
		b.u32(uint32(p.iface), uint32(ns>>32), uint32(ns), n, n)
		b.padded(p.data)
		if p.comment != "" {
			b.option(optionComment, []byte(p.comment))
		}
		if p.flags != 0 {
			b.option(optionFlags, binary.LittleEndian.AppendUint32(nil, p.flags))
		}
		if p.dropped > 0 {
			b.option(optionDropped, binary.LittleEndian.AppendUint64(nil, p.dropped))
		}
		b.u32(optionEnd)
	})
}

// note is the payload of a packet that Wireshark shows as a line of text: an
// exported PDU for its dissector of syslog messages.
func note(text string) []byte {
	const tagDissector = 12 // EXP_PDU_TAG_DISSECTOR_NAME
	name := "syslog\x00\x00"
	var b []byte
	b = binary.BigEndian.AppendUint16(b, tagDissector)
	b = binary.BigEndian.AppendUint16(b, uint16(len(name)))
	b = append(b, name...)
	b = append(b, 0, 0, 0, 0)
	return append(b, "<14>"+text...)
}
