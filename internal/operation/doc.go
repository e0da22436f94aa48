// Package operation is the one table of what a test can ask of a machine or a
// lab: names, parameters, results and documentation.
//
// Front ends are generic over the table: Starlark test files, the prompt of
// attest repl, and the reference page (docs/operations.md).
// A front end turns its own values into the plain ones that Bind takes, calls
// Invoke, and turns the result back. An operation is therefore added in one
// place, by an entry in the file of its subject. An operation can return an object
// with operations of its own, of another kind; see On and Handle.
//
// Names, argument names and meanings are the NixOS test driver's.
package operation
