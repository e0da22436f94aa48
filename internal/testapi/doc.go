// Package testapi writes testapi.go of package attest: for each method of a lab,
// a machine and what else operations return, the form that a test calls. That form
// takes its context from the test and ends the test instead of returning an error.
//
// It reads the source and does not import package attest, so it works when
// testapi.go does not compile. Methods of the test types that are written by hand are
// left alone.
package testapi
