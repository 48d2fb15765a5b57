package roles

import (
	"strings"
	"testing"
)

// A word that is long enough to take hours is not compared.
func TestNearest(t *testing.T) {
	for _, tt := range []struct {
		word string
		want string
	}{
		{"silence", ""}, {"silence_timeuot", "silence_timeout"}, {"lese", "lease"}, {"LEASE", "lease"}, {"elase", "lease"}, {"", ""}, {"x", ""},
		{strings.Repeat("long", 1<<18), ""},
	} {
		if got := Nearest(tt.word, []string{"silence_timeout", "stall_timeout", "lease", strings.Repeat("lang", 1<<18)}); got != tt.want {
			t.Errorf("Nearest(%.20q) = %.20q, want %q", tt.word, got, tt.want)
		}
	}
}
