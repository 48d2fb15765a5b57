package main

import (
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"uac/roles"
)

func TestTimerSlack(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	slack := func(role roles.Role) string {
		cmd := exec.CommandContext(t.Context(), "cat", "/proc/self/timerslack_ns")
		var out strings.Builder
		cmd.Stdout = &out
		if err := withTimerSlack(slackOf(role), cmd.Start); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out.String())
	}
	usual := slack(roles.RoleAgent)
	for _, role := range []roles.Role{roles.RoleController, roles.RoleWatch} {
		if got := slack(role); got != "500000" {
			t.Errorf("%s: %s ns", role, got)
		}
	}
	if got := slack(roles.RoleAgent); got != usual || got == "500000" {
		t.Errorf("an agent after members: %s ns, want %s as before", got, usual)
	}
}
