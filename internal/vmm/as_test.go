package vmm

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"testing"
)

// able is a VM with two optional interfaces.
type able struct{ VM }

func (able) Crash(context.Context) error                 { return nil }
func (able) SetLink(context.Context, string, bool) error { return nil }

// hiding is one of which one is hidden.
type hiding struct{ able }

func (h hiding) Whole() VM                  { return h.able }
func (hiding) Hides(what reflect.Type) bool { return what == reflect.TypeFor[Crasher]() }

func TestAs(t *testing.T) {
	for _, tt := range []struct {
		vm           VM
		crash, links bool
	}{{able{}, true, true}, {hiding{}, false, true}} {
		crasher, crash := As[Crasher](tt.vm)
		if _, links := As[LinkSetter](tt.vm); crash != tt.crash || links != tt.links || crash != (crasher != nil) {
			t.Errorf("%T: it can crash: %v, has links: %v", tt.vm, crash, links)
		}
		if _, ok := As[Pauser](tt.vm); ok {
			t.Errorf("%T can pause", tt.vm)
		}
	}
}

// What runs machines asks by As: a type assertion would find what is hidden.
func TestNobodyAsserts(t *testing.T) {
	files, err := filepath.Glob("../../*.go")
	if err != nil || len(files) < 50 {
		t.Fatalf("the root package has %d files (%v)", len(files), err)
	}
	assertion := regexp.MustCompile(`\.vm\.\(vmm\.\w+\)`)
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range assertion.FindAllString(string(text), -1) {
			t.Errorf("%s has %s; write vmm.As", path, found)
		}
	}
}
