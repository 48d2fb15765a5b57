package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"uac/roles"
)

// writeFile returns the name of a configuration file with the given text.
func writeFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "uac.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// loadText loads a file with the given text for a role.
func loadText(t *testing.T, role roles.Role, text string) (Config, Origins, error) {
	t.Helper()
	return Load(Options{File: writeFile(t, text), Flags: roleFlag(role)})
}

func roleFlag(role roles.Role) []Flag {
	if role == "" {
		return nil
	}
	return []Flag{{Key: "node.role", Value: string(role), Name: "--role"}}
}

// problems returns the lines of an error, with the file's directory taken out.
func problems(t *testing.T, err error) []string {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want *config.Error", err)
	}
	var out []string
	for _, p := range e.Problems {
		if p.Origin.Source == FromFile {
			p.Origin.Name = filepath.Base(p.Origin.Name)
		}
		out = append(out, p.String())
	}
	return out
}

func TestLoadDefaults(t *testing.T) {
	cfg, origins, err := load(Options{Flags: roleFlag(roles.RoleController)}, filepath.Join(t.TempDir(), "absent.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Node.Role = roles.RoleController
	want.Node.Name = nodeName(host)
	want.Node.Advertise = host
	want.PKI.Dir = "/var/lib/uac/pki"
	want.Members = []Member{{Name: nodeName(host), Role: roles.RoleController, Address: host}}
	if diff := cmp.Diff(want, cfg, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("a controller with no settings at all (-want +got):\n%s", diff)
	}
	wantOrigins := Origins{"node.role": {Source: FromFlag, Name: "--role"}}
	if diff := cmp.Diff(wantOrigins, origins); diff != "" {
		t.Errorf("origins (-want +got):\n%s", diff)
	}
}

func TestDefaultsAreValid(t *testing.T) {
	for _, f := range schemaOf(reflect.TypeFor[Config]()) {
		if f.key == "" || strings.HasSuffix(f.key, ".") || strings.Contains(f.key, "..") {
			t.Errorf("a field of Config has no yaml tag: key %q", f.key)
		}
	}
	cfg := Default()
	cfg.Node.Role, cfg.Node.Name, cfg.Node.Advertise = roles.RoleAgent, "a1", "a1"
	cfg.Agent.Servers = []string{"c1:7602"}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
}

func TestLayers(t *testing.T) {
	file := writeFile(t, `
node: {name: from-file, data_dir: /file}
cluster:
  silence_timeout: 200ms
  lease: 6s
agent:
  labels: {Tier: web, "a.B": x}
  servers: [c1, "c2:9000"]
members:
  - {name: from-flag, role: controller, address: 10.0.0.1}
`)
	cfg, origins, err := Load(Options{
		File: file,
		Env: []string{
			"UAC_NODE_NAME=from-env", "UAC_NODE_DATA_DIR=/env", "UAC_CLUSTER_LEASE=7s", "UAC_API_NAMES=a.example, b.example",
			"UAC_LOG_LEVEL=", "UAC_SERVER=https://elsewhere:7600", "UAC_PARAM_version=1", "HOME=/root",
		},
		Flags: append(roleFlag(roles.RoleController),
			Flag{Key: "node.name", Value: "first", Name: "--name"},
			Flag{Key: "node.name", Value: "from-flag", Name: "--name"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Node = Node{Role: roles.RoleController, Name: "from-flag", DataDir: "/env", Advertise: "10.0.0.1"}
	want.Cluster.SilenceTimeout, want.Cluster.Lease = 200*time.Millisecond, 7*time.Second
	want.API.Names = []string{"a.example", "b.example"}
	want.Agent.Labels = map[string]string{"Tier": "web", "a.B": "x"}
	want.Agent.Servers = []string{"c1:7602", "c2:9000"}
	want.Members = []Member{{Name: "from-flag", Role: roles.RoleController, Address: "10.0.0.1"}}
	want.PKI.Dir = "/env/pki"
	if diff := cmp.Diff(want, cfg); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	for key, want := range map[string]string{
		"node.name":               "flag --name",
		"node.data_dir":           "env UAC_NODE_DATA_DIR",
		"node.advertise":          "default",
		"cluster.silence_timeout": file + ":4",
		"cluster.lease":           "env UAC_CLUSTER_LEASE",
		"agent.labels":            file + ":7",
		"agent.servers[1]":        file + ":8",
		"members[0].address":      file + ":10",
		"log.level":               "default",
	} {
		if got := origins.Of(key).String(); got != want {
			t.Errorf("origin of %s is %q, want %q", key, got, want)
		}
	}
}

// A list in a higher layer replaces the lower one whole, origins included.
func TestHigherListReplacesLower(t *testing.T) {
	cfg, origins, err := Load(Options{
		File:  writeFile(t, "agent: {servers: [a, b, c], labels: {x: '1', y: '2'}}"),
		Env:   []string{"UAC_AGENT_LABELS=X=3", `UAC_MEMBERS=[{name: c1, role: controller, address: h}]`},
		Flags: append(roleFlag(roles.RoleAgent), Flag{Key: "agent.servers", Value: "d", Name: "--set"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"d:7602"}, cfg.Agent.Servers); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"X": "3"}, cfg.Agent.Labels); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Member{{Name: "c1", Role: roles.RoleController, Address: "h"}}, cfg.Members); diff != "" {
		t.Error(diff)
	}
	if got := origins.Of("agent.servers[2]").String(); got != "flag --set" {
		t.Errorf("an element of the hidden list still has an origin of its own: %s", got)
	}
}

func TestOnlyTheDefaultFileMayBeMissing(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "absent.yaml")
	if _, _, err := load(Options{Flags: roleFlag(roles.RoleController)}, absent); err != nil {
		t.Errorf("default file missing: %v", err)
	}
	_, _, err := Load(Options{File: absent, Flags: roleFlag(roles.RoleController)})
	if diff := cmp.Diff([]string{"absent.yaml: cannot read: no such file or directory"}, problems(t, err)); diff != "" {
		t.Error(diff)
	}
	// A default file that is there must be good.
	if _, _, err := load(Options{Flags: roleFlag(roles.RoleController)}, writeFile(t, "nodes: {}")); err == nil {
		t.Error("a wrong default file was accepted")
	}
}

// Whatever is wrong, the message says where, which key, which value and what
// to do; and nothing else is reported.
func TestProblems(t *testing.T) {
	tests := []struct {
		name string
		role roles.Role
		text string
		env  []string
		set  []Flag
		want []string
	}{
		{name: "unknown key with a near one", text: "cluster:\n  silence_timout: 1s",
			want: []string{"uac.yaml:2: cluster.silence_timout: there is no such key; did you mean cluster.silence_timeout?"}},
		{name: "unknown key that exists elsewhere", text: "silence_timeout: 1s",
			want: []string{"uac.yaml:1: silence_timeout: there is no such key; did you mean cluster.silence_timeout?"}},
		{name: "unknown key with nothing near", text: "zzzzzz: 1",
			want: []string{"uac.yaml:1: zzzzzz: there is no such key"}},
		{name: "unknown section", text: "agents: {servers: [c1]}",
			want: []string{"uac.yaml:1: agents: there is no such key; did you mean agent?"}},
		{name: "keys have one spelling", text: "Cluster: {}",
			want: []string{"uac.yaml:1: Cluster: there is no such key; did you mean cluster?"}},
		{name: "unknown key with a terminal escape", text: `"a\e[31mb": 1`,
			want: []string{`uac.yaml:1: "a\x1b[31mb": there is no such key`}},
		{name: "misspelt required key", role: roles.RoleAgent, text: "agent:\n  server: [c1]",
			want: []string{"uac.yaml:2: agent.server: there is no such key; did you mean agent.servers?"}},
		{name: "join token of a member", role: roles.RoleController, text: "pki: {join: x}",
			want: []string{"uac.yaml:1: pki.join: is for agents and relays: make the keys of a controller with uac pki issue"}},
		{name: "unknown key in a list", text: "members:\n- {name: c1, role: controller, adress: h}",
			want: []string{"uac.yaml:2: members[0].adress: there is no such key; did you mean address?"}},
		{name: "key twice", text: "log:\n  level: info\n  format: json\n  level: debug",
			want: []string{"uac.yaml:4: log.level: is set twice, first in line 2"}},
		{name: "section twice", text: "log: {level: info}\nlog: {format: json}",
			want: []string{"uac.yaml:2: log: is set twice, first in line 1"}},
		{name: "label twice", text: "agent:\n  labels:\n    a: 1\n    a: 2",
			want: []string{"uac.yaml:4: a: is set twice, first in line 3"}},
		{name: "duration without unit", text: "cluster: {silence_timeout: 5}",
			want: []string{`uac.yaml:1: cluster.silence_timeout: "5" is not a duration such as 500ms or 5s`}},
		{name: "duration is a list", text: "cluster: {silence_timeout: [5s]}",
			want: []string{`uac.yaml:1: cluster.silence_timeout: must be a duration such as 500ms or 5s, not a list`}},
		{name: "negative duration", text: "cluster: {silence_timeout: -1s}",
			want: []string{`uac.yaml:1: cluster.silence_timeout: -1s is not between 50ms and 1m0s`}},
		{name: "boolean", text: "agent: {shuffle: yes}",
			want: []string{`uac.yaml:1: agent.shuffle: "yes" is not true or false`}},
		{name: "size", text: "etcd: {quota: 4GB}",
			want: []string{`uac.yaml:1: etcd.quota: "4GB" is not a size such as 512MiB or 4GiB`}},
		{name: "size overflows", text: "etcd: {quota: 9000000000TiB}",
			want: []string{`uac.yaml:1: etcd.quota: "9000000000TiB" is not a size such as 512MiB or 4GiB`}},
		{name: "size too small", text: "etcd: {quota: 1MiB}",
			want: []string{`uac.yaml:1: etcd.quota: 1MiB is less than 128MiB: what must always fit beside large documents would not`}},
		{name: "spool too small", text: "agent: {spool_limit: 1023KiB}",
			want: []string{`uac.yaml:1: agent.spool_limit: 1023KiB is less than 1MiB`}},
		{name: "spool of all less than of one", text: "agent: {spool_limit: 3GiB}",
			want: []string{`uac.yaml:1: agent.spool_total: 2GiB is less than agent.spool_limit (3GiB)`}},
		{name: "word", text: "cluster: {failover: confrim}",
			want: []string{`uac.yaml:1: cluster.failover: "confrim" is not one of auto, confirm; did you mean confirm?`}},
		{name: "section is a scalar", text: "cluster: fast",
			want: []string{`uac.yaml:1: cluster: must be a mapping of keys to values, not "fast"`}},
		{name: "document is a list", text: "- cluster",
			want: []string{`uac.yaml:1: must be a mapping of keys to values, not a list`}},
		{name: "list is a mapping", text: "agent: {servers: {a: b}}",
			want: []string{`uac.yaml:1: agent.servers: must be a list, not a mapping`}},
		{name: "list of lists", text: "agent:\n  servers:\n  - a\n  - [b]",
			want: []string{`uac.yaml:4: agent.servers[1]: must be text, not a list`}},
		{name: "members as a word", text: "members: c1",
			want: []string{`uac.yaml:1: members: must be a list of mappings, not "c1"`}},
		{name: "member as a word", text: "members: [c1]",
			want: []string{`uac.yaml:1: members[0]: must be a mapping, not "c1"`}},
		{name: "label is a list", text: "agent: {labels: {a: [b]}}",
			want: []string{`uac.yaml:1: agent.labels.a: must be text, not a list`}},
		{name: "syntax", text: "log:\n  level: info\n level: x",
			want: []string{`uac.yaml:2: is not valid YAML: did not find expected key`}},
		{name: "two documents", text: "log: {}\n---\nlog: {}",
			want: []string{`uac.yaml:2: holds more than one YAML document`}},
		{name: "alias", text: "node: &n\n  name: a\nlog: *n",
			want: []string{`uac.yaml:1: YAML anchors, aliases and merge keys are not supported: write the value out`}},
		{name: "merge key", text: "node:\n  <<: {name: a}",
			want: []string{`uac.yaml:2: YAML anchors, aliases and merge keys are not supported: write the value out`}},
		{name: "not UTF-8", text: "log: {}\n# \xff\n",
			want: []string{`uac.yaml:2: is not UTF-8 text`}},
		{name: "control character", text: "log: {level: \"\x01\"}",
			want: []string{`uac.yaml: is not valid YAML: control characters are not allowed`}},
		{name: "too large", text: strings.Repeat("# filler\n", 10<<20/9),
			want: []string{`uac.yaml: is larger than 1MiB`}},
		{name: "long value is cut", text: "log: {level: " + strings.Repeat("x", 1000) + "}",
			want: []string{`uac.yaml:1: log.level: "` + strings.Repeat("x", 60) + `…" is not one of debug, info, warn, error`}},
		{name: "join before silence", text: "cluster:\n  silence_timeout: 6s\n  join_timeout: 6s",
			want: []string{`uac.yaml:3: cluster.join_timeout: 6s must be longer than cluster.silence_timeout (6s): else a node that starts takes over from nodes it has not heard yet`}},
		{name: "stall after lease", text: "cluster: {stall_timeout: 5s}",
			want: []string{`uac.yaml:1: cluster.stall_timeout: 5s must be shorter than cluster.lease (5s): the lease is the backstop behind it`}},
		{name: "stall too short", text: "cluster: {stall_timeout: 1s}",
			want: []string{`uac.yaml:1: cluster.stall_timeout: 1s is shorter than 2s: a quiet member writes only every 1s`}},
		{name: "lease in fractions", text: "cluster: {lease: 4500ms}",
			want: []string{`uac.yaml:1: cluster.lease: 4.5s is not a whole number of seconds`}},
		{name: "reconnect", text: "agent: {reconnect_min: 1s, reconnect_max: 500ms}",
			want: []string{`uac.yaml:1: agent.reconnect_max: 500ms is shorter than agent.reconnect_min (1s)`}},
		{name: "relation with a value that was not read", text: "agent: {reconnect_min: 1h, reconnect_max: soon}",
			want: []string{`uac.yaml:1: agent.reconnect_max: "soon" is not a duration such as 500ms or 5s`}},
		{name: "name", text: "node: {name: C1}",
			want: []string{`uac.yaml:1: node.name: "C1" is not a node name: use lower-case letters, digits, '-' and '.', with a letter or digit at both ends of each part`}},
		{name: "label", text: "agent:\n  labels: {'a b': c}",
			want: []string{`uac.yaml:2: agent.labels."a b": label key: "a b" is not a name: use letters, digits, '.', '_' and '-', with a letter or digit first`}},
		{name: "port", text: `listen: {api: ":76000"}`,
			want: []string{`uac.yaml:1: listen.api: "76000" is not a port in ":76000"`}},
		{name: "listen without port", text: `listen: {api: 127.0.0.1}`,
			want: []string{`uac.yaml:1: listen.api: "127.0.0.1" is not of the form host:port`}},
		{name: "raft binds no names", text: "listen: {raft: 'c1:7601'}",
			want: []string{`uac.yaml:1: listen.raft: "c1" must be an IP address in "c1:7601": the store binds no names`}},
		{name: "two listeners", text: "listen:\n  api: :7602",
			want: []string{`uac.yaml:2: listen.link: ":7602" is already the address of listen.api`}},
		{name: "advertise with port", text: `node: {advertise: "c1:7600"}`,
			want: []string{`uac.yaml:1: node.advertise: "c1:7600" must be a host without a port`}},
		{name: "agent without servers", role: roles.RoleAgent,
			want: []string{`agent.servers: is not set; an agent needs the controllers or relays to connect to`}},
		{name: "agent with a server twice", role: roles.RoleAgent, text: "agent: {servers: [c1, c1:7602]}",
			want: []string{`uac.yaml:1: agent.servers[1]: "c1:7602" is listed twice`}},
		{name: "relay without servers", role: roles.RoleRelay,
			want: []string{`relay.servers: is not set; a relay needs the controllers or relays to carry links to`}},
		{name: "relay with nonsense", role: roles.RoleRelay, text: "relay:\n  servers: [c1, \"c1:7602\", \"c2:x\"]\n  max_links: 0",
			want: []string{
				`uac.yaml:2: relay.servers[1]: "c1:7602" is listed twice`, `uac.yaml:2: relay.servers[2]: "x" is not a port in "c2:x"`,
				`uac.yaml:3: relay.max_links: 0 is not between 1 and 1000000`,
			}},
		{name: "watch without members", role: roles.RoleWatch,
			want: []string{`members: is not set; a watch needs the list of all controllers and watches`}},
		{name: "watch alone", role: roles.RoleWatch, text: "node: {name: w1}\nmembers: [{name: w1, role: watch, address: h}]",
			want: []string{`uac.yaml:2: members: holds no controller`}},
		{name: "not a member", text: "node: {name: c3}\nmembers:\n- {name: c1, role: controller, address: h}",
			want: []string{`uac.yaml:1: node.name: "c3" is not in members ("c1")`}},
		{name: "member of another role", role: roles.RoleWatch, text: "node: {name: c1}\nmembers:\n- {name: c1, role: controller, address: h}",
			want: []string{`flag --role: node.role: is watch, but members says that c1 is a controller`}},
		{name: "member without a role", text: "node: {name: c1}\nmembers:\n- {name: c1, role: controller, address: h}\n- {name: c2, address: i}",
			want: []string{`uac.yaml:4: members[1].role: is not set; a member is a controller or a watch`}},
		{name: "agents are not members", text: "node: {name: c1}\nmembers:\n- {name: c1, role: agent, address: h}",
			want: []string{`uac.yaml:3: members[0].role: "agent" is not one of controller, watch`}},
		{name: "members share a name and an address", text: "node: {name: c1}\nmembers:\n- {name: c1, role: controller, address: h}\n- {name: c1, role: watch, address: h}",
			want: []string{
				`uac.yaml:4: members[1].name: "c1" is already the name of members[0]`,
				`uac.yaml:4: members[1].raft: "h:7601" is already the address of members[0].raft`,
				`uac.yaml:4: members[1].link: "h:7602" is already the address of members[0].link`,
			}},
		{name: "member without an address", text: "node: {name: c1}\nmembers:\n- {name: c1, role: controller}",
			want: []string{`uac.yaml:3: members[0].address: is not set`}},
		{name: "no role", role: "none",
			want: []string{`flag --role: node.role: "none" is not one of controller, agent, relay, watch`}},
		{name: "unknown variable of a section", env: []string{"UAC_CLUSTER_SILENCE_TIMOUT=1s"},
			want: []string{`env UAC_CLUSTER_SILENCE_TIMOUT: names no setting; did you mean UAC_CLUSTER_SILENCE_TIMEOUT?`}},
		{name: "wrong value in a variable", env: []string{"UAC_CLUSTER_SILENCE_TIMEOUT=soon"},
			want: []string{`env UAC_CLUSTER_SILENCE_TIMEOUT: cluster.silence_timeout: "soon" is not a duration such as 500ms or 5s`}},
		{name: "wrong YAML in a variable", env: []string{"UAC_MEMBERS=[{"},
			want: []string{`env UAC_MEMBERS: members: is not valid YAML: did not find expected node content`}},
		{name: "labels in a variable", env: []string{"UAC_AGENT_LABELS=a=1,b"},
			want: []string{`env UAC_AGENT_LABELS: agent.labels: "b" is not of the form name=value`}},
		{name: "unknown flag key", set: []Flag{{Key: "cluster.leese", Value: "5s", Name: "--set"}},
			want: []string{`flag --set: cluster.leese: there is no such key; did you mean cluster.lease?`}},
		{name: "all problems at once", env: []string{"UAC_AGENT_SHUFFLE=2"}, text: "log:\n  level: loud\ncluster:\n  on_stop: hald",
			want: []string{
				`uac.yaml:2: log.level: "loud" is not one of debug, info, warn, error`,
				`uac.yaml:4: cluster.on_stop: "hald" is not one of handover, hold; did you mean hold?`,
				`env UAC_AGENT_SHUFFLE: agent.shuffle: "2" is not true or false`,
			}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.role == "" {
				tt.role = roles.RoleController
			}
			_, _, err := Load(Options{
				File: writeFile(t, tt.text), Env: tt.env, Flags: append(roleFlag(tt.role), tt.set...),
			})
			if diff := cmp.Diff(tt.want, problems(t, err)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRoleIsRequired(t *testing.T) {
	_, _, err := loadText(t, "", "")
	want := []string{"node.role: is not set; use --role=controller, agent, relay or watch"}
	if diff := cmp.Diff(want, problems(t, err)); diff != "" {
		t.Error(diff)
	}
	if cfg, _, err := loadText(t, "", "node: {role: controller}"); err != nil || cfg.Node.Role != roles.RoleController {
		t.Errorf("role from the file: %q, %v", cfg.Node.Role, err)
	}
}

// Aliases that multiply are refused before anything expands them.
func TestYAMLBomb(t *testing.T) {
	var b strings.Builder
	b.WriteString("a0: &a0 [x,x,x,x,x,x,x,x,x]\n")
	for i := 1; i < 30; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 9), ","))
	}
	_, _, err := loadText(t, roles.RoleController, b.String())
	want := []string{"uac.yaml:1: YAML anchors, aliases and merge keys are not supported: write the value out"}
	if diff := cmp.Diff(want, problems(t, err)); diff != "" {
		t.Error(diff)
	}
}

func TestUnreadableFile(t *testing.T) {
	_, _, err := Load(Options{File: t.TempDir(), Flags: roleFlag(roles.RoleController)})
	if err == nil || !strings.HasSuffix(err.Error(), "cannot read: is a directory") {
		t.Errorf("a directory as the file: %v", err)
	}
}

// Names like no, 1e3 or 007 stay as they were written.
func TestTextIsTakenLiterally(t *testing.T) {
	cfg, _, err := loadText(t, roles.RoleController, "node: {name: 007}\nagent: {labels: {No: no, 1: 1e3, empty: ''}}")
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Node.Name != "007" {
		t.Errorf("name is %q", cfg.Node.Name)
	}
	want := map[string]string{"No": "no", "1": "1e3", "empty": ""}
	if diff := cmp.Diff(want, cfg.Agent.Labels); diff != "" {
		t.Error(diff)
	}
}

func TestMemberAddresses(t *testing.T) {
	for _, tt := range []struct {
		m          Member
		raft, link string
	}{
		{Member{Address: "10.0.0.1"}, "10.0.0.1:7601", "10.0.0.1:7602"},
		{Member{Address: "fd00::1"}, "[fd00::1]:7601", "[fd00::1]:7602"},
		{Member{Address: "h", Raft: "h:1", Link: "i:2"}, "h:1", "i:2"},
	} {
		if got := tt.m.RaftAddr(); got != tt.raft {
			t.Errorf("%+v: raft is %s, want %s", tt.m, got, tt.raft)
		}
		if got := tt.m.LinkAddr(); got != tt.link {
			t.Errorf("%+v: link is %s, want %s", tt.m, got, tt.link)
		}
	}
}

func TestWarnings(t *testing.T) {
	cfg := Default()
	cfg.Node.Role = roles.RoleController
	for n, want := range []int{0, 0, 1, 0, 1} {
		cfg.Members = make([]Member, n)
		if got := len(cfg.Warnings()); got != want {
			t.Errorf("%d members: %d warnings, want %d", n, got, want)
		}
	}
}

func TestSettings(t *testing.T) {
	cfg, origins, err := loadText(t, roles.RoleAgent, `
node: {name: a1}
pki: {join: "not-to-be-seen"}
agent: {servers: [c1], labels: {b: "2", A: "1"}}
etcd: {quota: 8192MiB}
members: [{name: c1, role: controller, address: h}]
`)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	keys := map[string]bool{}
	for _, s := range cfg.Settings(origins) {
		got[s.Key] = s.Value
		keys[s.Key] = true
		if strings.Contains(s.Value, "not-to-be-seen") {
			t.Errorf("%s shows a secret", s.Key)
		}
	}
	want := map[string]string{
		"pki.join": mask, "agent.labels": "A=1,b=2", "etcd.quota": "8GiB", "cluster.silence_timeout": "1s",
		"members[0].address": "h", "node.role": "agent", "agent.shuffle": "false",
	}
	for key, value := range want {
		if got[key] != value {
			t.Errorf("%s is shown as %q, want %q", key, got[key], value)
		}
	}
	for _, key := range schemaOf(reflect.TypeFor[Config]()).keys() {
		if key != "members" && !keys[key] {
			t.Errorf("%s is not shown", key)
		}
	}
}

var hiddenSetting = regexp.MustCompile(`(?m)^( *)#([^ #\n])`)

// The sample as shipped changes nothing; with every setting uncommented it
// names every key, and says the truth about the defaults.
func TestSample(t *testing.T) {
	defaults, _, err := loadText(t, roles.RoleController, "")
	if err != nil {
		t.Fatal(err)
	}
	asShipped, origins, err := loadText(t, roles.RoleController, Sample())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(defaults, asShipped); diff != "" {
		t.Errorf("the sample changes settings (-default +sample):\n%s", diff)
	}
	if diff := cmp.Diff(Origins{"node.role": {Source: FromFlag, Name: "--role"}}, origins); diff != "" {
		t.Errorf("the sample sets something:\n%s", diff)
	}

	full := hiddenSetting.ReplaceAllString(Sample(), "$1$2")
	cfg, origins, err := loadText(t, roles.RoleController, full)
	if err != nil {
		t.Fatalf("with all settings uncommented: %v\n%s", err, full)
	}
	for _, f := range schemaOf(reflect.TypeFor[Config]()) {
		if _, ok := origins[f.key]; !ok {
			t.Errorf("the sample lacks %s", f.key)
		}
	}
	// Examples, because there is no default.
	cfg.Node.Name, cfg.Node.Advertise = defaults.Node.Name, defaults.Node.Advertise
	cfg.Members, cfg.API.Names = defaults.Members, defaults.API.Names
	cfg.Relay.Servers = defaults.Relay.Servers
	cfg.Mount.Dir = defaults.Mount.Dir
	cfg.Agent.Servers, cfg.Agent.Labels = defaults.Agent.Servers, defaults.Agent.Labels
	if diff := cmp.Diff(defaults, cfg, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("the sample shows values that are not the defaults (-default +sample):\n%s", diff)
	}
}

// No input makes the reader panic, and what is accepted is valid.
func FuzzFile(f *testing.F) {
	f.Add(Sample())
	f.Add(hiddenSetting.ReplaceAllString(Sample(), "$1$2"))
	f.Add("members: [{name: c1, role: controller, address: h}]\nagent: {labels: {a: b}, servers: a,b}")
	f.Add("? [a]\n: b\nnode: &x {name: *x}")
	f.Fuzz(func(t *testing.T, text string) {
		r := newReader(schemaOf(reflect.TypeFor[Config]()))
		r.document(Origin{Source: FromFile, Name: "fuzz"}, []byte(text))
		for _, p := range r.problems {
			if line := p.String(); strings.ContainsAny(line, "\n\r\x1b") {
				t.Errorf("problem is not one printable line: %q", line)
			}
		}
		cfg := Default()
		if _, err := r.overlay(&cfg, r.layer); err != nil {
			t.Errorf("what was read cannot be decoded: %v", err)
		}
	})
}
