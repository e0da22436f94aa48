// Package vde lets programs that speak VDE's plug protocol join a network: QEMU
// with -netdev vde,sock=DIR, vde_plug, vde_plug2tap, and start scripts made for
// a vde_switch. None of VDE needs to be installed.
//
// The protocol is that of libvdeplug, version 3 (VDE 2; vde-2/src/lib/libvdeplug.c
// and vde_switch/datasock.c). A client connects to the stream socket "ctl" in
// the switch's directory, binds a datagram socket of its own in that directory
// and sends its name; the switch answers with the name of another one. From then
// on each datagram between the two is a frame, and the stream stays silent: its
// end is the end of the connection.
package vde
