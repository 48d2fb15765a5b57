package config

import (
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"uac/coord"
	"uac/roles"
)

func TestCoord(t *testing.T) {
	cfg, _, err := loadText(t, roles.RoleWatch, `
node: {name: w1, data_dir: /d}
cluster: {name: shop, silence_timeout: 100ms, stall_timeout: 2s, join_timeout: 3s, lease: 4s, failover: confirm}
etcd: {quota: 1GiB}
members:
- {name: c1, role: controller, address: 10.0.0.1}
- {name: w1, role: watch, address: 10.0.0.2, raft: "10.0.0.2:8601"}
`)
	if err != nil {
		t.Fatal(err)
	}
	want := coord.DefaultConfig()
	want.Name, want.Role, want.Cluster = "w1", coord.RoleWatch, "shop"
	want.DataDir, want.RaftListen = "/d/coord", "0.0.0.0:7601"
	want.Peers = []coord.Peer{
		{Name: "c1", Role: coord.RoleController, Raft: "10.0.0.1:7601", Link: "10.0.0.1:7602"},
		{Name: "w1", Role: coord.RoleWatch, Raft: "10.0.0.2:8601", Link: "10.0.0.2:7602"},
	}
	want.SilenceTimeout, want.StallTimeout = 100*time.Millisecond, 2*time.Second
	want.JoinTimeout, want.Lease = 3*time.Second, 4*time.Second
	want.Failover, want.QuotaBytes = coord.FailoverConfirm, 1<<30
	if diff := cmp.Diff(want, cfg.Coord(), cmpopts.IgnoreUnexported(coord.Config{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// A field that coord adds is not forgotten here.
	v := reflect.ValueOf(cfg.Coord())
	for i := range v.NumField() {
		if v.Type().Field(i).IsExported() && v.Field(i).IsZero() {
			t.Errorf("coord.Config.%s is not set", v.Type().Field(i).Name)
		}
	}
}

func TestRaftListen(t *testing.T) {
	for _, tt := range []struct{ listen, member, want string }{
		{":7601", "10.0.0.1", "0.0.0.0:7601"},
		{":7601", "fd00::1", "[::]:7601"},
		{"127.0.0.1:1", "fd00::1", "127.0.0.1:1"},
	} {
		cfg := Default()
		cfg.Listen.Raft, cfg.Members = tt.listen, []Member{{Address: tt.member}}
		if got := cfg.raftListen(); got != tt.want {
			t.Errorf("%+v: got %s", tt, got)
		}
	}
}

// What passes here passes in the component: it never refuses, late and without
// a line number, what was accepted at start.
func TestValidImpliesValidForCoord(t *testing.T) {
	durations := []time.Duration{
		0, 10 * time.Millisecond, 50 * time.Millisecond, time.Second, 1500 * time.Millisecond, 2 * time.Second,
		3 * time.Second, 5 * time.Second, 6 * time.Second, time.Minute, time.Hour,
	}
	// Each changes a valid configuration in one place.
	changes := []func(t *rapid.T, c *Config){
		func(t *rapid.T, c *Config) {
			c.Cluster.SilenceTimeout = rapid.SampledFrom(durations).Draw(t, "silence")
		},
		func(t *rapid.T, c *Config) { c.Cluster.StallTimeout = rapid.SampledFrom(durations).Draw(t, "stall") },
		func(t *rapid.T, c *Config) { c.Cluster.JoinTimeout = rapid.SampledFrom(durations).Draw(t, "join") },
		func(t *rapid.T, c *Config) { c.Cluster.Lease = rapid.SampledFrom(durations).Draw(t, "lease") },
		func(t *rapid.T, c *Config) {
			c.Cluster.Failover = rapid.SampledFrom([]string{"", "confirm"}).Draw(t, "failover")
		},
		func(t *rapid.T, c *Config) {
			c.Cluster.Name = rapid.SampledFrom([]string{"", "shop"}).Draw(t, "cluster")
		},
		func(t *rapid.T, c *Config) {
			c.Etcd.Quota = rapid.SampledFrom([]int64{0, 1 << 20, 128 << 20}).Draw(t, "quota")
		},
		func(t *rapid.T, c *Config) {
			c.Node.Name = rapid.SampledFrom([]string{"", "m1", "m2", "m9"}).Draw(t, "name")
		},
		func(t *rapid.T, c *Config) {
			c.Node.Role = rapid.SampledFrom([]roles.Role{"", roles.RoleWatch}).Draw(t, "role")
		},
		func(t *rapid.T, c *Config) { c.Node.DataDir = rapid.SampledFrom([]string{"", "/d"}).Draw(t, "dir") },
		func(t *rapid.T, c *Config) { c.Members = c.Members[:rapid.IntRange(0, 3).Draw(t, "members")] },
		func(t *rapid.T, c *Config) {
			m := &c.Members[rapid.IntRange(0, 2).Draw(t, "member")%max(1, len(c.Members))]
			m.Name = rapid.SampledFrom([]string{"", "m0", "m1", "m9"}).Draw(t, "member name")
			m.Role = rapid.SampledFrom([]roles.Role{"", roles.RoleController, roles.RoleWatch, roles.RoleAgent}).Draw(t, "member role")
			m.Address = rapid.SampledFrom([]string{"", "h9"}).Draw(t, "address")
			m.Link = rapid.SampledFrom([]string{"", "h", "h:1"}).Draw(t, "link")
		},
	}
	accepted := 0
	rapid.Check(t, func(t *rapid.T) {
		cfg := Default()
		cfg.Node = Node{Role: roles.RoleController, Name: "m0", DataDir: "/d", Advertise: "h0"}
		cfg.Members = []Member{
			{Name: "m0", Role: roles.RoleController, Address: "h0"},
			{Name: "m1", Role: roles.RoleController, Address: "h1"},
			{Name: "m2", Role: roles.RoleWatch, Address: "h2"},
		}
		for range rapid.IntRange(0, 3).Draw(t, "changes") {
			if change := rapid.SampledFrom(changes).Draw(t, "change"); len(cfg.Members) > 0 {
				change(t, &cfg)
			}
		}
		if cfg.Validate() != nil {
			return
		}
		accepted++
		if err := cfg.Coord().Validate(); err != nil {
			t.Errorf("accepted by config, refused by coord: %v\n%+v", err, cfg)
		}
	})
	if accepted == 0 {
		t.Error("no configuration was accepted: the test tested nothing")
	}
}
