package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"uac/roles/wire/pki"
)

// uacPKI runs uac pki in the current directory.
func uacPKI(t *testing.T, args ...string) result {
	t.Helper()
	return execute(t, nil, nil, append([]string{"pki"}, args...)...)
}

// mustPKI is uacPKI for what must succeed.
func mustPKI(t *testing.T, args ...string) result {
	t.Helper()
	r := uacPKI(t, args...)
	if r.code != exitDone {
		t.Fatalf("uac pki %s: exit code %d, %s", strings.Join(args, " "), r.code, r.stderr)
	}
	return r
}

func decodeJSON[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

// filesBelow returns the content of all files below the current directory.
func filesBelow(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files[path] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestPKI(t *testing.T) {
	t.Chdir(t.TempDir())

	created := decodeJSON[map[string]string](t, mustPKI(t, "init", "--cluster", "prod", "-o", "json").stdout)
	root, err := pki.Show("pki/root/root.crt", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"cluster": "prod", "dir": "pki", "root_dir": "pki/root", "root_fingerprint": root[0].Fingerprint,
		"admin_token_file": "pki/admin.token",
	}
	if diff := cmp.Diff(want, created); diff != "" {
		t.Errorf("init (-want +got):\n%s", diff)
	}

	text := mustPKI(t, "issue", "--role", "controller", "--name", "c1", "--host", "c1.example.com,10.0.0.1").stdout
	if !strings.HasPrefix(text, "issued controller c1 of cluster prod in c1\n") || !strings.Contains(text, "10.0.0.1") {
		t.Errorf("issue says:\n%s", text)
	}
	mustPKI(t, "issue", "--role", "agent", "--name", "web1.example.com", "--days", "7", "somewhere/web1")
	for dir, id := range map[string]string{"c1": "uac://prod/controller/c1", "somewhere/web1": "uac://prod/agent/web1.example.com"} {
		s, err := pki.Load(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		if s.Identity().String() != id {
			t.Errorf("%s: %s, want %s", dir, s.Identity(), id)
		}
	}

	shown := decodeJSON[[]pki.Info](t, mustPKI(t, "show", "-o", "json", "c1", "somewhere/web1/node.crt").stdout)
	var days []int
	for _, info := range shown {
		if !info.IsCA {
			days = append(days, info.DaysLeft)
		}
	}
	if diff := cmp.Diff([]int{89, 89, 89, 6}, days); diff != "" { // whole days, a moment after the issue
		t.Errorf("days left (-want +got):\n%s", diff)
	}

	before := filesBelow(t)
	r := mustPKI(t, "renew", "-o", "json", "--dir", "c1")
	if strings.TrimSpace(r.stdout) != "[]" || !strings.Contains(r.stderr, "nothing is due") {
		t.Errorf("renewal of what is not due: %q, %q", r.stdout, r.stderr)
	}
	if diff := cmp.Diff(before, filesBelow(t)); diff != "" {
		t.Errorf("it changed files:\n%s", diff)
	}
	renewed := decodeJSON[[]pki.Info](t, mustPKI(t, "renew", "-o", "json", "--all", "--days", "30", "c1", "somewhere/web1").stdout)
	var changed []string
	for path, text := range filesBelow(t) {
		if before[path] != text {
			changed = append(changed, path)
		}
	}
	slices.Sort(changed)
	var told []string
	for _, info := range renewed {
		told = append(told, info.File)
		if info.DaysLeft != 29 && info.DaysLeft != 30 { // as of the moment of the issue
			t.Errorf("%s: %d days left", info.File, info.DaysLeft)
		}
	}
	slices.Sort(told)
	if diff := cmp.Diff(changed, told); diff != "" || len(told) != 4 {
		t.Errorf("renewed (-files +told):\n%s", diff)
	}
}

// The first operator's token is one that every controller knows, and nobody
// else.
func TestFirstToken(t *testing.T) {
	t.Chdir(t.TempDir())
	mustPKI(t, "init", "--cluster", "prod")
	mustPKI(t, "issue", "--role", "controller", "--name", "c1")
	mustPKI(t, "issue", "--role", "controller", "--name", "c2", "--dir", "c1")
	mustPKI(t, "issue", "--role", "watch", "--name", "w1")
	files := filesBelow(t)
	token := strings.TrimSpace(files["pki/admin.token"])
	for _, controller := range []string{"c1", "c2"} {
		records, err := firstTokens(controller)
		if err != nil || len(records) != 1 {
			t.Fatalf("%s: %v, %v", controller, records, err)
		}
		if err := records[0].Verify(token, time.Now()); err != nil {
			t.Errorf("%s: %v", controller, err)
		}
		if r := records[0]; r.Name != "admin" || r.Role != pki.Admin || !r.Expires.IsZero() {
			t.Errorf("%s: %+v", controller, r)
		}
	}
	for path, text := range files {
		dir, name := filepath.Split(path)
		if name == firstTokenFile && dir == "w1/" {
			t.Errorf("%s: a watch has no use for it", path)
		}
		if strings.Contains(text, token) && path != "pki/admin.token" {
			t.Errorf("%s holds the token", path)
		}
	}
	for _, path := range []string{"pki/admin.token", "pki/first-token.json", "c1/first-token.json"} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o600 {
			t.Errorf("%s has mode %s", path, info.Mode())
		}
	}

	// Taken away, it is not needed to issue more.
	if err := os.Remove("pki/first-token.json"); err != nil {
		t.Fatal(err)
	}
	mustPKI(t, "issue", "--role", "controller", "--name", "c3")
	if records, err := firstTokens("c3"); err != nil || records != nil {
		t.Errorf("c3: %v, %v", records, err)
	}
}

// What is refused says why, has its exit code, and changes nothing.
func TestPKIRefusals(t *testing.T) {
	t.Chdir(t.TempDir())
	mustPKI(t, "init", "--cluster", "prod")
	mustPKI(t, "issue", "--role", "agent", "--name", "a1")
	mustPKI(t, "issue", "--role", "controller", "--name", "c1")
	mustPKI(t, "init", "--cluster", "other", "--dir", "other")
	mustPKI(t, "issue", "--dir", "other", "--role", "agent", "--name", "b1")
	if err := os.MkdirAll("token", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("token/admin.token", []byte("of another cluster"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("garbage.crt", []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll("open/ca", 0o700); err != nil {
		t.Fatal(err)
	}
	for path, text := range filesBelow(t) {
		if dir, name := filepath.Split(path); dir == "pki/ca/" {
			if err := os.WriteFile("open/ca/"+name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := filesBelow(t)
	for _, tt := range []struct {
		args string
		code exitCode
		want string
	}{
		{"init --cluster prod", exitConflict, "pki/admin.token"},
		{"init --cluster prod --root-dir elsewhere", exitConflict, "pki/admin.token"},
		{"init --cluster prod --dir new --root-dir pki/root", exitConflict, "pki/root/root.key"},
		{"init", exitConflict, "pki/admin.token"},
		{"init --dir token", exitConflict, "token/admin.token"},
		{"init --cluster=", exitUsage, "must not be empty"},
		{"init --cluster Prod", exitUsage, "Prod"},
		{"init --cluster a.b", exitUsage, "a.b"},
		{"init --cluster x extra", exitUsage, "extra"},
		{"issue --role agent --name a1", exitConflict, "a1/node.key"},
		{"issue --role agent --name c1", exitConflict, "c1/node.key: file already exists; nothing is overwritten"},
		{"issue --role watch --name c1", exitConflict, "c1/node.key"},
		{"issue --role watch --name w1 pki", exitFailed, "controllers only"},
		{"issue --role agent --name a2 --dir other a1", exitFailed, "another cluster"},
		{"issue --role agent", exitUsage, "--name"},
		{"issue --name a2", exitUsage, "--role"},
		{"issue --role boss --name a2", exitUsage, "boss"},
		{"issue --role agent --name a/2", exitUsage, "a/2"},
		{"issue --role agent --name ../a2", exitUsage, "../a2"},
		{"issue --role agent --name a2 --host a2.example.com", exitUsage, "no API"},
		{"issue --role relay --name r1 --host *.example.com", exitUsage, "*.example.com"},
		{"issue --role relay --name r1 --host 10.0.0.999", exitUsage, "10.0.0.999"},
		{"issue --role relay --name r1 --host 10.0.0.1.", exitUsage, "10.0.0.1."},
		{"issue --role relay --name r1 --host c1.member.uac", exitUsage, "c1.member.uac"},
		{"issue --role agent --name a2 --days 0", exitUsage, "--days"},
		{"issue --role agent --name a2 --days 99999", exitUsage, "--days"},
		{"issue --role agent --name a2 --dir nowhere", exitUsage, "uac pki init"},
		{"issue --role agent --name a2 --dir a1", exitUsage, "uac pki init"},
		{"issue --role agent --name a2 --dir open", exitFailed, "chmod 600"},
		{"issue --role agent --name a2 x y", exitUsage, "arg"},
		{"renew", exitUsage, "not the directory of a node"},
		{"renew nowhere", exitUsage, "not the directory of a node"},
		{"renew --all b1", exitFailed, "not issued by"},
		{"renew --dir a1 a1", exitUsage, "uac pki init"},
		{"renew --days -1 a1", exitUsage, "--days"},
		{"show nowhere", exitNotFound, "nowhere"},
		{"show garbage.crt", exitFailed, "garbage.crt"},
		{"show pki/ca/api.key", exitFailed, "PRIVATE KEY"},
		{"shov", exitUsage, "uac pki show"},
		{"", exitUsage, "which verb"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			r := uacPKI(t, strings.Fields(tt.args)...)
			if r.code != tt.code || !strings.Contains(r.stderr, tt.want) {
				t.Errorf("exit code %d, want %d; says %q, want %q in it", r.code, tt.code, r.stderr, tt.want)
			}
			if diff := cmp.Diff(before, filesBelow(t)); diff != "" {
				t.Fatalf("files changed:\n%s", diff)
			}
		})
	}
}

// Every verb has a help with an example.
func TestPKIHelp(t *testing.T) {
	for _, verb := range []string{"init", "issue", "renew", "show"} {
		r := mustPKI(t, verb, "--help")
		if !strings.Contains(r.stdout, "Examples:\n  uac pki "+verb) {
			t.Errorf("uac pki %s --help has no example:\n%s", verb, r.stdout)
		}
	}
}

// The commands of the operator's page work as they stand there, one after the other.
func TestPKIPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations/certificates.md")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	ran := map[string]bool{}
	code := false
	for line := range strings.Lines(string(page)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "```") {
			code = line == "```sh"
			continue
		}
		args := strings.Fields(line)
		if !code || len(args) < 3 || args[0] != "uac" || args[1] != "pki" {
			continue
		}
		mustPKI(t, args[2:]...)
		ran[args[2]] = true
	}
	for _, verb := range []string{"init", "issue", "renew", "show"} {
		if !ran[verb] {
			t.Errorf("the page does not show uac pki %s", verb)
		}
	}
}
