package pki_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"uac/roles/wire/pki"
)

// tree lists the files below dir with their permissions.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		files[rel] = info.Mode().Perm().String()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestInitAndIssueLayout(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if err := pki.Init(pki.InitOptions{Dir: dir, Cluster: "prod"}); err != nil {
		t.Fatal(err)
	}
	const key, crt = "-rw-------", "-rw-r--r--"
	cas := map[string]string{"ca/root.crt": crt, "ca/members.crt": crt, "ca/api.crt": crt, "ca/nodes.crt": crt}
	caKeys := map[string]string{"ca/members.key": key, "ca/api.key": key, "ca/nodes.key": key}
	member := map[string]string{"member.crt": crt, "member.key": key}
	api := map[string]string{"api.crt": crt, "api.key": key}
	node := map[string]string{"node.crt": crt, "node.key": key}
	union := func(maps ...map[string]string) map[string]string {
		all := map[string]string{}
		for _, m := range maps {
			for k, v := range m {
				all[k] = v
			}
		}
		return all
	}
	want := union(cas, caKeys, map[string]string{"root/root.crt": crt, "root/root.key": key})
	if diff := cmp.Diff(want, tree(t, dir)); diff != "" {
		t.Errorf("init (-want +got):\n%s", diff)
	}

	a := openAuthority(t, dir)
	for role, want := range map[pki.Role]map[string]string{
		pki.Controller: union(cas, caKeys, member, api, node),
		pki.Watch:      union(cas, member, api, node),
		pki.Relay:      union(cas, api, node),
		pki.Agent:      union(cas, node),
	} {
		out := issue(t, a, role, "n1")
		if diff := cmp.Diff(want, tree(t, out)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", role, diff)
		}
		if got := load(t, out).Identity(); got != (pki.Identity{Cluster: "prod", Role: role, Name: "n1"}) {
			t.Errorf("%s: identity %s", role, got)
		}
	}
}

// snapshot returns the content of all files below dir.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	content := map[string]string{}
	for name := range tree(t, dir) {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		content[name] = string(data)
	}
	return content
}

func TestNothingIsOverwritten(t *testing.T) {
	dir := t.TempDir()
	opts := pki.InitOptions{Dir: filepath.Join(dir, "pki"), RootDir: filepath.Join(dir, "root"), Cluster: "prod"}
	if err := pki.Init(opts); err != nil {
		t.Fatal(err)
	}
	a := openAuthority(t, opts.Dir)
	// A single controller may live in the directory of the authority.
	if err := a.IssueNode(opts.Dir, pki.NodeSpec{Role: pki.Controller, Name: "c1"}); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, dir)
	foreign := newCluster(t, "prod")
	for name, try := range map[string]func() error{
		"init again":                  func() error { return pki.Init(opts) },
		"init with the root away":     func() error { o := opts; o.RootDir = t.TempDir(); return pki.Init(o) },
		"init beside the root":        func() error { o := opts; o.Dir = t.TempDir(); return pki.Init(o) },
		"issue again":                 func() error { return a.IssueNode(opts.Dir, pki.NodeSpec{Role: pki.Controller, Name: "c1"}) },
		"issue by another cluster":    func() error { return foreign.IssueNode(opts.Dir, pki.NodeSpec{Role: pki.Controller, Name: "c2"}) },
		"watch beside keys of the CA": func() error { return a.IssueNode(opts.Dir, pki.NodeSpec{Role: pki.Watch, Name: "w1"}) },
	} {
		if err := try(); err == nil {
			t.Errorf("%s: succeeded", name)
		}
		if diff := cmp.Diff(before, snapshot(t, dir)); diff != "" {
			t.Fatalf("%s changed files:\n%s", name, diff)
		}
	}
}

// A key that others may read is refused, wherever it is used, and the error says what
// to do.
func TestKeyPermissions(t *testing.T) {
	c := newCluster(t, "prod")
	for _, mode := range []os.FileMode{0o640, 0o604, 0o644, 0o660, 0o601, 0o620} {
		dir := c.node(t, pki.Watch, "w1")
		for _, name := range []string{"member.key", "node.key", "api.key"} {
			path := filepath.Join(dir, name)
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
			_, err := pki.Load(dir, nil)
			if err == nil || !strings.Contains(err.Error(), "chmod 600 "+path) {
				t.Errorf("%s with mode %04o: error = %v", name, mode, err)
			}
			if err := os.Chmod(path, 0o400); err != nil {
				t.Fatal(err)
			}
			load(t, dir)
		}
	}
	for _, name := range []string{"members.key", "api.key", "nodes.key"} {
		path := filepath.Join(c.dir, "ca", name)
		if err := os.Chmod(path, 0o640); err != nil {
			t.Fatal(err)
		}
		if _, err := pki.OpenAuthority(c.dir); err == nil || !strings.Contains(err.Error(), "chmod 600 "+path) {
			t.Errorf("%s: error = %v", name, err)
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLoadRefusesMixedDirectories(t *testing.T) {
	c, twin := newCluster(t, "prod"), newCluster(t, "prod")
	c2, foreign := c.node(t, pki.Controller, "c2"), twin.node(t, pki.Controller, "c1")
	move := func(from string, names ...string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			for _, name := range names {
				data, err := os.ReadFile(filepath.Join(from, name))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	remove := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	write := func(name, text string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := map[string]struct {
		role   pki.Role
		spoil  func(*testing.T, string)
		reason string
	}{
		"another node's certificate":       {pki.Controller, move(c2, "member.crt", "member.key"), "this node is uac://prod/controller/c1"},
		"another node's key":               {pki.Controller, move(c2, "member.key"), "is not its private key"},
		"certificate of another CA":        {pki.Controller, func(t *testing.T, dir string) { move(dir+"/", "node.crt")(t, dir); swap(t, dir) }, "x509"},
		"CA of another cluster":            {pki.Controller, move(foreign, "ca/members.crt"), "not signed by the root"},
		"certificate of a twin cluster":    {pki.Controller, move(foreign, "member.crt", "member.key"), "x509"},
		"wrong CA under the name":          {pki.Controller, func(t *testing.T, dir string) { copyFile(t, dir, "ca/nodes.crt", "ca/members.crt") }, "want that of"},
		"no member certificate":            {pki.Controller, remove("member.crt"), "no such file"},
		"no member key":                    {pki.Watch, remove("member.key"), "no such file"},
		"no node certificate":              {pki.Agent, remove("node.crt"), "no such file"},
		"no root":                          {pki.Agent, remove("ca/root.crt"), "no such file"},
		"no api certificate of a watch":    {pki.Watch, remove("api.crt"), "no such file"},
		"a watch with the key of a CA":     {pki.Watch, move(c.dir, "ca/nodes.key"), "controllers only"},
		"an agent with the key of a CA":    {pki.Agent, move(c.dir, "ca/members.key"), "controllers only"},
		"a key instead of a certificate":   {pki.Agent, func(t *testing.T, dir string) { copyFile(t, dir, "node.key", "node.crt") }, "unexpected PEM block"},
		"a certificate instead of a key":   {pki.Agent, func(t *testing.T, dir string) { copyFile(t, dir, "node.crt", "node.key") }, "no PEM block"},
		"garbage instead of a certificate": {pki.Agent, write("node.crt", "garbage"), "no PEM certificate"},
		"an empty key":                     {pki.Agent, write("node.key", ""), "no PEM block"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := c.node(t, tt.role, "c1")
			load(t, dir)
			tt.spoil(t, dir)
			if _, err := pki.Load(dir, nil); err == nil || !strings.Contains(err.Error(), tt.reason) {
				t.Errorf("error = %v, want one with %q", err, tt.reason)
			}
		})
	}
}

// swap puts node.crt and node.key where the member certificate belongs.
func swap(t *testing.T, dir string) {
	copyFile(t, dir, "node.crt", "member.crt")
	copyFile(t, dir, "node.key", "member.key")
}

func copyFile(t *testing.T, dir, from, to string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, from))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, to), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A renewal is used from the next handshake on, by servers and clients that were set
// up before it; and what cannot be used changes nothing.
func TestRenewalWithoutRestart(t *testing.T) {
	c := newCluster(t, "prod")
	old := time.Now().Add(-80 * 24 * time.Hour) // due, but valid
	dirs := map[string]string{}
	stores := map[string]*pki.Store{}
	var log bytes.Buffer
	for name, role := range map[string]pki.Role{"c1": pki.Controller, "a1": pki.Agent} {
		dirs[name] = c.nodeAt(t, role, name, old)
		s, err := pki.Load(dirs[name], slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		stores[name] = s
	}
	server := must[*tls.Config](t)(stores["c1"].LinkServer())
	client := must[*tls.Config](t)(stores["a1"].LinkClient())
	serials := func() [2]string {
		t.Helper()
		out := shake(t, server, client)
		if out.serverErr != nil || out.clientErr != nil {
			t.Fatalf("server: %v, client: %v", out.serverErr, out.clientErr)
		}
		return [2]string{out.client.PeerCertificates[0].SerialNumber.String(), out.server.PeerCertificates[0].SerialNumber.String()}
	}
	first := serials()
	if again := serials(); again != first {
		t.Fatalf("serials changed by themselves: %v, %v", first, again)
	}

	renewed, err := c.RenewNodes(false, dirs["c1"])
	var files []string
	for _, info := range renewed {
		files = append(files, filepath.Base(info.File))
	}
	if want := []string{"member.crt", "api.crt", "node.crt"}; err != nil || !slices.Equal(files, want) {
		t.Fatalf("RenewNodes = %v, %v; want %v", files, err, want)
	}
	second := serials()
	if second[0] == first[0] || second[1] != first[1] {
		t.Fatalf("after the controller's renewal: %v, before: %v", second, first)
	}

	// The agent renews over its link.
	due, err := stores["a1"].Renewals(time.Now())
	if err != nil || len(due) != 1 || due[0].CA != pki.Nodes {
		t.Fatalf("Renewals = %v, %v", due, err)
	}
	chain, err := c.Renew(stores["a1"].Identity(), due[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := stores["a1"].Install(pki.Nodes, chain); err != nil {
		t.Fatal(err)
	}
	third := serials()
	if third[0] != second[0] || third[1] == second[1] {
		t.Fatalf("after the agent's renewal: %v, before: %v", third, second)
	}
	if due, err := stores["a1"].Renewals(time.Now()); err != nil || len(due) != 0 {
		t.Errorf("still due: %v, %v", due, err)
	}
	if renewed, err := c.RenewNodes(false, dirs["c1"]); err != nil || len(renewed) != 0 {
		t.Errorf("renewed what is not due: %v, %v", renewed, err)
	}
	load(t, dirs["c1"])
	load(t, dirs["a1"])

	// A botched replacement by hand: the last good certificate stays in use.
	log.Reset()
	if err := os.WriteFile(filepath.Join(dirs["a1"], "node.crt"), []byte("garbage"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := serials(); got != third {
			t.Errorf("after a botched replacement: %v, want %v", got, third)
		}
	}
	if err := os.Remove(filepath.Join(dirs["c1"], "node.crt")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := serials(); got != third {
			t.Errorf("after a removal: %v, want %v", got, third)
		}
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 2 {
		t.Errorf("%d warnings, want one for each of the two:\n%s", n, &log)
	}
}

func TestInstallRefuses(t *testing.T) {
	c, twin := newCluster(t, "prod"), newCluster(t, "prod")
	a1 := load(t, c.nodeAt(t, pki.Agent, "a1", time.Now().Add(-80*24*time.Hour)))
	a2 := c.node(t, pki.Agent, "a2")
	twinA1 := twin.node(t, pki.Agent, "a1")
	read := func(dir string) []byte {
		data, err := os.ReadFile(filepath.Join(dir, "node.crt"))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	before, err := a1.Certificates(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	due, err := a1.Renewals(time.Now())
	if err != nil || len(due) != 1 {
		t.Fatal(due, err)
	}
	older := openAuthority(t, c.dir)
	older.Lifetime = pki.MinLifetime
	shorter, err := older.Renew(a1.Identity(), due[0])
	if err != nil {
		t.Fatal(err)
	}
	for name, chain := range map[string][]byte{
		"another node's":      read(a2),
		"of another cluster":  read(twinA1),
		"garbage":             []byte("garbage"),
		"empty":               nil,
		"one that ends first": shorter,
	} {
		if err := a1.Install(pki.Nodes, chain); err == nil {
			t.Errorf("%s certificate was installed", name)
		}
	}
	if err := a1.Install(pki.Members, read(a2)); err == nil {
		t.Error("an agent installed a member certificate")
	}
	after, err := a1.Certificates(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before[0].Serial, after[0].Serial); diff != "" {
		t.Errorf("serial changed: %s", diff)
	}
}

func TestEnsureAPI(t *testing.T) {
	c := newCluster(t, "prod")
	now := time.Now()
	a := openAuthority(t, c.dir)
	a.Clock = func() time.Time { return now }
	dir := c.node(t, pki.Controller, "c1")
	for _, name := range []string{"api.crt", "api.key"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	s := load(t, dir) // a controller may come up without
	if _, err := s.APIServer(); err == nil {
		t.Error("APIServer without a certificate succeeded")
	}
	hosts := []string{"UAC.example.com", "10.0.0.7", "uac.example.com.", "::ffff:10.0.0.8"}
	steps := []struct {
		name   string
		before func()
		hosts  []string
		want   bool
		names  []string
		addrs  []string
	}{
		{"missing", nil, nil, true, []string{"c1", "localhost"}, []string{"127.0.0.1", "::1"}},
		{"unchanged default", nil, nil, false, []string{"c1", "localhost"}, []string{"127.0.0.1", "::1"}},
		{"other hosts", nil, hosts, true, []string{"uac.example.com"}, []string{"10.0.0.7", "10.0.0.8"}},
		{"same hosts in other order", nil, []string{"10.0.0.8", "uac.example.com", "10.0.0.7"}, false, []string{"uac.example.com"}, []string{"10.0.0.7", "10.0.0.8"}},
		{"due", func() { now = now.Add(61 * 24 * time.Hour) }, hosts, true, []string{"uac.example.com"}, []string{"10.0.0.7", "10.0.0.8"}},
		{"lost key", func() { os.Remove(filepath.Join(dir, "api.key")) }, hosts, true, []string{"uac.example.com"}, []string{"10.0.0.7", "10.0.0.8"}},
		{"lost certificate", func() { os.Remove(filepath.Join(dir, "api.crt")) }, hosts, true, []string{"uac.example.com"}, []string{"10.0.0.7", "10.0.0.8"}},
		{"clock set back", func() { now = now.Add(-100 * 24 * time.Hour) }, hosts, true, []string{"uac.example.com"}, []string{"10.0.0.7", "10.0.0.8"}},
	}
	for _, tt := range steps {
		if tt.before != nil {
			tt.before()
		}
		changed, err := a.EnsureAPI(dir, tt.hosts)
		if err != nil || changed != tt.want {
			t.Fatalf("%s: changed = %t, %v; want %t", tt.name, changed, err, tt.want)
		}
		infos, err := pki.Show(filepath.Join(dir, "api.crt"), now)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([][]string{tt.names, tt.addrs}, [][]string{infos[0].DNSNames, infos[0].Addresses}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		if _, err := s.APIServer(); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	for _, bad := range []string{"*.example.com", "0.0.0.0", "::", "a b", "", "controller.uac", "c1.member.uac", "-host", "host-", "fe80::1%eth0", "example..com"} {
		if _, err := a.EnsureAPI(dir, []string{bad}); err == nil {
			t.Errorf("host %q was accepted", bad)
		}
	}
}

func TestShow(t *testing.T) {
	c := newCluster(t, "prod")
	now := time.Now().Truncate(time.Second)
	dir := c.nodeAt(t, pki.Agent, "web1", now)
	infos, err := pki.Show(dir, now.Add(24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, i := range infos {
		rel, err := filepath.Rel(dir, i.File)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, rel)
	}
	if diff := cmp.Diff([]string{"node.crt", "ca/root.crt", "ca/members.crt", "ca/api.crt", "ca/nodes.crt"}, files); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	cert := readCert(t, filepath.Join(dir, "node.crt"))
	want := pki.Info{
		File: filepath.Join(dir, "node.crt"), Subject: "CN=web1,OU=agent,O=prod", Identity: "uac://prod/agent/web1",
		Role: pki.Agent, Name: "web1", DNSNames: []string{"agent.uac", "web1.agent.uac"}, Addresses: []string{},
		Issuer: "CN=uac nodes CA,O=prod", Serial: cert.SerialNumber.Text(16),
		NotBefore: now.Add(-5 * time.Minute).UTC(), NotAfter: now.AddDate(0, 0, 90).UTC(), RenewAfter: now.AddDate(0, 0, 60).UTC(),
		DaysLeft: 89, Fingerprint: pki.Fingerprint(cert),
	}
	if diff := cmp.Diff(want, infos[0]); diff != "" {
		t.Errorf("node (-want +got):\n%s", diff)
	}
	text, err := json.Marshal(infos[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{`"not_after":`, `"days_left":89`, `"fingerprint":`, `"is_ca":false`, `"addresses":[]`} {
		if !strings.Contains(string(text), field) {
			t.Errorf("JSON lacks %s: %s", field, text)
		}
	}
	if infos, err := pki.Show(filepath.Join(dir, "node.crt"), now.AddDate(0, 0, 90).Add(time.Second)); err != nil || len(infos) != 1 || infos[0].DaysLeft != -1 {
		t.Errorf("expired: %+v, %v", infos, err)
	}
	for _, path := range []string{t.TempDir(), filepath.Join(dir, "nothing"), filepath.Join(dir, "node.key")} {
		if infos, err := pki.Show(path, now); err == nil {
			t.Errorf("%s: %+v", path, infos)
		}
	}
}
