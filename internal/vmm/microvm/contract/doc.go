// Package contract tests backends of small VMMs, each against its fake: what all of them do
// (Subject), and a host and machines for tests of one (Rig, Box).
package contract
