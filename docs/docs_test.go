// Package docs has the tests that keep the pages true.
package docs

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	root   = ".."
	module = "github.com/attest-vm/attest"
)

// files are the paths below root, relative to it, that fit.
func files(t *testing.T, fits func(name string) bool) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		hidden := len(d.Name()) > 2 && strings.HasPrefix(d.Name(), ".")
		if d.IsDir() && (hidden || d.Name() == "testdata" || d.Name() == "out" || d.Name() == "bin") {
			return fs.SkipDir
		}
		name, err = filepath.Rel(root, name)
		if err == nil && !d.IsDir() && fits(name) {
			out = append(out, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// product is the code that users run.
func product(name string) bool {
	return strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") && !strings.HasPrefix(name, "test/") && !strings.HasPrefix(name, "examples/")
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

var (
	ownVariable = regexp.MustCompile(`\bATTEST_[A-Z_]+[A-Z]\b`)
	variable    = regexp.MustCompile(`os\.(?:Getenv|LookupEnv)\("(\w+)"\)`)
)

// TestEnvironmentIsComplete compares docs/environment.md with what the code reads
// and sets.
func TestEnvironmentIsComplete(t *testing.T) {
	page := read(t, "docs/environment.md")
	inCode := map[string]string{} // variable → a file that has it
	for _, name := range files(t, func(name string) bool { return product(name) || strings.HasSuffix(name, ".sh") }) {
		text := read(t, name)
		for _, v := range ownVariable.FindAllString(text, -1) {
			inCode[v] = name
		}
		for _, v := range variable.FindAllStringSubmatch(text, -1) {
			inCode[v[1]] = name
		}
	}
	if inCode["ATTEST_STATE_DIR"] == "" || inCode["machineConfig"] == "" {
		t.Fatalf("the search finds too little: %v", inCode)
	}
	for v, name := range inCode {
		if !strings.Contains(page, v) {
			t.Errorf("docs/environment.md lacks %s, which %s has", v, name)
		}
	}
	for _, v := range ownVariable.FindAllString(page, -1) {
		if inCode[v] == "" {
			t.Errorf("docs/environment.md has %s, which no code has", v)
		}
	}
}

func TestEveryPageIsListed(t *testing.T) {
	contents := read(t, "docs/README.md")
	for _, page := range files(t, func(name string) bool { return path.Dir(name) == "docs" && strings.HasSuffix(name, ".md") }) {
		if base := path.Base(page); base != "README.md" && !strings.Contains(contents, "]("+base+")") {
			t.Errorf("docs/README.md does not list %s", base)
		}
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	fence   = regexp.MustCompile("(?ms)^```.*?^```$")
	inline  = regexp.MustCompile("`[^`\n]*`")
	symbols = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors are those that a page's headings have on GitHub.
func anchors(page string) []string {
	var out []string
	for _, h := range heading.FindAllStringSubmatch(fence.ReplaceAllString(page, ""), -1) {
		out = append(out, strings.ReplaceAll(symbols.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-"))
	}
	return out
}

func TestLinksResolve(t *testing.T) {
	for _, name := range files(t, func(name string) bool { return strings.HasSuffix(name, ".md") }) {
		text := inline.ReplaceAllString(fence.ReplaceAllString(read(t, name), ""), "")
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			target = path.Join(path.Dir(name), target)
			if strings.HasPrefix(m[1], "#") {
				target = name
			}
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s links to %s, which does not exist", name, m[1])
			} else if anchor != "" && !slices.Contains(anchors(read(t, target)), anchor) {
				t.Errorf("%s links to %s; %s has %q", name, m[1], target, anchors(read(t, target)))
			}
		}
	}
}

// rows are the cells of the tables of a page with these first columns.
func rows(page string, columns ...string) [][]string {
	var out [][]string
	inside := false
	for line := range strings.Lines(page) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case !strings.HasPrefix(line, "|"):
			inside = false
		case len(cells) > len(columns) && slices.Equal(cells[:len(columns)], columns):
			inside = true
		case inside && !strings.HasPrefix(cells[0], "--"):
			out = append(out, cells)
		}
	}
	return out
}

var code = regexp.MustCompile("`([^`]+)`")

// TestWaysThroughTheCode looks for the functions that docs/architecture.md names.
func TestWaysThroughTheCode(t *testing.T) {
	steps := rows(read(t, "docs/architecture.md"), "file", "function")
	if len(steps) == 0 {
		t.Fatal("no tables of files and functions")
	}
	for _, cells := range steps {
		name := strings.Trim(cells[0], "`")
		have := functions(t, name)
		for _, f := range code.FindAllStringSubmatch(cells[1], -1) {
			if !slices.Contains(have, f[1]) {
				t.Errorf("%s has no function %s; it has %s", name, f[1], strings.Join(have, ", "))
			}
		}
	}
}

// functions are those of a file, methods as Type.Name.
func functions(t *testing.T, name string) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, name), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		full := f.Name.Name
		if f.Recv != nil {
			full = receiver(f.Recv.List[0].Type) + "." + full
		}
		out = append(out, full)
	}
	return out
}

func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return fmt.Sprintf("%T", e)
}

// TestFloors holds the packages to the floors of docs/architecture.md: a package
// imports only what is below it.
func TestFloors(t *testing.T) {
	floors := map[string]int{}
	for _, cells := range rows(read(t, "docs/architecture.md"), "floor", "package") {
		n, err := strconv.Atoi(cells[0])
		if err != nil {
			t.Fatalf("floor %q: %v", cells[0], err)
		}
		floors[strings.Trim(cells[1], "`")] = n
	}
	imports := map[string]map[string]bool{}
	for _, name := range files(t, product) {
		pkg := path.Dir(name)
		if imports[pkg] == nil {
			imports[pkg] = map[string]bool{}
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, bytes.NewReader([]byte(read(t, name))), parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range file.Imports {
			if p, _ := strconv.Unquote(i.Path.Value); p == module {
				imports[pkg]["."] = true
			} else if below, ours := strings.CutPrefix(p, module+"/"); ours {
				imports[pkg][below] = true
			}
		}
	}
	for _, pkg := range slices.Sorted(maps.Keys(imports)) {
		floor, known := floors[pkg]
		if !known {
			t.Errorf("package %s is on no floor of docs/architecture.md", pkg)
			continue
		}
		for p := range imports[pkg] {
			if floors[p] >= floor {
				t.Errorf("%s (floor %d) imports %s (floor %d)", pkg, floor, p, floors[p])
			}
		}
	}
	for pkg := range floors {
		if imports[pkg] == nil {
			t.Errorf("docs/architecture.md has package %s, which does not exist", pkg)
		}
	}
}
