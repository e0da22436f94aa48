// Package report turns the events of a run into what people and programs read:
// the terminal, JUnit XML, HTML and JSON lines.
//
// Every report is a subscriber of the event bus and knows nothing else of the
// run. Open makes all that a run asked for, so that a path that cannot be
// written is known before the first machine boots; Set.Close writes what is
// written at the end, in every way in which a run can end but kill -9. The JSON
// lines survive that, too: each is written as its event happens.
//
// Text that comes from a guest is untrusted. Terminal, JUnit and HTML show it
// through one filter (see clean): escape sequences go, other control
// characters and those that reorder text are shown as \x07 or \u202e, invalid
// UTF-8 becomes U+FFFD. The JSON lines keep every byte.
//
// Set.Replay makes the same reports of a run's JSON lines: all that a report shows
// is in the events.
//
// docs/reports.md describes the formats for those who read them.
package report
