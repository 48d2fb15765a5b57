package coord

import (
	"slices"
	"strings"
	"time"
)

const (
	// voteFor is how long a yes counts, from when the ask that it names was
	// sent.
	voteFor = 200 * time.Millisecond
	// lossAttempt bounds one attempt at the transaction that follows.
	lossAttempt = 100 * time.Millisecond
	// withholdFor is how long a voter echoes nothing of a process that it voted
	// against, from when it received the ask that it named. That was sent before
	// it was received, so the vote is void and the last attempt that relied on
	// it is over by then; the rest covers clocks of different speed.
	withholdFor = (voteFor + lossAttempt) * 5 / 4
	// askEvery is how often an asker repeats its question.
	askEvery = 50 * time.Millisecond
)

// agreement of a majority that a session is over.
type agreement struct {
	// Voters who agree, sorted, this member included.
	Voters []string
	// Evidence of each of them in words.
	Evidence string
	// Ended tells that this member knows that the process is dead.
	Ended bool
}

// ballots is the asking side: the questions of one member and the answers. It
// is pure: time comes in as an argument.
type ballots struct {
	self   string
	number uint64 // of the last ask; grows over all suspects
	open   map[string]*ballot
}

// ballot is the question whether one session is over.
type ballot struct {
	epoch int64
	asked []numbered
	votes map[string]voteMsg
	// dead holds, by asker, who asked because the process has ended.
	dead map[string]declared
}

// declared is what an asker said of a process that has ended, and when that was
// received. That number of its own does not tell us how old it is; but what has
// ended does not begin again, so all that a delay can do is to outlast a mistake.
type declared struct {
	evidence string
	at       time.Time
}

// numbered is when an ask was sent.
type numbered struct {
	number uint64
	at     time.Time
}

func newBallots(self string) *ballots {
	return &ballots{self: self, open: map[string]*ballot{}}
}

// ask returns the next question about the session. now must be taken before
// the question can leave.
func (b *ballots) ask(now time.Time, suspect string, epoch int64) askMsg {
	o := b.about(suspect, epoch)
	b.number++
	o.asked = slices.DeleteFunc(o.asked, func(n numbered) bool { return now.Sub(n.at) >= voteFor })
	o.asked = append(o.asked, numbered{b.number, now})
	return askMsg{Suspect: suspect, Epoch: epoch, Number: b.number}
}

// about returns the ballot on that session, a new one if there is none.
func (b *ballots) about(suspect string, epoch int64) *ballot {
	o := b.open[suspect]
	if o == nil || o.epoch != epoch {
		o = &ballot{epoch: epoch, votes: map[string]voteMsg{}, dead: map[string]declared{}}
		b.open[suspect] = o
	}
	return o
}

// declared takes in the question of a voter that has evidence that the process has
// ended: it need not be asked.
func (b *ballots) declared(now time.Time, voter string, m *askMsg) {
	if o := b.open[m.Suspect]; m.Dead != "" && (o == nil || o.epoch <= m.Epoch) {
		b.about(m.Suspect, m.Epoch).dead[voter] = declared{m.Dead, now}
	}
}

// forget drops what a voter declared whose connection ended.
func (b *ballots) forget(voter string) {
	for _, o := range b.open {
		delete(o.dead, voter)
	}
}

// vote takes in a voter's answer. The last word about the newest number counts.
func (b *ballots) vote(voter string, v *voteMsg) {
	o := b.open[v.Suspect]
	if o == nil || o.epoch != v.Epoch || v.Number < o.votes[voter].Number {
		return
	}
	o.votes[voter] = *v
}

// valid reports whether the vote is a yes that still counts.
func (o *ballot) valid(now time.Time, v voteMsg) bool {
	if !v.Yes {
		return false
	}
	for _, n := range o.asked {
		if n.number == v.Number {
			return now.Sub(n.at) < voteFor
		}
	}
	return false
}

// agreed returns the agreement at now that the suspect's session is over. own
// is this member's own evidence against it, looked at now too; voters are all
// voting members.
func (b *ballots) agreed(now time.Time, suspect string, epoch int64, own evidence, voters []string) (agreement, bool) {
	if own == 0 || suspect == b.self || !slices.Contains(voters, b.self) {
		return agreement{}, false
	}
	names := []string{b.self}
	why := map[string]string{b.self: own.String()}
	if o := b.open[suspect]; o != nil && o.epoch == epoch {
		for _, v := range voters {
			if v == b.self || v == suspect {
				continue
			}
			if said := o.votes[v]; o.valid(now, said) {
				names = append(names, v)
				why[v] = said.Evidence
			} else if d, ok := o.dead[v]; ok && own&evDead != 0 && now.Sub(d.at) < voteFor {
				names = append(names, v)
				why[v] = d.evidence
			}
		}
	}
	if len(names) < majority(len(voters)) && own&evAliveExpired == 0 {
		return agreement{}, false
	}
	slices.Sort(names)
	words := make([]string, len(names))
	for i, n := range names {
		words[i] = n + ": " + why[n]
	}
	return agreement{Voters: names, Evidence: strings.Join(words, "; "), Ended: own&evDead != 0}, true
}

// booth is the voting side: the questions that others have put to this member.
// It is pure: time comes in as an argument.
type booth map[boothKey]*question

type boothKey struct{ asker, suspect string }

type question struct {
	epoch  int64
	number uint64
	at     time.Time // received
	// yes tells that the answer to this number was yes and stands.
	yes bool
	// told tells that yes was said to an earlier number and never withdrawn.
	told bool
}

// ballotPaper is a vote to be sent.
type ballotPaper struct {
	to string
	voteMsg
	// first tells a yes that follows no other yes about this session.
	first bool
	// received is when the question arrived that the vote names.
	received time.Time
}

// ask takes in a question. The answer is what vote then returns.
func (b booth) ask(now time.Time, asker string, m *askMsg) {
	k := boothKey{asker, m.Suspect}
	q := b[k]
	switch {
	case q == nil || q.epoch != m.Epoch:
		b[k] = &question{epoch: m.Epoch, number: m.Number, at: now}
	case m.Number > q.number:
		*q = question{epoch: m.Epoch, number: m.Number, at: now, told: q.yes}
	}
}

// forget drops the questions of an asker whose connection ended.
func (b booth) forget(asker string) {
	for k := range b {
		if k.asker == asker {
			delete(b, k)
		}
	}
}

// vote returns the votes that follow from this member's present evidence
// against the suspect's session: a yes to each question that is still of use
// and not answered so, a no where a yes no longer holds.
func (b booth) vote(now time.Time, suspect string, epoch int64, e evidence) []ballotPaper {
	var out []ballotPaper
	for k, q := range b {
		if k.suspect != suspect {
			continue
		}
		paper := ballotPaper{to: k.asker, received: q.at,
			voteMsg: voteMsg{Suspect: suspect, Epoch: q.epoch, Number: q.number}}
		switch yes := e != 0 && q.epoch == epoch; {
		case yes && !q.yes && now.Sub(q.at) < voteFor:
			paper.Yes, paper.Evidence, paper.first = true, e.String(), !q.told
			q.yes, q.told = true, true
			out = append(out, paper)
		case !yes && (q.yes || q.told):
			q.yes, q.told = false, false
			out = append(out, paper)
		}
	}
	return out
}
