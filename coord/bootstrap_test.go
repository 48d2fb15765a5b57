package coord

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDecideStart(t *testing.T) {
	hello := func(incarnation string, recorded map[string]string) helloMsg {
		return helloMsg{origin: origin{Incarnation: incarnation, Recorded: recorded, HasData: recorded != nil}}
	}
	type hellos = map[string]helloMsg
	fresh := origin{Incarnation: "i1"}
	peers := []string{"w1", "c2"}
	all := map[string]string{"c1": "i1", "c2": "i2", "w1": "i3"}
	tests := []struct {
		name   string
		own    origin
		others []string
		hellos hellos
		want   startDecision
		reason string
	}{
		{name: "alone", own: fresh,
			want: startDecision{Kind: startBootstrap, Set: map[string]string{"c1": "i1"}}},
		{name: "nobody answered", own: fresh, others: peers,
			want: startDecision{Kind: startWait, Missing: []string{"c2", "w1"}}, reason: "waiting for c2, w1"},
		{name: "one answered", own: fresh, others: peers, hellos: hellos{"c2": hello("i2", nil)},
			want: startDecision{Kind: startWait, Missing: []string{"w1"}}, reason: "waiting for w1"},
		{name: "all answered, none has data", own: fresh, others: peers,
			hellos: hellos{"c2": hello("i2", nil), "w1": hello("i3", nil)},
			want:   startDecision{Kind: startBootstrap, Set: all}},
		{name: "recorded earlier, stopped before etcd started", own: origin{Incarnation: "i1", Recorded: all}, others: peers,
			hellos: hellos{"c2": hello("i2", all), "w1": hello("i3", nil)},
			want:   startDecision{Kind: startBootstrap, Set: all}},
		{name: "others have started and know this member", own: fresh, others: peers,
			hellos: hellos{"c2": hello("i2", all), "w1": hello("i3", all)},
			want:   startDecision{Kind: startBootstrap, Set: all}},
		{name: "one knows this member, another has not answered", own: fresh, others: peers,
			hellos: hellos{"c2": hello("i2", all)},
			want:   startDecision{Kind: startWait, Missing: []string{"w1"}}, reason: "waiting for w1"},
		{name: "a third member was wiped", own: fresh, others: peers,
			hellos: hellos{"c2": hello("i2", all), "w1": hello("i9", nil)},
			want:   startDecision{Kind: startBootstrap, Set: all}},
		{name: "this member was wiped, not all have answered", own: origin{Incarnation: "i8"}, others: peers,
			hellos: hellos{"w1": hello("i3", all)},
			want:   startDecision{Kind: startReplace, By: "w1"}, reason: "has lost its data"},
		{name: "this member was wiped, one does not know", own: origin{Incarnation: "i8"}, others: peers,
			hellos: hellos{"c2": hello("i2", map[string]string{"c1": "i8"}), "w1": hello("i3", all)},
			want:   startDecision{Kind: startReplace, By: "w1"}, reason: "has lost its data"},
		{name: "a record without data binds nobody", own: origin{Incarnation: "i8"}, others: peers,
			hellos: hellos{
				"c2": {origin: origin{Incarnation: "i2", Recorded: all}},
				"w1": hello("i3", nil),
			},
			want: startDecision{Kind: startBootstrap, Set: map[string]string{"c1": "i8", "c2": "i2", "w1": "i3"}}},
		{name: "the cluster was formed without this member", own: fresh, others: peers,
			hellos: hellos{"c2": hello("i2", map[string]string{"c2": "i2", "w1": "i3"})},
			want:   startDecision{Kind: startReplace, By: "c2"}, reason: "was formed without c1"},
		{name: "a copied disk", own: fresh, others: peers, hellos: hellos{"c2": hello("i1", nil)},
			want: startDecision{Kind: startReplace, By: "c2"}, reason: "is a copy"},
		{name: "with data", own: origin{Incarnation: "i1", Recorded: all, HasData: true}, others: peers,
			want: startDecision{Kind: startRejoin}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := decideStart("c1", tt.own, tt.others, tt.hellos)
			if !strings.Contains(got.Reason, tt.reason) || (got.Reason == "") != (tt.reason == "") {
				t.Errorf("reason is %q, want it to contain %q", got.Reason, tt.reason)
			}
			got.Reason = ""
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
