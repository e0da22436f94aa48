// Package services is the host that every network of a lab has beside its
// machines: it gives guests that ask for them their planned addresses (DHCP,
// DHCPv6 with router advertisements) and the names of the lab (DNS).
//
// It is a few hundred lines above Ethernet, not an IP stack: it answers, and
// never speaks first. A guest that does not ask never hears of it. Its router
// advertisements make nobody a router (lifetime 0) and no address (no autonomous
// prefix), so a guest whose kernel solicits them by itself keeps exactly the
// addresses and routes that it has.
//
// Each service can be left out. When another DHCP server of the network is heard, in what it or
// one of its clients sends to everybody, new guests are left to that one.
package services
