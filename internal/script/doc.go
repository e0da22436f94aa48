// Package script is what test runs and conversations need of a language.
//
// A Language reads files of one ending into Files: machines, and tests that run on
// a lab. It registers itself, as a backend does, so that a program has the
// languages whose packages it imports. A new language is a package that calls
// Register; nothing else has to know of it.
//
// What is wrong with a file, or goes wrong in it, is an *Error with its place. The
// reports show it the same way, whatever the language.
package script
