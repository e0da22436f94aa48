package docs

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The files of the root package use declarations of their own floor and of those below.
// The arrows that climb are those that the page admits.
func TestRootFloors(t *testing.T) {
	floors, admitted := rootFloors(t)
	fset, files, info := checkRoot(t)
	name := func(p token.Pos) string {
		return strings.TrimSuffix(filepath.Base(fset.Position(p).Filename), ".go")
	}
	climbs := map[string][]string{}
	for _, f := range files {
		from := name(f.Pos())
		if floors[from] == 0 {
			t.Errorf("docs/architecture.md gives %s.go no floor", from)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			id, ok := n.(*ast.Ident)
			if !ok || info.Uses[id] == nil || !info.Uses[id].Pos().IsValid() || !declared(info.Uses[id]) {
				return true
			}
			if to := name(info.Uses[id].Pos()); floors[to] > floors[from] {
				arrow := fmt.Sprintf("`%s` → `%s`", from, to)
				climbs[arrow] = append(climbs[arrow], id.Name)
			}
			return true
		})
	}
	for _, arrow := range slices.Sorted(maps.Keys(climbs)) {
		if !admitted[arrow] {
			uses := slices.Compact(slices.Sorted(slices.Values(climbs[arrow])))
			t.Errorf("%s climbs, by %s: move the declaration, or say why in docs/architecture.md", arrow, strings.Join(uses, ", "))
		}
		delete(admitted, arrow)
	}
	for arrow := range admitted {
		t.Errorf("docs/architecture.md says that %s climbs; it does not", arrow)
	}
	if want := 5; len(climbs) > want {
		t.Errorf("%d arrows climb, want at most %d", len(climbs), want)
	}
	for file := range floors {
		if _, err := os.Stat(filepath.Join(root, file+".go")); err != nil {
			t.Errorf("docs/architecture.md gives a floor to %s.go: %v", file, err)
		}
	}
}

// declared reports whether o is a declaration of the package: of a file, not of a
// function or a type.
func declared(o types.Object) bool {
	if o.Pkg() == nil {
		return false
	}
	if f, ok := o.(*types.Func); ok && f.Signature().Recv() != nil {
		return o.Pkg().Path() == module
	}
	return o.Parent() == o.Pkg().Scope() && o.Pkg().Path() == module
}

var (
	floorRow  = regexp.MustCompile(`^\| (\d) \|(.*)\|$`)
	inQuotes  = regexp.MustCompile("`([a-z0-9]+)`")
	pageArrow = regexp.MustCompile("((?:`[a-z0-9]+`(?:, | and ))*`[a-z0-9]+`) → `([a-z0-9]+)`")
)

// rootFloors reads the table of the root package, and the arrows that it admits.
func rootFloors(t *testing.T) (floors map[string]int, admitted map[string]bool) {
	_, text, found := strings.Cut(read(t, "docs/architecture.md"), "\n| floor | files of the root package |\n")
	text, _, ended := strings.Cut(text, "\n## ")
	if !found || !ended {
		t.Fatal("docs/architecture.md has no table of the root package's files")
	}
	floors, admitted = map[string]int{}, map[string]bool{}
	for line := range strings.Lines(text) {
		if row := floorRow.FindStringSubmatch(strings.TrimSpace(line)); row != nil {
			for _, file := range inQuotes.FindAllStringSubmatch(row[2], -1) {
				if floors[file[1]] != 0 {
					t.Errorf("docs/architecture.md gives %s.go two floors", file[1])
				}
				floors[file[1]] = int(row[1][0] - '0')
			}
		}
		for _, arrow := range pageArrow.FindAllStringSubmatch(line, -1) {
			for _, from := range inQuotes.FindAllStringSubmatch(arrow[1], -1) {
				admitted[fmt.Sprintf("`%s` → `%s`", from[1], arrow[2])] = true
			}
		}
	}
	return floors, admitted
}

// checkRoot checks the types of the root package, whose imports the go command has compiled.
func checkRoot(t *testing.T) (*token.FileSet, []*ast.File, *types.Info) {
	list := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}}\t{{.Export}}", ".")
	list.Dir = root
	// As everything but the race detector is built: so nothing is compiled for this alone.
	list.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	list.Stderr = &stderr
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	exports := map[string]string{}
	for line := range strings.Lines(string(out)) {
		path, export, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		exports[path] = export
	}
	fset := token.NewFileSet()
	var parsed []*ast.File
	for _, name := range files(t, func(name string) bool { return product(name) && !strings.Contains(name, "/") }) {
		f, err := parser.ParseFile(fset, filepath.Join(root, name), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, f)
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	conf := types.Config{Importer: importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })}
	if _, err := conf.Check(module, fset, parsed, info); err != nil {
		t.Fatal(err)
	}
	return fset, parsed, info
}
