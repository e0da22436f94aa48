package services

import (
	"encoding/binary"
	"math"
	"net"
	"net/netip"
	"strings"
)

// Messages of ICMPv6 (RFC 4443, RFC 4861) and options of router advertisements.
const (
	echoRequest6          = 128
	echoReply6            = 129
	routerSolicitation    = 133
	routerAdvertisement   = 134
	neighborSolicitation  = 135
	neighborAdvertisement = 136

	optionSourceLink = 1
	optionTargetLink = 2
	optionPrefix     = 3
	optionDNS        = 25 // RFC 8106
	optionSearch     = 31

	forever = math.MaxUint32

	managed = 0x80 // flag of router advertisements: addresses are to be had by DHCPv6
)

func (h *Host) icmp6(f packet) {
	switch kind := f.payload[0]; {
	case kind == echoRequest6 && len(f.payload) >= 8:
		h.echo(f, echoReply6)
	case f.hops != 255: // it came through a router, or pretends to
	case kind == neighborSolicitation && len(f.payload) >= 24:
		h.neighbor(f, netip.AddrFrom16([16]byte(f.payload[8:])))
	case kind == routerAdvertisement && len(f.payload) >= 6 && f.payload[5]&managed != 0 && !h.config.NoDHCP: // RFC 4861 4.2
		h.giveWay(serviceDHCP6, f)
	case kind == routerSolicitation && !h.config.NoRA:
		h.advertise(f)
	}
}

// neighbor answers who has one of the host's addresses. One that asks from no
// address wants it for itself (duplicate address detection), and hears it, too.
func (h *Host) neighbor(f packet, target netip.Addr) {
	if target != h.config.IPv6.Addr() && target != h.linkLocal {
		return
	}
	flags, dst, mac := byte(0x60), f.src, f.srcMAC // solicited, override
	if f.src.IsUnspecified() {
		flags, dst, mac = 0x20, allNodes, multicastMAC(allNodes)
	}
	b := []byte{neighborAdvertisement, 0, 0, 0, flags, 0, 0, 0}
	b = append(b, target.AsSlice()...)
	b = appendLink(b, optionTargetLink, h.config.MAC)
	h.send(icmp(h.config.MAC, mac, target, dst, b))
}

// advertise answers a solicitation: addresses and more are to be had by DHCPv6,
// which addresses are on this link, and who knows names. Nobody becomes a router
// by it, and nobody makes an address of it.
func (h *Host) advertise(f packet) {
	dst, mac := f.src, f.srcMAC
	if f.src.IsUnspecified() {
		dst, mac = allNodes, multicastMAC(allNodes)
	}
	const other, onLink = 0x40, 0x80
	flags := byte(managed | other)
	if h.config.NoDHCP || h.others[serviceDHCP6] {
		flags = 0
	}
	b := []byte{routerAdvertisement, 0, 0, 0, 0, flags}
	b = append(b, make([]byte, 10)...) // router lifetime 0, no other times
	b = appendLink(b, optionSourceLink, h.config.MAC)

	b = append(b, optionPrefix, 4, byte(h.config.IPv6.Bits()), onLink)
	b = binary.BigEndian.AppendUint32(b, forever)
	b = binary.BigEndian.AppendUint32(b, forever)
	b = append(b, 0, 0, 0, 0)
	b = append(b, h.config.IPv6.Masked().Addr().AsSlice()...)

	if !h.config.NoDNS {
		b = append(b, optionDNS, 3, 0, 0)
		b = binary.BigEndian.AppendUint32(b, forever)
		b = append(b, h.config.IPv6.Addr().AsSlice()...)
	}
	if h.config.Domain != "" && !h.config.NoDNS {
		name := labels(h.config.Domain)
		name = append(name, make([]byte, -len(name)&7)...)
		b = append(b, optionSearch, byte(1+len(name)/8), 0, 0)
		b = binary.BigEndian.AppendUint32(b, forever)
		b = append(b, name...)
	}
	h.send(icmp(h.config.MAC, mac, h.linkLocal, dst, b))
}

func appendLink(b []byte, option byte, mac net.HardwareAddr) []byte {
	return append(append(b, option, 1), mac...)
}

// labels is a domain name as DNS messages have it.
func labels(name string) (b []byte) {
	for label := range strings.SplitSeq(name, ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0)
}
