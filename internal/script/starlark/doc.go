// Package starlark reads and runs test files in Starlark.
//
// # A test file
//
//	web = machine(image = debian(packages = ["nginx"]))
//
//	def setup():
//	    web.wait_for_unit("nginx.service")
//
//	def test_serves():
//	    """nginx answers on port 80"""
//	    assert_contains(web.succeed("curl -sf http://localhost/"), "Welcome")
//
// The top level declares images and machines and defines functions; it cannot
// operate machines, since none exists while the file is read. A machine without
// a name takes the name of its variable. Then setup(), if there is one, runs
// once, and every function test_* goes on from what it left, in a lab of its
// own, in any order and several at once. A file without test_* has a main()
// instead; one with both is invalid. One with neither has nothing to run; with setup()
// it is good for a saved state. The first line of a
// function's docstring is the test's title.
//
// A global variable timeout is the limit of each test, and a parameter of that name with
// a default that of its function.
//
// Global variables are frozen when the file has been read, so that tests cannot
// leave anything for each other in them, and setup nothing but the machines.
//
// A Session runs statements that a person types, with the same names.
//
// Predeclared are the operations of a lab (start_all, …), and
//
//	machine(name=, image=, …)  declares a machine; operation.Fields has the arguments
//	machines              the list of all of them, in the order of their declaration
//	debian(suite=, packages=, files=, run=, kernel=, title=)  rootfs(path, kernel=, modules=, title=)  disk(path, title=)
//	assert_eq(got, want)  assert_contains(text, part)  assert_matches(text, regexp)  fail(text)
//	subtest(name, fn)     runs fn as a named part of the test
//	retry(fn, timeout=900, interval=0.25)
//	                      calls fn until it neither fails nor returns False; returns its result
//	polling_condition(fn, interval=2, description=)
//	                      a claim: cond.during(fn) runs fn while the claim must hold,
//	                      cond.wait(timeout=900) waits until it does
//	wait_all(list, fn)    calls fn with every element, all at once; returns the results in order
//	log(text)  print(...) to the log of the run; to standard output
//
// and the modules json, math, re, time and struct. Methods of a machine are the
// operations of the table in package operation; what some of them return, such as
// the job of spawn, has operations of its own. Durations are numbers of
// seconds or strings such as "200ms". Paths of the host are relative to the
// file in which they are written.
//
// # Dialect
//
// Starlark with what people who know Python expect: while, recursion (to a
// depth of 1000), sets, statements such as if and for at the top level, and
// variables that are assigned again. There are no exceptions: what fails ends
// the test, unless retry calls it again. load("lib.star", "name") loads from a
// file that lies relative to the loading one; machines that it declares belong
// to the same lab.
//
// # Concurrency
//
// wait_all runs each call in a Starlark thread of its own, but only one of them
// runs Starlark code at any time: they take turns when they wait for a machine.
// So they can share variables as sequential code does. When one call fails the
// others are ended. The same holds for the function of a polling_condition and
// for functions that are given to an operation, such as during=.
//
// # Limits
//
// An evaluation ends with its context, and with a *MemoryError when scripts have
// more memory than script.MemoryEnv allows. One call of a built-in function that does not
// end is left behind: a *StuckError.
//
// # Errors
//
// Load reports everything that can be known without a machine, misspelt
// operations and arguments included, as a *script.LoadError. What goes wrong later is
// an *script.Error, which has the place and the call stack, and wraps the operation's
// own error.
package starlark
