package python

import (
	"embed"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/operation"
)

//go:embed stubs/*.pyi
var stubFiles embed.FS

// Stubs are the types of the package test_driver (PEP 561), as files by their names below it. The
// methods are those of the table of operations; what Python alone has is in stubs.
func Stubs() (map[string]string, error) {
	files := map[string]string{"py.typed": "", "__init__.pyi": ""}
	err := fs.WalkDir(stubFiles, "stubs", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := stubFiles.ReadFile(path)
		files[filepath.Base(path)] = string(text)
		return err
	})
	if err != nil {
		return nil, err
	}
	var kinds strings.Builder
	for _, on := range operation.Kinds() {
		if on == operation.Machine || on == operation.Lab {
			continue
		}
		own := ""
		if on == operation.Network { // a file that declares machines calls it for the services of networks
			own = "    def __call__(self, number: int, dhcp: bool = True, dns: bool = True, ra: bool = True) -> None: ...\n"
		}
		fmt.Fprintf(&kinds, "class %s:\n%s%s\n", className(on), own, methods(on, ""))
	}
	files["machine.pyi"] = strings.NewReplacer(
		"# machine operations\n", methods(operation.Machine, files["machine.pyi"]),
		"# other kinds\n", kinds.String(),
	).Replace(files["machine.pyi"])
	files["driver.pyi"] = strings.Replace(files["driver.pyi"], "# lab operations\n", methods(operation.Lab, ""), 1)
	files["symbols.pyi"] = symbolTypes()
	return files, nil
}

// WriteStubs writes the package test_driver, types only, into a directory that may exist.
func WriteStubs(dir string) error {
	files, err := Stubs()
	if err != nil {
		return err
	}
	dir = filepath.Join(dir, "test_driver")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Symbols are all names that a test script finds, but for its machines and networks.
func Symbols() []string {
	known := slices.Concat(symbols, operation.Names(operation.Lab))
	for _, on := range operation.Kinds() {
		if g := on.Global(); g != "" {
			known = append(known, g)
		}
	}
	slices.Sort(known)
	return slices.Compact(known)
}

// className is a kind of object as a Python class.
func className(on operation.On) string {
	name := on.String()
	return strings.ToUpper(name[:1]) + name[1:]
}

// methods are the operations of a kind, but for those that the class has a form of its own of.
func methods(on operation.On, own string) string {
	var b strings.Builder
	for _, o := range operation.All(on) {
		for _, name := range append([]string{o.Name}, o.Aliases...) {
			if !strings.Contains(own, "def "+name+"(") {
				b.WriteString(method(o, name))
			}
		}
	}
	return b.String()
}

// method is an operation as a method of a class.
func method(o *operation.Operation, name string) string {
	if o.Property {
		return fmt.Sprintf("    @property\n    def %s(self) -> %s: ...\n", name, resultType(o.Result))
	}
	parts := []string{"self"}
	named := false
	for _, p := range o.Params {
		if p.Variadic {
			parts = append(parts, "*"+p.Name+": str")
			named = true
			continue
		}
		if p.Named && !named {
			parts = append(parts, "*")
			named = true
		}
		parts = append(parts, parameter(p))
	}
	return fmt.Sprintf("    def %s(%s) -> %s: ...\n", name, strings.Join(parts, ", "), resultType(o.Result))
}

func parameter(p operation.Param) string {
	text := p.Name + ": " + parameterType(p.Type)
	if p.Default == nil {
		return text
	}
	if p.Default == operation.Absent || p.Nullable {
		text += " | None"
	}
	return text + " = " + literal(p.Default)
}

// literal is a default value where it is short, as hovering editors show it.
func literal(v any) string {
	switch v := v.(type) {
	case bool:
		if v {
			return "True"
		}
		return "False"
	case int:
		return fmt.Sprint(v)
	case string:
		return fmt.Sprintf("%q", v)
	case time.Duration:
		return fmt.Sprint(v.Seconds())
	}
	if v == operation.Absent {
		return "None"
	}
	return "..."
}

// parameterTypes are those of the table as Python's. Function takes what the operation says.
var parameterTypes = map[operation.Type]string{
	operation.String: "str", operation.Bytes: "str | bytes", operation.Bool: "bool", operation.Int: "int", operation.Float: "float",
	operation.Duration: "Duration", operation.Strings: "str | Sequence[str]", operation.Dict: "Mapping[str, str]", operation.Ints: "Sequence[int]",
	operation.Image: "Any", operation.Machines: "BaseMachine | Sequence[BaseMachine]", operation.Function: "Callable[..., Any]",
	operation.Filter: "str | Mapping[str, Any] | Callable[..., Any]", operation.AnyDict: "Mapping[str, Any]", "machine": "BaseMachine",
}

func parameterType(t operation.Type) string {
	if text, ok := parameterTypes[t]; ok {
		return text
	}
	if inner, ok := strings.CutPrefix(string(t), "list of "); ok {
		return "Sequence[" + plural(inner) + "]"
	}
	if on, ok := t.On(); ok {
		return className(on)
	}
	return "Any"
}

var resultTypes = map[operation.Type]string{
	operation.None: "None", operation.String: "str", operation.Bool: "bool", operation.Int: "int", operation.Float: "float", operation.Bytes: "bytes",
	operation.Pair: "Result", operation.List: "list[str]", operation.Dict: "dict[str, str]", operation.AnyDict: "dict[str, Any]", "machine": "QemuMachine",
}

func resultType(t operation.Type) string {
	if text, ok := resultTypes[t]; ok {
		return text
	}
	if inner, ok := strings.CutPrefix(string(t), "list of "); ok {
		return "list[" + plural(inner) + "]"
	}
	if on, ok := t.On(); ok {
		return className(on)
	}
	return "Any"
}

// plural is the type of the elements of a list: "jobs".
func plural(name string) string {
	if name == "machines" {
		return "QemuMachine"
	}
	if on, ok := operation.Type(strings.TrimSuffix(name, "s")).On(); ok {
		return className(on)
	}
	if name == "strings" {
		return "str"
	}
	return "Any"
}

// symbolTypes are the names that a script finds, with their types: a module that nothing
// imports, from which a type checker of attest's takes them.
func symbolTypes() string {
	types := map[string]string{
		"start_all": "Callable[[], None]", "join_all": "Callable[[], None]", "test_script": "Callable[[], None]", "run_tests": "Callable[[], None]",
		"serial_stdout_off": "Callable[[], None]", "serial_stdout_on": "Callable[[], None]", "dump_machine_ssh": "Callable[[], None]",
		"machines": "list[QemuMachine]", "machines_qemu": "list[QemuMachine]", "machines_nspawn": "list[NspawnMachine]", "vlans": "list[VLan]",
		"driver": "Driver", "log": "AbstractLogger", "lab": "Lab", "t": "TestCase", "debug": "DebugAbstract",
	}
	var b strings.Builder
	b.WriteString("from typing import Any as Any, Callable as Callable\nfrom unittest import TestCase\nimport os as os\nfrom test_driver.debug import DebugAbstract as DebugAbstract\n" +
		"from test_driver.driver import Driver as Driver, Lab as Lab\nfrom test_driver.logger import AbstractLogger as AbstractLogger\nfrom test_driver.vlan import VLan as VLan\n" +
		"from test_driver.machine import *\nfrom test_driver.machine import retry as retry\nfrom test_driver.polling_condition import polling_condition as polling_condition\n\n_lab: Lab\n")
	for _, name := range slices.Sorted(maps.Keys(types)) {
		fmt.Fprintf(&b, "%s: %s\n", name, types[name])
	}
	for _, on := range operation.Kinds() {
		if g := on.Global(); g != "" {
			fmt.Fprintf(&b, "%s: %s\n", g, className(on))
		}
	}
	for _, o := range operation.All(operation.Lab) {
		for _, name := range append([]string{o.Name}, o.Aliases...) {
			if types[name] == "" && name != "polling_condition" && name != "subtest" && name != "create_machine" {
				b.WriteString(strings.Replace(strings.TrimPrefix(method(o, name), "    "), "(self, ", "(", 1))
			}
		}
	}
	b.WriteString("def subtest(name: str) -> Any: ...\ndef create_machine(start_command: str | None = None, *, name: str | None = None, keep_machine_state: bool = False, **more: Any) -> QemuMachine: ...\n")
	return strings.ReplaceAll(b.String(), "(self)", "()")
}
