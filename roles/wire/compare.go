package wire

import "cmp"

// Compare orders fences by generation, then revision: negative when f is lower
// than o. A nil fence is the lowest.
func (f *Fence) Compare(o *Fence) int {
	return cmp.Or(
		cmp.Compare(f.GetGeneration(), o.GetGeneration()),
		cmp.Compare(f.GetRevision(), o.GetRevision()),
	)
}

// Same reports whether both name one link of one agent.
func (l *LinkID) Same(o *LinkID) bool {
	return l.GetNumber() == o.GetNumber() && l.GetNonce() == o.GetNonce()
}
