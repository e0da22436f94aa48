// Package egress is the way out of a lab, for machines that were given one: a
// gateway on a network of the machine's own. It ends the guest's TCP connections and
// UDP flows in a network stack inside this process (gVisor's) and makes
// them again from the host's sockets, so that it needs no privilege and changes
// nothing on the host. Every connection is held against the machine's rules,
// and reported.
//
// The addresses are those that QEMU's user network has, which people know: the
// guest is 10.0.2.15, the gateway 10.0.2.2, names are asked for at 10.0.2.3; fec0::15,
// fec0::2 and fec0::3. The gateway's own address stands for the host's loopback.
//
// Nothing but TCP, UDP and the questions of DNS gets out, and what the rules refuse is
// told so. Pings to anything but the gateway stay without an answer.
//
// The guest is hostile. The rules decide by the address of a packet, and by what that address
// is (see kind). Names only open addresses that were in an answer to a query of the gateway's
// own. Whatever is kept for a guest has a limit, and what is beyond it is counted.
// docs/networks.md has the threat model.
package egress
