package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The rules of the repository that the compiler does not know. The picture
// behind the first one is in docs/ARCHITECTURE.md.

// imports says which packages of this module each package imports. Imports go
// down only; the four at the bottom (roles, coord, codestation, notify) never
// import each other, nor do the roles. Whoever adds an edge adds it here, and
// has to explain it.
var imports = map[string][]string{
	"cmd/uac": {
		"codestation/durable", "codestation/mount", "config", "coord", "roles", "roles/agent", "roles/controller", "roles/controller/api", "roles/relay", "roles/watch",
		"roles/wire", "roles/wire/lifeline", "roles/wire/pki",
	},

	"config": {"codestation/mount", "coord", "roles"},

	"roles/controller": {"codestation/mount", "coord", "roles", "roles/controller/api", "roles/wire", "roles/wire/pki"},
	"roles/agent":      {"codestation/durable", "roles/wire"},
	"roles/relay":      {"roles/wire", "roles/wire/pki"},
	"roles/watch":      {"coord"},

	"roles/controller/api": {"roles", "roles/wire/pki"},
	"roles/wire":           {"roles/wire/lifeline", "roles/wire/pki"},
	"roles/wire/lifeline":  {},
	"roles/wire/pki":       {"codestation/durable", "roles"},

	"roles": {},
	"coord": {"codestation/durable"},

	"codestation/durable": {},
	"codestation/mount":   {},

	// For tests only.
	"coord/coordtest":              {"coord"},
	"roles/controller/api/apitest": {"roles", "roles/controller/api"},
	"roles/wire/wiretest":          {},
	"roles/faulttest":              {"codestation/durable"},
}

// fences keep a technology in one place. The paths are prefixes.
var fences = []struct {
	path string
	only []string
	why  string
}{
	{"go.etcd.io/", []string{"coord"}, "coord alone knows how the cluster agrees"},
	{"github.com/spf13/viper", []string{"config"}, "viper lower-cases keys: it is for settings of daemons only"},
	{"github.com/go-viper/", []string{"config"}, "it belongs to viper"},
	{"github.com/spf13/cobra", []string{"cmd/uac"}, "only the program has a command line"},
	{"github.com/spf13/pflag", []string{"cmd/uac"}, "only the program has a command line"},
	{"github.com/lmittmann/tint", []string{"cmd/uac"}, "only the program knows its terminal"},
	{"net/smtp", []string{"notify/email"}, "one folder per channel"},
	{"github.com/emersion/", []string{"notify/email"}, "one folder per channel"},
	{"github.com/wneessen/", []string{"notify/email"}, "one folder per channel"},
	{"github.com/gosnmp/", []string{"notify/snmp"}, "one folder per channel"},
	{"github.com/hanwen/go-fuse", []string{"codestation/mount"}, "only its tests make file systems"},
	{"github.com/danielgtaylor/huma", []string{"roles/controller/api"}, "the API's framework stays in the API"},
}

// maxLines is the size of a file above which somebody should split it.
const maxLines = 800

// goPackage is what go list says about a package.
type goPackage struct {
	ImportPath   string
	Dir          string
	GoFiles      []string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

const module = "uac"

// name returns the package's path inside the module.
func (p *goPackage) name() string { return strings.TrimPrefix(p.ImportPath, module+"/") }

// inside returns which of the paths are of this module, without its name.
func inside(paths []string) []string {
	var out []string
	for _, p := range paths {
		if name, ok := strings.CutPrefix(p, module+"/"); ok {
			out = append(out, name)
		}
	}
	return out
}

// forTests reports whether a package exists only for tests.
func forTests(name string) bool { return strings.HasSuffix(name, "test") }

// root returns the directory of the module.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func listPackages(t *testing.T) []*goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Dir,GoFiles,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			t.Fatalf("%v: %s", err, ee.Stderr)
		}
		t.Fatal(err)
	}
	var packages []*goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(goPackage)
		switch err := dec.Decode(p); {
		case errors.Is(err, io.EOF):
			return packages
		case err != nil:
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

func TestImportTable(t *testing.T) {
	found := map[string][]string{}
	for _, p := range listPackages(t) {
		name := p.name()
		found[name] = inside(p.Imports)
		row, listed := imports[name]
		if !listed {
			t.Errorf("package %s is not in the table of imports", name)
			continue
		}
		for _, other := range found[name] {
			if !slices.Contains(row, other) {
				t.Errorf("%s imports %s, which the table does not allow", name, other)
			}
			if forTests(other) && !forTests(name) {
				t.Errorf("%s imports %s outside tests", name, other)
			}
		}
		for _, other := range inside(slices.Concat(p.TestImports, p.XTestImports)) {
			if other != name && !forTests(other) && !reaches(name, other) {
				t.Errorf("the tests of %s import %s, which is not below it", name, other)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(imports)) {
		if _, exists := found[name]; !exists {
			t.Errorf("the table lists package %s, which does not exist", name)
			continue
		}
		for _, other := range imports[name] {
			if !slices.Contains(found[name], other) {
				t.Errorf("the table lets %s import %s, which it does not", name, other)
			}
		}
	}
}

// reaches reports whether the table leads from one package down to another.
func reaches(from, to string) bool {
	return slices.ContainsFunc(imports[from], func(next string) bool { return next == to || reaches(next, to) })
}

// The table itself must not lead astray: a mistake in it would allow one in the
// code.
func TestImportTableHasLayers(t *testing.T) {
	bottom := []string{"roles", "coord", "codestation", "notify"}
	sides := []string{"roles/controller", "roles/agent", "roles/relay", "roles/watch"}
	for name, row := range imports {
		if reaches(name, name) {
			t.Errorf("%s imports itself in a circle", name)
		}
		for _, other := range row {
			for _, group := range [][]string{bottom, sides} {
				if slices.Contains(group, name) && slices.Contains(group, other) {
					t.Errorf("%s and %s are siblings and must not know each other", name, other)
				}
			}
		}
	}
	for _, leaf := range []string{"codestation/durable", "codestation/mount"} {
		if row := imports[leaf]; len(row) != 0 {
			t.Errorf("%s is a leaf, but imports %v", leaf, row)
		}
	}
}

func TestFences(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, path := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			for _, f := range fences {
				within := func(only string) bool { return p.name() == only || strings.HasPrefix(p.name(), only+"/") }
				if strings.HasPrefix(path, f.path) && !slices.ContainsFunc(f.only, within) {
					t.Errorf("%s imports %s: only %s may, because %s", p.name(), path, strings.Join(f.only, ", "), f.why)
				}
			}
		}
	}
}

// Every package says once what it is, where one looks for it: in doc.go, or in
// the file that is called like the package.
func TestPackageComments(t *testing.T) {
	for _, p := range listPackages(t) {
		var with []string
		for _, file := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, file), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Error(err)
				continue
			}
			if f.Doc != nil {
				with = append(with, file)
			}
		}
		if len(with) != 1 || with[0] != "doc.go" && with[0] != path.Base(p.name())+".go" {
			t.Errorf("%s: the package comment belongs into doc.go and nowhere else; it is in %v", p.name(), with)
		}
	}
}

// trackedFiles returns the files of the repository, ignored ones left out.
func trackedFiles(t *testing.T) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("NOT CHECKED: this is not a git checkout: %v", err)
	}
	return strings.FieldsFunc(string(out), func(r rune) bool { return r == 0 })
}

// The repository stands alone: it refers to nothing beside it, and to nobody's
// way of working.
func TestNoStrangeReferences(t *testing.T) {
	// Put together from parts, or this file would be the first to be found.
	banned := regexp.MustCompile(strings.Join([]string{
		`\.\./` + `shared\b`,
		`(?m)(^|[^\w./-])/` + `work/`,
		`\bDESIGN ` + `section`,
		`\bseed ` + `0\d\d\b`,
		`\bstyle-` + `anchors\b`,
		`\bprotocol-` + `model\b`,
		`\bPLAN` + `\.md\b`,
	}, "|"))
	for _, name := range trackedFiles(t) {
		data, err := os.ReadFile(filepath.Join(root(t), name))
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted, but not yet in the index
		}
		if err != nil {
			t.Error(err)
			continue
		}
		if bytes.IndexByte(data, 0) >= 0 {
			continue // not text
		}
		for i, line := range strings.Split(string(data), "\n") {
			if word := banned.FindString(line); word != "" {
				t.Errorf("%s:%d: must not mention %q", name, i+1, strings.TrimSpace(word))
			}
		}
		if strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, ".pb.go") {
			if lines := bytes.Count(data, []byte("\n")); lines > maxLines {
				t.Logf("WARNING: %s has %d lines; more than %d is hard to read", name, lines, maxLines)
			}
		}
	}
}

// Tests wait for what they wait for. They sleep only where sleeping is free and
// exact: in a synctest bubble. The fault harness times real processes.
func TestNoSleepingTests(t *testing.T) {
	for _, name := range trackedFiles(t) {
		if !strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "roles/faulttest/") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(root(t), name))
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted, but not yet in the index
		}
		if err != nil {
			t.Error(err)
			continue
		}
		sleeps := bytes.Contains(data, []byte("time."+"Sleep("))
		if sleeps && !bytes.Contains(data, []byte(`"testing/`+`synctest"`)) {
			t.Errorf("%s sleeps: wait for a signal, or use testing/synctest", name)
		}
	}
}

// The rules find what they are made to find.
func TestRulesBite(t *testing.T) {
	if !reaches("cmd/uac", "roles") || reaches("roles", "cmd/uac") {
		t.Error("reaches does not follow the table")
	}
	if !forTests("coord/coordtest") || forTests("coord") {
		t.Error("forTests does not know test packages")
	}
	if got := fmt.Sprint(inside([]string{"fmt", "uac/roles", "go.etcd.io/x"})); got != "[roles]" {
		t.Errorf("inside: %s", got)
	}
}
