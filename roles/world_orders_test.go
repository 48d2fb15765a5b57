package roles

import (
	"fmt"

	"pgregory.net/rapid"
)

// orderActions are what operators may order of the request that the owner has, on
// any of its steps, whether it fits or not.
func (w *world) orderActions(may func(kind, name string, weight int, do func())) {
	var names []string
	for _, st := range w.owner.Steps {
		names = append(names, st.Name)
	}
	step := func(label string) string { return rapid.SampledFrom(names).Draw(w.t, label) }
	may("hold", " all", 1, func() { w.happens(Hold{By: "ada"}) })
	may("hold", " one", 1, func() { w.happens(Hold{Step: step("held"), By: "ada"}) })
	may("hold", " release all", 2, func() { w.happens(Release{By: "ada"}) })
	may("hold", " release one", 2, func() { w.happens(Release{Step: step("released"), By: "ada"}) })
	may("skip", "", 1, func() { w.happens(Skip{Step: step("skipped"), By: "ada"}) })
	may("rerun", "", 3, func() {
		w.happens(Rerun{Step: step("run again"), From: rapid.Bool().Draw(w.t, "from"), By: "ada"})
	})
	may("finish", "", 1, func() {
		w.happens(Finish{As: rapid.SampledFrom([]RequestStatus{RequestSucceeded, RequestFailed, RequestCancelled}).Draw(w.t, "as"), By: "ada"})
	})
	may("amend", " insert", 1, func() {
		w.inserts++
		o := Insert{Def: genStep(w.t, fmt.Sprintf("x%d", w.inserts), names), By: "ada"}
		if rapid.Bool().Draw(w.t, "before") {
			o.Before = step("before")
		}
		if o.Before == "" || rapid.Bool().Draw(w.t, "after") {
			o.After = step("after")
		}
		w.happens(o)
	})
	may("amend", " change", 2, func() {
		name := step("changed")
		w.happens(Amend{Step: name, Def: genStep(w.t, name, names), By: "ada"})
	})
}
