package controller

import (
	"slices"
	"testing"
	"time"

	"uac/coord"
)

func TestWays(t *testing.T) {
	now := time.Now()
	node := func(name string, epoch int64, ago time.Duration) coord.NodeStatus {
		return coord.NodeStatus{NodeRecord: coord.NodeRecord{Name: name}, Epoch: epoch, Heard: now.Add(-ago)}
	}
	for _, tt := range []struct {
		name  string
		known []coord.NodeStatus
		want  []string
	}{
		{"directly, then through the others", []coord.NodeStatus{node("c1", 1, 0), node("c2", 2, 0), node("w1", 3, 0)}, []string{"c2", "w1"}},
		{"who is silent comes last", []coord.NodeStatus{node("c1", 1, 0), node("c2", 2, time.Minute), node("w1", 3, 0)}, []string{"w1", "c2"}},
		{"all are silent", []coord.NodeStatus{node("c1", 1, 0), node("c2", 2, time.Minute), node("w1", 3, time.Minute)}, []string{"c2", "w1"}},
		{"who has no session passes nothing on", []coord.NodeStatus{node("c1", 1, 0), node("c2", 2, 0), node("w1", 0, 0)}, []string{"c2"}},
		{"nothing is known", nil, []string{"c2"}},
	} {
		if got := ways("c1", "c2", tt.known, now); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}
