// Package suite runs test files: what to run, in which order, and how it ended.
//
// All files are loaded and checked before anything boots: one that makes no
// sense ends the run with nothing started, so that a misspelt name at the end
// of the last file does not cost the time of all the others.
//
// # How a file runs
//
// setup() runs once, in a lab of its own, and a snapshot is taken of what it
// left. Each test goes on from there in a fork: a lab of its own, which no other
// test sees. So tests run in any order, which the run's seed gives, and several
// at once. A file without setup begins with machines that are off. main(), and a
// test that is alone, run in the lab in which setup ran, since there is nothing to
// keep apart.
//
// Where a lab cannot be saved setup runs again for each test: the same, but slow.
//
// With Options.Boot "both" all that happens twice, with machines that boot and
// with machines that start warm, and each test is reported for either.
//
// When setup fails, the file's tests are skipped. When a test fails, the others
// run all the same. As many labs work at once as the run may and the host has
// room for, over all files; see admission.
//
// # How a run ends
//
// A run has one status, the worst that any part of it has (event.Worst), and
// with it an exit code:
//
//	interrupted          130  somebody stopped it
//	invalid                2  a file, the usage or a configuration is to be mended
//	failed                 1  a test's claim did not hold, or the time was over while it waited
//	boot_failed, infra     3  a guest did not come up, the host is broken
//	unsupported            4  this backend or host cannot do what a test needs
//	passed                 0
//
// So a run in which tests failed says so even if another guest did not boot:
// 3 means that no test had anything to complain about, and 4 that nothing is
// wrong but what the host or the backend lacks.
//
// When the run's time is over, a guest that was still booting has not booted
// (boot_failed), and what happened before the tests, such as the build of an
// image, is infra. Tests that did not run any more are skipped.
package suite
