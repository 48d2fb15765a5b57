package controller

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/oklog/ulid/v2"

	"uac/coord"
	"uac/roles/controller/api"
)

// newID returns a new ULID. Those that one controller makes sort in the order of their
// making, those of several roughly by its time.
func newID() string { return ulid.Make().String() }

// audit is the write that records who did what; it belongs into the
// transaction of the deed.
func (c *Controller) audit(a api.Actor, kind, subject string, detail map[string]string) coord.Write {
	return c.event(api.Event{
		Kind: kind, Subject: subject, By: a.Name, From: a.From, Why: a.Why, Detail: detail,
	})
}

func (c *Controller) event(e api.Event) coord.Write {
	e.ID, e.At, e.Node = newID(), time.Now().UTC(), c.cfg.Name
	return coord.Put(eventKey(e.ID), encode(e))
}

func decode[T any](kv coord.KV) (T, error) {
	var v T
	if err := json.Unmarshal(kv.Value, &v); err != nil {
		return v, fmt.Errorf("value of key %s: %w", kv.Key, err)
	}
	return v, nil
}

// encode marshals records, plain structs for which json.Marshal has no error.
func encode(v any) []byte {
	b, _ := json.Marshal(v)
	return b
}
