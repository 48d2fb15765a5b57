package agent

import (
	"testing"

	"uac/roles/wire"
)

func TestAttemptRunsAndReports(t *testing.T) {
	w := newWorld(t)
	c := w.controller("c1")
	w.agent([]*testController{c})
	l := c.link()
	k := key{"R1", "build", 1}
	l.start(startOf(k, 5, "echo hello; exit 3"))
	end := l.report(k, wire.State_EXITED)
	if got := end.GetAttempt().GetEnd(); got.GetCode() != 3 || got.GetStopped() != wire.Stop_NOT_STOPPED {
		t.Errorf("end %v", got)
	}
}
