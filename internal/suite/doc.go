// Package suite runs test files: what to run, in which order, and how it ended.
//
// All files are loaded and checked before anything boots: one that makes no
// sense ends the run with nothing started, so that a misspelt name at the end
// of the last file does not cost the time of all the others. Then each file
// gets a lab of its own; its setup() runs once and its tests follow, one after
// the other. When setup fails, the file's tests are skipped. When a test
// fails, the later ones run all the same.
//
// # How a run ends
//
// A run has one status, the first of these that any part of it has, and with it
// an exit code:
//
//	interrupted           130  somebody stopped it
//	invalid, unsupported    2  a file, the usage or a configuration is to be mended
//	failed                  1  a test's claim did not hold, or the time was over
//	boot_failed, infra      3  a guest did not come up, the host is broken
//	passed                  0
//
// So a run in which tests failed says so even if another guest did not boot:
// 3 means that no test had anything to complain about.
package suite
