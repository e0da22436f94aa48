package operation

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
)

// An ImageFunction is debian(…), rootfs(…) or disk(…) of a test file: the arguments,
// and what they make. The table of these functions feeds the front ends, as Fields
// does. In JSON, an image is an object with the name of a function as its key.
type ImageFunction struct {
	*Operation
	zero   attest.Image
	fields []string // of the image, by the index of the parameter that sets it
}

// An imageArgument is an argument of such a function: name, type, and the field of
// the image.
type imageArgument struct {
	name  string
	typ   Type
	field string
}

var (
	kernelArguments = []imageArgument{
		{"kernel", Kernel, "Kernel"}, {"modules", String, "Modules"}, {"initrd", String, "Initrd"}, {"cmdline", String, "Cmdline"},
	}
	rootArguments = []imageArgument{{"root", String, "Root"}, {"root_size", Size, "RootSize"}}
	titleArgument = []imageArgument{{"title", String, "Title"}}
)

// imagePaths are the arguments with paths of the host.
var imagePaths = []string{"path", "files", "kernel", "modules", "initrd"}

// ImageFunctions are all functions that make an image.
var ImageFunctions = []ImageFunction{
	imageFunction("debian", attest.Debian{}, slices.Concat([]imageArgument{
		{"suite", String, "Suite"}, {"packages", List, "Packages"}, {"files", Files, "Files"}, {"run", List, "Run"},
	}, kernelArguments, rootArguments, titleArgument)),
	imageFunction("rootfs", attest.Rootfs{}, slices.Concat([]imageArgument{{"path", String, "Path"}}, kernelArguments, rootArguments, titleArgument)),
	imageFunction("disk", attest.Disk{}, slices.Concat([]imageArgument{
		{"path", String, "Path"}, {"format", String, "Format"},
		{"size", Size, "Size"}, {"serial", String, "Serial"}, {"bus", String, "Bus"}, {"read_only", Bool, "ReadOnly"}, {"shared", String, "Shared"},
		{"boot", String, "Boot"}, {"user", String, "User"}, {"password", String, "Password"},
	}, kernelArguments, titleArgument)),
}

func imageFunction(name string, zero attest.Image, arguments []imageArgument) ImageFunction {
	f := ImageFunction{Operation: &Operation{Name: name, On: Lab, Result: Image, Doc: "Makes an image. Its arguments are described in docs/machines.md."}, zero: zero}
	for _, a := range arguments {
		p := Param{Name: a.name, Type: a.typ, Default: Absent, Path: slices.Contains(imagePaths, a.name)}
		if a.name == "path" && name == "rootfs" {
			p.Default = nil
		}
		if a.name == "root" {
			p.Check = checkRoot
		}
		f.Params, f.fields = append(f.Params, p), append(f.fields, a.field)
	}
	return f
}

// Make is the image that arguments describe. A disk without a path is not an image that
// a machine boots, and can only be one beside a root.
func (f ImageFunction) Make(a Args) (attest.Image, error) {
	v := reflect.New(reflect.TypeOf(f.zero)).Elem()
	for i, p := range f.Params {
		if a.Given(p.Name) {
			v.FieldByName(f.fields[i]).Set(reflect.ValueOf(a.values[p.Name]))
		}
	}
	img := v.Interface().(attest.Image)
	if d, ok := img.(attest.Disk); ok && d.Path == "" {
		if d.Size == 0 {
			return nil, &ArgumentError{f.Name, "want a path, or the size of an empty disk"}
		}
		return img, nil
	}
	if err := access.Spec(img).Check(); err != nil {
		return nil, &ArgumentError{f.Name, err.Error()}
	}
	return img, nil
}

// ImageOf is the image of a value from JSON, with values as Bind takes them: an object
// whose key is the name of an ImageFunction, with an object of arguments. A title may be
// beside it. An empty object is Debian's base image.
func ImageOf(v any) (attest.Image, error) {
	object, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("must be %s, not %s", Image.phrase(), Describe(v))
	}
	arguments, function := map[string]any{}, ImageFunctions[0]
	given := ""
	for _, key := range slices.Sorted(maps.Keys(object)) {
		if key == "title" {
			continue
		}
		i := slices.IndexFunc(ImageFunctions, func(f ImageFunction) bool { return f.Name == key })
		switch {
		case i < 0:
			return nil, fmt.Errorf("there is no kind of image %q%s", key, DidYouMean(key, imageKinds()))
		case given != "":
			return nil, fmt.Errorf("both %s and %s; an image is one of %s", given, key, strings.Join(imageKinds(), ", "))
		}
		given, function = key, ImageFunctions[i]
		if arguments, ok = object[key].(map[string]any); !ok {
			return nil, fmt.Errorf("%s must be an object with its arguments, not %s", key, Describe(object[key]))
		}
	}
	var named []Named
	for _, key := range slices.Sorted(maps.Keys(arguments)) {
		named = append(named, Named{key, arguments[key]})
	}
	if title, ok := object["title"]; ok {
		named = append(named, Named{"title", title})
	}
	a, err := function.Bind(nil, named)
	if err != nil {
		return nil, err
	}
	return function.Make(a)
}

// ImageOfJSON is ImageOf of a text.
func ImageOfJSON(text []byte) (attest.Image, error) {
	v, err := valueOf(text)
	if err != nil {
		return nil, err
	}
	return ImageOf(v)
}

// valueOf reads JSON as Bind takes values.
func valueOf(text []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	return withNumbers(v)
}

// withNumbers makes the numbers in a value from JSON those that Bind takes.
func withNumbers(v any) (any, error) {
	var err error
	switch v := v.(type) {
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return i, nil
		}
		return v.Float64()
	case []any:
		for i := range v {
			if v[i], err = withNumbers(v[i]); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		for key := range v {
			if v[key], err = withNumbers(v[key]); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

func imageKinds() (names []string) {
	for _, f := range ImageFunctions {
		names = append(names, f.Name)
	}
	return names
}
