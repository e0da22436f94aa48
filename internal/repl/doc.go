// Package repl is a person's conversation with a lab, at a terminal or over a
// pipe: it reads statements, runs them in a session and shows what came of them.
//
// At a terminal there is line editing with history and completion. Ctrl-C ends
// the statement that runs, and with it what the statement started in a guest;
// at the prompt it drops the line. Ctrl-D ends the conversation. Over a pipe
// there are no prompts, errors go to standard error, and the worst of them is known
// at the end.
package repl
