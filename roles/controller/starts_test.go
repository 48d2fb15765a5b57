package controller

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"uac/roles"
	"uac/roles/wire"
)

// What a step says reaches its agent, with the outputs of the steps before it.
func TestStartSaysWhatTheStepSays(t *testing.T) {
	p := &roles.Process{Name: "p", Params: []roles.Param{{Name: "version", Default: "1"}}, Steps: []roles.StepDef{
		{Name: "a", On: roles.OnSuccess, Agent: roles.Selector{Name: "a1"}, Run: "true", Outputs: []string{"x-1"}},
		{
			Name: "b", Needs: []string{"a"}, On: roles.OnSuccess, Agent: roles.Selector{Name: "a1"}, Argv: []string{"mail", "-s", "done"},
			Stdin: "text", Env: map[string]string{"E": "1"}, Dir: "/srv", RunAs: "deploy", Timeout: 1, KillGrace: 2, OutputLimit: 3,
			Outputs: []string{"y"}, Priority: -4, Repeatable: true, StopWhenAlone: 60_000_000_000,
		},
	}}
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	r, err := roles.NewRequest(p, roles.RequestOptions{ID: newID()})
	if err != nil {
		t.Fatal(err)
	}
	s, err := roles.NewState(r, 1)
	if err != nil {
		t.Fatal(err)
	}
	journal := roles.Journal{ID: "j"}
	for _, ev := range []roles.Event{
		roles.Claimed{Fence: roles.Fence{Generation: 1, Revision: 1}},
		roles.AgentChosen{Step: "a", Agent: "a1", Journal: journal},
		reportOf("a1", journal, &wire.Attempt{Step: "a", Attempt: 1, State: wire.State_EXITED, End: &wire.End{Outputs: map[string]string{"x-1": "v"}}}),
	} {
		if s, _, err = roles.Next(s, ev, ""); err != nil {
			t.Fatal(err)
		}
	}
	params := map[string]string{"version": "1"}
	for i, want := range []*wire.Start{
		{Request: r.ID, Step: "a", Script: "true", Params: params, Outputs: []string{"x-1"}},
		{
			Request: r.ID, Step: "b", Argv: []string{"mail", "-s", "done"}, Stdin: []byte("text"), Params: params,
			Env: map[string]string{"E": "1", "UAC_OUTPUT_a_x_1": "v"}, Dir: "/srv", RunAs: "deploy",
			TimeoutNanos: 1, KillGraceNanos: 2, OutputLimit: 3, Outputs: []string{"y"}, Priority: -4, StopWhenAloneNanos: 60_000_000_000,
		},
	} {
		if diff := cmp.Diff(want, startOf(s, i), protocmp.Transform()); diff != "" {
			t.Errorf("start (-want +got):\n%s", diff)
		}
	}
	if env := s.Def(1).Env; len(env) != 1 {
		t.Errorf("the definition has got %v", env)
	}
}
