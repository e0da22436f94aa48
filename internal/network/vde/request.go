package vde

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// A request is what a client sends first, in the host's byte order and without
// padding:
//
//	uint32  magic    0xfeedface
//	uint32  version  3
//	uint32  type     the lower 8 bits: 0 a port, 1 port 0; the others: a port's number, 0 any
//	        sock     struct sockaddr_un of the client's datagram socket
//	char[]  description, up to 128 bytes, with or without a NUL
type request struct {
	socket      string // path
	description string
}

const (
	magic   = 0xfeedface
	version = 3

	typeOffset  = 8
	sockOffset  = 12
	pathOffset  = sockOffset + 2   // struct sockaddr_un (unix(7)): the family and
	pathSize    = 108              // the path
	minRequest  = pathOffset + 108 // without a description
	maxRequest  = minRequest + 128
	familyUnix  = 1 // AF_UNIX
	requestPort = 0
	requestMgmt = 1 // of a vde_switch, port 0 is the one that may manage it; here it is any port
)

// parseRequest reads a request. What it returns came from an unknown program:
// the path is not checked beyond that it is one.
func parseRequest(b []byte) (request, error) {
	order := binary.NativeEndian
	if len(b) >= 4 && order.Uint32(b) != magic {
		return request{}, fmt.Errorf("not VDE's plug protocol: it begins with %#08x, not %#08x", order.Uint32(b), uint32(magic))
	}
	if len(b) < minRequest {
		return request{}, fmt.Errorf("a request of %d bytes, want at least %d", len(b), minRequest)
	}
	if v := order.Uint32(b[4:]); v != version {
		return request{}, fmt.Errorf("version %d of VDE's plug protocol; only %d is known here", v, version)
	}
	if t := order.Uint32(b[typeOffset:]) & 0xff; t != requestPort && t != requestMgmt {
		return request{}, fmt.Errorf("a request of the unknown type %d", t)
	}
	if f := order.Uint16(b[sockOffset:]); f != familyUnix {
		return request{}, fmt.Errorf("a data socket of address family %d, not AF_UNIX", f)
	}
	path := text(b[pathOffset:minRequest])
	if path == "" {
		return request{}, errors.New("a data socket without a path")
	}
	return request{path, text(b[minRequest:min(len(b), maxRequest)])}, nil
}

// text is a string that ends with a NUL, or with the field.
func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// reply is the address of the switch's datagram socket, a struct sockaddr_un.
func reply(path string) []byte {
	b := make([]byte, minRequest-sockOffset)
	binary.NativeEndian.PutUint16(b, familyUnix)
	copy(b[pathOffset-sockOffset:], path)
	return b
}
