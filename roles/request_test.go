package roles

import (
	"bytes"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNewRequest(t *testing.T) {
	p := deployWebProcess()
	r, err := NewRequest(p, RequestOptions{
		ID: testID, Params: map[string]string{"version": "1.2"}, RequestedBy: "ada", RequestedAt: "now", IdempotencyKey: "k",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &Request{
		Format: 1, ID: testID, Process: *p, Params: map[string]string{"version": "1.2", "mirror": "1.10"},
		RequestedBy: "ada", RequestedAt: "now", IdempotencyKey: "k",
		Digest: ContentDigest("deploy-web", map[string]string{"version": "1.2"}),
	}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
}

func TestNewRequestRefuses(t *testing.T) {
	good := RequestOptions{ID: testID, Params: map[string]string{"version": "1"}}
	with := func(change func(*RequestOptions)) RequestOptions {
		o := good
		o.Params = maps.Clone(good.Params)
		change(&o)
		return o
	}
	for _, tt := range []struct {
		name    string
		options RequestOptions
		want    string
	}{
		{"missing", RequestOptions{ID: testID}, "process deploy-web: params.version: is required"},
		{"empty", with(func(o *RequestOptions) { o.Params["version"] = "" }), "process deploy-web: params.version: is required"},
		{"unknown", with(func(o *RequestOptions) { o.Params["vresion"] = "1" }), `process deploy-web: there is no parameter "vresion"; did you mean version?`},
		{
			"all of it", RequestOptions{ID: testID, Params: map[string]string{"a": "", "b": ""}},
			"process deploy-web: params.version: is required\n" +
				`process deploy-web: there is no parameter "a"` + "\n" + `process deploy-web: there is no parameter "b"`,
		},
		{"NUL", with(func(o *RequestOptions) { o.Params["version"] = "1\x00" }), "process deploy-web: params.version: contains a NUL character"},
		{"invalid UTF-8", with(func(o *RequestOptions) { o.Params["version"] = "\xff" }), "process deploy-web: params.version: is not valid UTF-8"},
		{"long value", with(func(o *RequestOptions) { o.Params["version"] = strings.Repeat("x", MaxValue+1) }), "process deploy-web: params.version: has 32769 bytes, at most 32768 are allowed"},
		{"no id", with(func(o *RequestOptions) { o.ID = "" }), `process deploy-web: id: request id "" is not a ULID`},
		{"lower-case id", with(func(o *RequestOptions) { o.ID = strings.ToLower(testID) }), `process deploy-web: id: request id "01j9zk8q3v4w5x6y7z8a9bcdef" is not a ULID`},
		{"id too large", with(func(o *RequestOptions) { o.ID = "8" + testID[1:] }), `process deploy-web: id: request id "81J9ZK8Q3V4W5X6Y7Z8A9BCDEF" is not a ULID`},
		{"long key", with(func(o *RequestOptions) { o.IdempotencyKey = strings.Repeat("x", 256) }), "process deploy-web: idempotency key: must be at most 255 bytes of UTF-8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := NewRequest(deployWebProcess(), tt.options)
			var problems Problems
			if !errors.As(err, &problems) || err.Error() != tt.want {
				t.Errorf("got:\n%v\nwant:\n%s", err, tt.want)
			}
		})
	}
	many := &Process{Name: "many"}
	options := RequestOptions{ID: testID, Params: make(map[string]string)}
	for i := range 9 {
		name := string(rune('a' + i))
		many.Params = append(many.Params, Param{Name: name})
		options.Params[name] = strings.Repeat("x", MaxValue)
	}
	if _, err := NewRequest(many, options); err == nil || err.Error() != "process many: params: have 294912 bytes together, at most 262144 are allowed" {
		t.Errorf("too much together: %v", err)
	}
}

func TestContentDigest(t *testing.T) {
	one := ContentDigest("p", map[string]string{"a": "1", "b": "2"})
	if again := ContentDigest("p", map[string]string{"b": "2", "a": "1"}); again != one {
		t.Errorf("the same content has digests %s and %s", one, again)
	}
	for _, other := range []string{
		ContentDigest("q", map[string]string{"a": "1", "b": "2"}),
		ContentDigest("p", map[string]string{"a": "1", "b": "3"}),
		ContentDigest("p", map[string]string{"a": "1"}),
		ContentDigest("p", map[string]string{"a": "1b2"}),
		ContentDigest("pa", map[string]string{"1b": "2"}),
	} {
		if other == one {
			t.Errorf("other content has the same digest %s", other)
		}
	}
}

func TestRequestEncode(t *testing.T) {
	p := define(t, "a")
	p.Steps[0].Run = "if [ 1 -lt 2 ] && true; then echo '<&>'; fi"
	r, err := NewRequest(p, RequestOptions{ID: testID})
	if err != nil {
		t.Fatal(err)
	}
	text, err := r.Encode()
	if err != nil || !bytes.Contains(text, []byte("'<&>'")) || bytes.HasSuffix(text, []byte("\n")) {
		t.Errorf("encoded %q, error %v", text, err)
	}
	r.Process.Steps = nil
	for range 5 {
		step := p.Steps[0]
		step.Run = strings.Repeat("x", MaxRun)
		r.Process.Steps = append(r.Process.Steps, step)
	}
	_, err = r.Encode()
	var problems Problems
	if !errors.As(err, &problems) || !strings.Contains(err.Error(), "at most 1048576 are allowed") {
		t.Errorf("a request of more than 1 MiB: error %v", err)
	}
}

func TestNames(t *testing.T) {
	long := strings.Repeat("x", 64)
	for _, tt := range []struct {
		what      string
		check     func(string) error
		good, bad []string
	}{
		{
			"node", CheckNodeName,
			[]string{"a", "a1", "web-1", "web1.example.com", "0", strings.Repeat("x", 63)},
			[]string{"", "A", "-a", "a-", "a.-b", "a..b", ".a", "a.", "a_b", "a/b", "é", "a b", long},
		},
		{
			"step", CheckName,
			[]string{"a", "A1", "a.b", "a-b_c", "9", "a-", strings.Repeat("x", 63)},
			[]string{"", ".", "..", "-a", "_a", "a/b", "a b", "a\n", "é", long},
		},
		{
			"parameter", CheckParamName,
			[]string{"a", "_", "A_1", strings.Repeat("x", 63)},
			[]string{"", "1a", "a-b", "a.b", "a=b", "é", long},
		},
		{
			"role", func(s string) error { _, err := ParseRole(s); return err },
			[]string{"controller", "agent", "relay", "watch"},
			[]string{"", "Agent", "server"},
		},
		{
			"label value", func(s string) error { return CheckLabel("tier", s) },
			[]string{"", "web", "1.2_3-4", "-x"},
			[]string{"a b", "a/b", "é", long},
		},
		{
			"label key", func(s string) error { return CheckLabel(s, "x") },
			[]string{"tier", "a.b"},
			[]string{"", "a/b", "-x", long},
		},
	} {
		for _, s := range tt.good {
			if err := tt.check(s); err != nil {
				t.Errorf("%s %q: %v", tt.what, s, err)
			}
		}
		for _, s := range tt.bad {
			if tt.check(s) == nil {
				t.Errorf("%s %q is accepted", tt.what, s)
			}
		}
	}
}

func TestSelector(t *testing.T) {
	web := Selector{Labels: map[string]string{"zone": "1", "tier": "web"}}
	for _, tt := range []struct {
		selector Selector
		text     string
		name     string
		labels   map[string]string
		want     bool
	}{
		{Selector{Name: "a1"}, "name=a1", "a1", nil, true},
		{Selector{Name: "a1"}, "name=a1", "a2", nil, false},
		{web, "labels:tier=web,zone=1", "a1", map[string]string{"tier": "web", "zone": "1", "more": "x"}, true},
		{web, "labels:tier=web,zone=1", "a1", map[string]string{"tier": "web"}, false},
		{web, "labels:tier=web,zone=1", "a1", map[string]string{"tier": "web", "zone": "2"}, false},
		{Selector{Cluster: "web"}, "cluster=web", "web", map[string]string{"tier": "web"}, false}, // the fleet knows
		{Selector{}, "labels:", "a1", map[string]string{"tier": "web"}, false},
	} {
		if got := tt.selector.String(); got != tt.text {
			t.Errorf("text %q, want %q", got, tt.text)
		}
		if got := tt.selector.Matches(tt.name, tt.labels); got != tt.want {
			t.Errorf("%s matches %s %v: %v", tt.selector, tt.name, tt.labels, got)
		}
	}
	got := deployWebProcess().Selectors()
	if want := []Selector{{Name: "web1.example.com"}, web}; !cmp.Equal(want, got) {
		t.Errorf("selectors %v, want %v", got, want)
	}
}

func TestMembers(t *testing.T) {
	web := map[string]string{"tier": "web", "zone": "1"}
	for _, tt := range []struct {
		cluster AgentCluster
		labels  map[string]string
		want    bool
	}{
		{AgentCluster{Labels: map[string]string{"tier": "web"}}, web, true},
		{AgentCluster{Labels: map[string]string{"tier": "db"}}, web, false},
		{AgentCluster{Agents: []string{"a2", "a1"}}, nil, true},
		{AgentCluster{Agents: []string{"a2"}}, web, false},
		{AgentCluster{Labels: map[string]string{"tier": "db"}, Agents: []string{"a1"}}, web, true},
		{AgentCluster{}, web, false},
	} {
		if got := tt.cluster.Has("a1", tt.labels); got != tt.want {
			t.Errorf("%+v has a1 with %v: %v", tt.cluster, tt.labels, got)
		}
	}
}

func TestFenceCompare(t *testing.T) {
	ordered := []Fence{{}, {0, 7}, {1, 0}, {1, 5}, {1, 6}, {2, 1}}
	for i, f := range ordered {
		for j, g := range ordered {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := f.Compare(g); got != want {
				t.Errorf("%v against %v: %d, want %d", f, g, got, want)
			}
		}
	}
}

func TestValidateTellsWhere(t *testing.T) {
	p := deployWebProcess()
	p.Steps[1].Timeout = -1
	p.Steps[2].Needs = []string{"swich"}
	err := p.Validate()
	const want = "process deploy-web: steps[switch].timeout: -1ns must not be negative\n" +
		`process deploy-web: steps[rollback].needs[0]: there is no step "swich"; did you mean switch?`
	if err == nil || err.Error() != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
	if err := deployWebProcess().Validate(); err != nil {
		t.Error(err)
	}
}
