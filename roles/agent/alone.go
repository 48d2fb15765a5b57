package agent

import (
	"fmt"
	"math"
	"slices"
	"time"

	"uac/roles/wire"
)

// An attempt that was started with stop_when_alone may be run once more elsewhere when
// its owner has not seen this agent for that long and some time. So it must have ended
// here by then, whatever happens to the agent meanwhile. The clock therefore
//
//   - starts when the agent sent the last thing that a controller has heard and answered:
//     an answer may be long on its way, and the agent be lost to the cluster meanwhile;
//   - does not heed a controller that may not act: one that is cut off from the others
//     keeps nobody from starting the step elsewhere;
//   - counts the time during which the machine slept (CLOCK_BOOTTIME);
//   - does not begin anew with the agent: the last word is in the journal, now and then
//     (contactLag), so that after a restart the clock is late by never, and early by a
//     little.
const (
	// aloneLook is the longest time between two looks at the clock. Timers sleep with the
	// machine.
	aloneLook = time.Second
	// contactShare is which part of the time until the first attempt is to be stopped the
	// journal may be behind.
	contactShare = 8
)

// contact is when the last word was sent that a controller has answered.
type contact struct {
	Boot string `json:"boot,omitempty"`
	At   int64  `json:"at,omitempty"` // nanoseconds since that boot
}

// answered is told of a ping that came over a link, before it is answered.
func (a *Agent) answered(l *link, ping *wire.Ping) {
	now, err := bootTime()
	if err != nil {
		a.fail(fmt.Errorf("read the time since boot: %w", err))
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.contact = max(a.contact, l.pongs.contact(ping, now))
}

// pongs remembers when the last answers to pings were sent.
type pongs []pong

type pong struct {
	number uint64
	sent   int64 // since boot
}

// maxPongs bounds how many are remembered; a controller that is further behind is not
// in contact.
const maxPongs = 64

// contact notes that the ping is answered now, and returns when the answer was sent that
// its sender has heard; 0 if that proves nothing.
func (p *pongs) contact(ping *wire.Ping, now int64) int64 {
	sent := int64(0)
	if ping.GetTrusted() {
		for _, o := range *p {
			if o.number <= ping.GetHeard() {
				sent = o.sent
			}
		}
	}
	*p = slices.DeleteFunc(*p, func(o pong) bool { return o.number < ping.GetHeard() })
	*p = append(*p, pong{ping.GetNumber(), now})
	*p = slices.Delete(*p, 0, max(0, len(*p)-maxPongs))
	return sent
}

// aloneFor returns for how long there has been no contact. The caller holds
// a.mu.
func (a *Agent) aloneFor() time.Duration {
	now, err := bootTime()
	if err != nil {
		a.fail(fmt.Errorf("read the time since boot: %w", err))
		return 0
	}
	for l := range a.links {
		if l.constant {
			a.contact = now
		}
	}
	if a.contact == 0 {
		return math.MaxInt64 // never
	}
	return time.Duration(now - a.contact)
}

// aloneLeft returns how long the attempt may still run, or wait, without a word from a
// controller. It is negative for those that must end.
func (a *Agent) aloneLeft(k key) (time.Duration, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.ledger.attempt(k)
	if at == nil || at.Alone == 0 {
		return 0, false
	}
	return time.Duration(at.Alone) - a.aloneFor(), true
}

// contactRecord is what goes with the intent of an attempt that depends on it. The caller
// holds a.mu.
func (a *Agent) contactRecord(c *wire.Start) []record {
	if c.GetStopWhenAloneNanos() == 0 {
		return nil
	}
	a.aloneFor()
	return []record{{Kind: kindContact, Boot: a.boot, BootTime: a.contact}}
}

// noteContact records when a controller was last heard, if a living attempt depends on
// it and what the journal says is too far behind. The caller holds a.mu.
func (a *Agent) noteContact(exactly bool) {
	shortest := int64(0)
	a.ledger.each(func(_ key, at *attempt) {
		if at.Alone > 0 && at.Phase.living() && (shortest == 0 || at.Alone < shortest) {
			shortest = at.Alone
		}
	})
	if shortest == 0 {
		return
	}
	alone := a.aloneFor()
	behind := a.contact - a.ledger.contactIn(a.boot)
	if behind <= 0 || !exactly && alone < aloneLook && behind < shortest/contactShare {
		return
	}
	a.commit(record{Kind: kindContact, Boot: a.boot, BootTime: a.contact})
}

// contactIn returns when a controller was last heard in the given boot, 0 for never.
func (l *ledger) contactIn(boot string) int64 {
	if l.contact.Boot != boot {
		return 0
	}
	return l.contact.At
}
