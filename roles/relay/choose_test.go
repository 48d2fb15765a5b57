package relay

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"uac/roles/wire"
)

func TestChoose(t *testing.T) {
	c1, c2 := known{name: "c1", up: true}, known{name: "c2", up: true}
	r9 := known{name: "r9", relay: true, up: true}
	down := func(k known) known { k.up = false; return k }
	busy := func(k known, n int) known { k.carried = n; return k }
	for _, tt := range []struct {
		name     string
		servers  []known
		ask      *wire.RelayAsk
		order    []int
		ruledOut bool
	}{
		{"nobody was met", []known{{}, {}}, &wire.RelayAsk{}, nil, false},
		{"in order", []known{c1, c2}, &wire.RelayAsk{}, []int{0, 1}, false},
		{"who carries less comes first", []known{busy(c1, 3), busy(c2, 2)}, &wire.RelayAsk{}, []int{1, 0}, false},
		{"who is silent comes last", []known{down(c1), busy(c2, 9)}, &wire.RelayAsk{}, []int{1, 0}, false},
		{"one it has", []known{c1, c2}, &wire.RelayAsk{Not: []string{"c1"}}, []int{1}, true},
		{"all it has", []known{c1, c2}, &wire.RelayAsk{Not: []string{"c2", "c1"}}, nil, true},
		{"one it has, and nobody was met", []known{{}, c1}, &wire.RelayAsk{Not: []string{"c1"}}, nil, true},
		{"a relay comes after controllers", []known{r9, busy(c1, 5)}, &wire.RelayAsk{}, []int{1, 0}, false},
		{"but before silent ones", []known{down(c1), r9}, &wire.RelayAsk{}, []int{1, 0}, false},
		{"a relay is asked whatever it leads to", []known{r9}, &wire.RelayAsk{Not: []string{"c1", "c2"}}, []int{0}, false},
		{"not the relay that asks", []known{r9, c1}, &wire.RelayAsk{Path: []string{"r9"}}, []int{1}, false},
		{"a controller called like a relay", []known{{name: "r9", up: true}}, &wire.RelayAsk{Path: []string{"r9"}}, []int{0}, false},
	} {
		order, ruledOut := choose(tt.servers, tt.ask)
		if diff := cmp.Diff(tt.order, order); diff != "" || ruledOut != tt.ruledOut {
			t.Errorf("%s: ruled out %t, want %t; order (-want +got):\n%s", tt.name, ruledOut, tt.ruledOut, diff)
		}
	}
}

func TestWindow(t *testing.T) {
	var w window
	start := time.Now()
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	if diff := cmp.Diff(RoundTrip{}, w.stats(start)); diff != "" {
		t.Errorf("an empty window (-want +got):\n%s", diff)
	}
	for i, ms := range []int{9, 2, 4, 3, 100} {
		w.add(at(i), time.Duration(ms)*time.Millisecond)
	}
	for _, tt := range []struct {
		second int
		want   RoundTrip
	}{
		{4, RoundTrip{Min: 2 * time.Millisecond, Median: 4 * time.Millisecond, Max: 100 * time.Millisecond, Samples: 5}},
		{29, RoundTrip{Min: 2 * time.Millisecond, Median: 4 * time.Millisecond, Max: 100 * time.Millisecond, Samples: 5}},
		{30, RoundTrip{Min: 2 * time.Millisecond, Median: 4 * time.Millisecond, Max: 100 * time.Millisecond, Samples: 4}},
		{33, RoundTrip{Min: 100 * time.Millisecond, Median: 100 * time.Millisecond, Max: 100 * time.Millisecond, Samples: 1}},
		{34, RoundTrip{}},
	} {
		if diff := cmp.Diff(tt.want, w.stats(at(tt.second))); diff != "" {
			t.Errorf("after %d s (-want +got):\n%s", tt.second, diff)
		}
	}
}

func TestConfigIsValidated(t *testing.T) {
	good := DefaultConfig()
	good.Name, good.Servers = "r1", []string{"c1:7602"}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Config){
		"no name":        func(c *Config) { c.Name = "" },
		"no servers":     func(c *Config) { c.Servers = nil },
		"no port":        func(c *Config) { c.Servers = []string{"c1"} },
		"twice":          func(c *Config) { c.Servers = []string{"c1:1", "c1:1"} },
		"no links":       func(c *Config) { c.MaxLinks = 0 },
		"none per agent": func(c *Config) { c.MaxPerAgent = 0 },
		"no joins":       func(c *Config) { c.MaxJoins = 0 },
		"no join rate":   func(c *Config) { c.JoinRate = 0 },
		"no time":        func(c *Config) { c.AskTimeout = 0 },
		"no beats":       func(c *Config) { c.BeatInterval = -1 },
	} {
		c := good
		change(&c)
		if _, err := New(c, Deps{}); err == nil || c.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
