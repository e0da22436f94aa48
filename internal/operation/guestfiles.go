package operation

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/attest-vm/attest"
)

// fileFields are what a file of a guest can have.
var fileFields = []string{"content", "mode", "path"}

// FilesOf reads files of a guest, as debian(files=) and machine(files=) have them: a
// dict of paths in the guest, with a content or a dict of fileFields for each. What is
// not known yet is left out. An error begins with the path that it is about: ["/etc/x"].
func FilesOf(v any) (map[string]attest.File, error) {
	dict, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf(" must be %s, not %s", Files.phrase(), Describe(v))
	}
	out := map[string]attest.File{}
	for path, v := range dict {
		if v == Unknown {
			continue
		}
		f, err := fileOf(v)
		if err != nil {
			return nil, fmt.Errorf("[%q]: %w", path, err)
		}
		out[path] = f
	}
	return out, nil
}

// filesOf is FilesOf for convert.
func filesOf(v any) (any, error) {
	if _, ok := v.(map[string]any); !ok {
		return nil, nil
	}
	files, err := FilesOf(v)
	if err != nil {
		return nil, err
	}
	return files, nil
}

func fileOf(v any) (f attest.File, err error) {
	switch v := v.(type) {
	case string:
		return attest.File{Content: v}, nil
	case []byte:
		return attest.File{Content: string(v)}, nil
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			if err := setFileField(&f, name, v[name]); err != nil {
				return f, err
			}
		}
		return f, nil
	}
	return f, fmt.Errorf("want a string, or a dict or struct with %s; not %s", fileFieldList, Describe(v))
}

var fileFieldList = strings.Join(fileFields[:len(fileFields)-1], ", ") + " and " + fileFields[len(fileFields)-1]

func setFileField(f *attest.File, name string, v any) error {
	if v == Unknown {
		return nil
	}
	switch name {
	case "content":
		file, err := fileOf(v)
		if _, dict := v.(map[string]any); dict || err != nil {
			return fmt.Errorf("content must be a string, not %s", Describe(v))
		}
		f.Content = file.Content
		return nil
	case "path", "source": // an older name
		path, ok := v.(string)
		if !ok {
			return fmt.Errorf("%s must be a string, not %s", name, Describe(v))
		}
		f.Path = path
		return nil
	case "mode":
		var err error
		f.Mode, err = fileMode(v)
		return err
	}
	return fmt.Errorf("there is no field %q; the fields are %s%s", name, fileFieldList, DidYouMean(name, fileFields))
}

// fileMode reads 0o755, or "0755" as chmod does.
func fileMode(v any) (uint32, error) {
	var mode uint64
	switch v := v.(type) {
	case int64:
		mode = uint64(v)
	case string:
		mode, _ = strconv.ParseUint(v, 8, 32)
	}
	if mode == 0 || mode > 0o7777 {
		return 0, fmt.Errorf("mode must be permission bits such as 0o755 or \"0755\", not %s", Describe(v))
	}
	return uint32(mode), nil
}

// Relative is an argument for a parameter with paths of the host, with each of them as
// relative makes it.
func (p Param) Relative(v any, relative func(string) string) any {
	if path, ok := v.(string); ok && (p.Type == String || p.Type == Kernel && !strings.HasPrefix(path, "debian:")) {
		return relative(path)
	}
	dict, ok := v.(map[string]any)
	if !ok {
		return v
	}
	out := maps.Clone(dict)
	for target, v := range dict {
		switch file, isFile := v.(map[string]any); {
		case p.Type == Paths:
			out[target] = relativePath(v, relative)
		case p.Type == Files && isFile:
			file = maps.Clone(file)
			for _, name := range []string{"path", "source"} {
				if _, ok := file[name]; ok {
					file[name] = relativePath(file[name], relative)
				}
			}
			out[target] = file
		}
	}
	return out
}

func relativePath(v any, relative func(string) string) any {
	path, ok := v.(string)
	if !ok || path == "" {
		return v
	}
	// Absolute: these files are looked at by somebody who knows another directory.
	path = relative(path)
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	return path
}
