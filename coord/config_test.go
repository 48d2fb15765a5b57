package coord

import (
	"strings"
	"testing"
	"time"
)

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	valid := func() Config {
		c := DefaultConfig()
		c.Name, c.Role, c.Cluster, c.DataDir = "c1", RoleController, "test", "/data"
		c.Peers = []Peer{
			{Name: "c1", Role: RoleController, Raft: "h1:7601", Link: "h1:7602"},
			{Name: "w.1_a-B", Role: RoleWatch, Raft: "[::1]:7601", Link: "h2:7602"},
		}
		return c
	}
	tests := map[string]struct {
		change func(*Config)
		want   string // part of the message; empty: valid
	}{
		"defaults":                   {func(*Config) {}, ""},
		"quick timers":               {func(c *Config) { c.SilenceTimeout, c.JoinTimeout = 50*time.Millisecond, 100*time.Millisecond }, ""},
		"no name":                    {func(c *Config) { c.Name = "" }, "node name is empty"},
		"no cluster":                 {func(c *Config) { c.Cluster = "" }, "cluster name is empty"},
		"no data directory":          {func(c *Config) { c.DataDir = "" }, "data directory is empty"},
		"role of an agent":           {func(c *Config) { c.Role = "agent" }, `role "agent"`},
		"not a member":               {func(c *Config) { c.Name = "c9" }, `"c9" is not in the list`},
		"listed with another role":   {func(c *Config) { c.Role = RoleWatch }, "listed as controller"},
		"listed twice":               {func(c *Config) { c.Peers = append(c.Peers, c.Peers[0]) }, `"c1" is listed twice`},
		"no controller":              {func(c *Config) { c.Role, c.Peers[0].Role = RoleWatch, RoleWatch }, "no controller"},
		"slash in a name":            {func(c *Config) { c.Peers[1].Name = "a/b" }, `"a/b"`},
		"comma in a name":            {func(c *Config) { c.Peers[1].Name = "a,b" }, `"a,b"`},
		"nameless member":            {func(c *Config) { c.Peers[1].Name = "" }, `member name ""`},
		"address without a port":     {func(c *Config) { c.Peers[1].Link = "h2" }, `"h2" is not host:port`},
		"silence too short":          {func(c *Config) { c.SilenceTimeout = 49 * time.Millisecond }, "silence_timeout"},
		"join not above silence":     {func(c *Config) { c.JoinTimeout = c.SilenceTimeout }, "join_timeout"},
		"lease of part of a second":  {func(c *Config) { c.Lease += time.Millisecond }, "whole seconds"},
		"no lease":                   {func(c *Config) { c.Lease = 0 }, "lease"},
		"stall not below the lease":  {func(c *Config) { c.StallTimeout = c.Lease }, "must be shorter than lease"},
		"stall below the idle write": {func(c *Config) { c.StallTimeout = time.Second }, "stall_timeout"},
		"unknown failover":           {func(c *Config) { c.Failover = "perhaps" }, `"perhaps"`},
		"small quota":                {func(c *Config) { c.QuotaBytes = 1 << 20 }, "quota"},
		"no history":                 {func(c *Config) { c.KeepRevisions = 0 }, "kept revisions"},
		"alone at once":              {func(c *Config) { c.AloneAfter = 0 }, "continue alone"},
	}
	for name, tc := range tests {
		c := valid()
		tc.change(&c)
		err := c.Validate()
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
		if tc.want != "" {
			if _, err := New(c, Deps{}); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
	}
	c := valid()
	c.Name, c.Failover = "", "perhaps"
	if err := c.Validate(); err == nil || strings.Count(err.Error(), "\n") < 1 {
		t.Errorf("got %v, want every mistake", err)
	}
}
