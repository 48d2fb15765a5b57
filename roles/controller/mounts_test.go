package controller

import (
	"encoding/json"
	"testing"

	"uac/codestation/mount"
	"uac/roles/controller/api"
)

func TestMountWrites(t *testing.T) {
	c := &Controller{cfg: Config{Name: "c1"}}
	for _, tt := range []struct {
		was, is mount.Kind
		writes  int
		event   string
	}{
		{"", mount.Checking, 0, ""},
		{"", mount.Unconfigured, 0, ""},
		{"", mount.OK, 1, ""},
		{"", mount.Hung, 2, "mount.lost"},
		{mount.OK, mount.Checking, 0, ""}, // a restart
		{mount.OK, mount.OK, 0, ""},
		{mount.OK, mount.Absent, 2, "mount.lost"},
		{mount.Absent, mount.Hung, 1, ""},
		{mount.Hung, mount.OK, 2, "mount.back"},
		{mount.OK, mount.Unconfigured, 1, ""},
	} {
		var before mountRecord
		before.Kind = tt.was
		writes := c.mountWrites(before, mount.State{Kind: tt.is})
		event := ""
		if len(writes) == 2 {
			var e api.Event
			if err := json.Unmarshal(writes[1].Value, &e); err != nil {
				t.Fatal(err)
			}
			event = e.Kind
		}
		if len(writes) != tt.writes || event != tt.event {
			t.Errorf("%q to %q: %d writes, event %q; want %d, %q", tt.was, tt.is, len(writes), event, tt.writes, tt.event)
		}
	}
}
