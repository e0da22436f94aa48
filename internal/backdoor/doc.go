// Package backdoor is the root shell that a guest of another test driver offers on a
// console: the backdoor.service of NixOS tests.
//
// A Door uses it in two ways. It puts attest's agent into the guest, which is the fast way
// (install.go). Where the agent cannot run, or shall not, the shell itself does what the
// agent would do, by commands (shell.go, stage.go): the Door has an agent.Server on this
// side then, so that guest.Client speaks with either, and does not know with which.
//
// # The shell's side
//
// The shell announces itself with Marker, and reads commands of bash from its console.
// attest's first line has it begin again with an environment of its own, without a terminal and
// with all signals as they are by default (renew.sh). Then come functions (shell.sh). After
// that each request is one line,
//
//	_attest LENGTH =WORD =WORD…
//
// in which a word has %XX for every byte that is not a letter, a digit or one of "_./:,+@-".
// So no line is ever open in the middle of quotes, one that was cut off (the guest was saved)
// is ignored, and the next one is read. What follows "in" and "text" are so many bytes of base64.
//
// What the guest says is lines,
//
//	attest:SHELL:ID:KIND:TEXT
//
// where SHELL is the name that the shell got from its first hello. Each is written by one
// write(2), so those of several commands do not mix. They come by the virtio serial port that the
// agent goes in by: of a console QEMU throws away what its reader has not made room for. A guest
// whose shell cannot have the port says them on the console, after anything else there; so what
// belongs to a stream has a number and a length, and a gap is an error. After the last line there is no
// gap, so the shell is asked about a command that says nothing ("look"): when it says that no process of the
// command is left, what was not heard by then is lost (lost.go). Kinds, of a command:
//
//	p      its process group
//	f      it was not started: kind of error, message
//	x      its exit status; ":down" if the guest is shutting down
//	i      how the last input was taken: 0 is well
//	o, e   NUMBER:LENGTH:TEXT, standard output or error, as the shell quotes it (printf %q)
//	o+, e+ the same as base64; "." is the end
//	o0, e0 the same, a NUL; the text is empty
//	o., e. the same, the end; the text is empty
//	done   what was asked for has been done
//
// What comes from the guest is not trusted: it is bounded, and what makes no sense ends the
// command that it names with an error.
package backdoor
