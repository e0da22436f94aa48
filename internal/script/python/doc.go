// Package python runs test scripts in Python, as the NixOS test driver does.
//
// A script runs in the CPython of this host, in a process of its own for each call, below the
// supervisor. The names that it sees come from a small package (lib/test_driver), which the binary
// carries; it asks for every operation over a socket (internal/protocol), whose table of
// operations its methods are made of.
package python
