// Package operation is the one table of what a test can ask of a machine or a
// lab: names, parameters, results and documentation.
//
// Every front end is generic over the table: Starlark test files, Python test
// scripts, the interactive shell and the reference page (docs/operations.md).
// A front end turns its own values into the plain ones that Bind takes, calls
// Invoke, and turns the result back. An operation is therefore added in one
// place, by an entry in the file of its subject. What an operation returns can
// have operations of its own: that is another kind of object, see On and Handle.
//
// Names, argument names and meanings are those of the NixOS test driver, whose
// scripts attest runs unchanged.
package operation
