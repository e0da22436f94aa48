// Package services is the host that every network of a lab has beside its
// machines: it gives guests that ask for them their planned addresses (DHCP,
// DHCPv6 with router advertisements) and the names of the lab (DNS).
//
// It is a few hundred lines above Ethernet, not an IP stack: it answers, and
// never speaks first. A guest that does not ask never hears of it. Its router
// advertisements make nobody a router (lifetime 0) and no address (no autonomous
// prefix), so a guest whose kernel solicits them by itself keeps exactly the
// addresses and routes that it has.
package services
