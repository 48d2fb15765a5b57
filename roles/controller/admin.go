package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"uac/coord"
	"uac/roles/controller/api"
	"uac/roles/wire/pki"
)

// tokenRecord is the value of tokens/<id>: exactly one of the two.
type tokenRecord struct {
	API  *pki.APIToken  `json:"api,omitempty"`
	Join *pki.JoinToken `json:"join,omitempty"`
}

func (r tokenRecord) view(id string) api.Token {
	if r.Join != nil {
		return api.Token{ID: id, Kind: "join", Name: r.Join.Name, Role: string(r.Join.Role),
			Created: r.Join.Created, Expires: r.Join.Expires, Used: r.Join.Used != nil}
	}
	if r.API != nil {
		return api.Token{ID: id, Kind: "api", Name: r.API.Name, Role: string(r.API.Role),
			Created: r.API.Created, Expires: r.API.Expires}
	}
	return api.Token{ID: id}
}

// Authenticate returns who an API token stands for.
func (c *Controller) Authenticate(_ context.Context, token string) (api.Actor, string, error) {
	return Authenticate(c.member.View(), token)
}

// Authenticate returns who an API token stands for, and its access. It reads
// the node's copy of the store, so it works without a majority and on nodes that
// serve nothing but probes and metrics.
func Authenticate(view *coord.View, token string) (api.Actor, string, error) {
	id, err := pki.APITokenID(token)
	if err != nil {
		return api.Actor{}, "", fmt.Errorf("%w: %w", api.ErrUnauthenticated, err)
	}
	if view.Revision() == 0 {
		return api.Actor{}, "", fmt.Errorf("%w: this node has just started and has not yet read any token", api.ErrUnavailable)
	}
	kv, ok := view.Get(tokenKey(id))
	if !ok {
		return api.Actor{}, "", fmt.Errorf("%w: %w", api.ErrUnauthenticated, pki.ErrTokenWrong)
	}
	rec, err := coord.Decoded[tokenRecord](kv)
	if err != nil || rec.API == nil {
		return api.Actor{}, "", fmt.Errorf("%w: %w", api.ErrUnauthenticated, pki.ErrTokenWrong)
	}
	if err := rec.API.Verify(token, time.Now()); err != nil {
		return api.Actor{}, "", fmt.Errorf("%w: %w", api.ErrUnauthenticated, err)
	}
	return api.Actor{Name: rec.API.Name, Token: id}, string(rec.API.Role), nil
}

// CreateToken makes an API token (roles viewer, operator, admin) or a join
// token (roles of nodes).
func (c *Controller) CreateToken(ctx context.Context, a api.Actor, spec api.TokenSpec) (string, api.Token, error) {
	s, err := c.growing()
	if err != nil {
		return "", api.Token{}, err
	}
	var text, id string
	var rec tokenRecord
	if access, err := pki.ParseAccess(spec.Role); err == nil {
		t, r, err := pki.NewAPIToken(pki.APITokenSpec{Name: spec.Name, Role: access, TTL: spec.TTL, CreatedBy: a.Name}, time.Now())
		if err != nil {
			return "", api.Token{}, fmt.Errorf("%w: %w", api.ErrInvalid, err)
		}
		text, id, rec.API = t, r.ID, &r
	} else {
		role, err := pki.ParseRole(spec.Role)
		if err != nil || role != pki.Agent && role != pki.Relay {
			return "", api.Token{}, fmt.Errorf("%w: role %q: must be viewer, operator, admin, or, to join, agent or relay", api.ErrInvalid, spec.Role)
		}
		t, r, err := pki.NewJoinToken(pki.JoinTokenSpec{Role: role, Name: spec.Name, Hosts: spec.Hosts, Replace: spec.Replace,
			TTL: spec.TTL, CreatedBy: a.Name, RootFingerprint: c.deps.Authority.RootFingerprint()}, time.Now())
		if err != nil {
			return "", api.Token{}, fmt.Errorf("%w: %w", api.ErrInvalid, err)
		}
		text, id, rec.Join = t, r.ID, &r
	}
	made := rec.view(id)
	err = c.commit(ctx, s,
		coord.Put(tokenKey(id), encode(rec)),
		c.audit(a, "token.created", id, map[string]string{"role": made.Role, "name": made.Name}))
	if err != nil {
		return "", api.Token{}, err
	}
	return text, made, nil
}

// ListTokens lists all tokens without their secrets.
func (c *Controller) ListTokens(context.Context) ([]api.Token, error) {
	out := []api.Token{}
	for kv := range c.member.View().Snapshot().Range(prefixTokens) {
		rec, err := decode[tokenRecord](kv)
		if err != nil {
			return nil, err
		}
		out = append(out, rec.view(strings.TrimPrefix(kv.Key, prefixTokens)))
	}
	return out, nil
}

// DeleteToken makes a token worthless at once.
func (c *Controller) DeleteToken(ctx context.Context, a api.Actor, id string) error {
	s, err := c.current()
	if err != nil {
		return err
	}
	kv, ok := c.member.View().Get(tokenKey(id))
	if !ok {
		return fmt.Errorf("%w: token %s", api.ErrNotFound, id)
	}
	return c.commit(ctx, s, coord.Del(kv.Key), c.audit(a, "token.deleted", id, nil))
}

// importToken stores the record of a token that was made while the cluster was
// set up, once: it lets the first operator in, and stays deleted when that
// operator has deleted it.
func (c *Controller) importToken(ctx context.Context, s *coord.Session, t pki.APIToken) error {
	key := tokenKey(t.ID)
	once := importedKey(t.ID)
	_, err := s.Commit(ctx, coord.Tx{
		If: []coord.Cond{coord.Absent(once), coord.Absent(key)},
		Then: []coord.Write{
			coord.Put(once, encode(now())),
			coord.Put(key, encode(tokenRecord{API: &t})),
			c.event(api.Event{Kind: "token.imported", Subject: t.ID, Detail: map[string]string{"role": string(t.Role), "name": t.Name}}),
		},
	})
	return err
}

// ListLocks lists all holders of locks and who waits for them.
func (c *Controller) ListLocks(context.Context) ([]api.Lock, error) {
	out := []api.Lock{}
	for _, l := range c.member.View().Locks() {
		out = append(out, api.Lock{Name: l.Name, Node: l.Node, Waiting: l.Waiting})
	}
	return out, nil
}

// ReleaseLock takes a lock away from whoever holds it.
func (c *Controller) ReleaseLock(ctx context.Context, a api.Actor, name string) error {
	s, err := c.current()
	if err != nil {
		return err
	}
	n, err := s.ReleaseLock(ctx, name, c.audit(a, "lock.released", name, nil))
	switch {
	case err != nil:
		return unavailable(err)
	case n == 0:
		return fmt.Errorf("%w: nobody holds lock %s", api.ErrNotFound, name)
	}
	return unavailable(c.member.Sync(ctx))
}

// clockSlack is by how much the clocks of controllers may differ without a list of
// events since some time lacking any: events in the history are in the order in which
// they were written, roughly.
const clockSlack = time.Hour

// ListEvents lists the newest events first.
func (c *Controller) ListEvents(ctx context.Context, f api.EventFilter) (api.EventList, error) {
	list := api.EventList{Events: []api.Event{}}
	snap := c.member.View().Snapshot()
	for kv := range snap.Range(prefixEvents) {
		e, err := decode[api.Event](kv)
		if err != nil {
			return list, err
		}
		if f.Match(e) {
			list.Events = append(list.Events, e)
		}
	}
	slices.Reverse(list.Events)
	if f.Limit > 0 && len(list.Events) >= f.Limit {
		list.Events = list.Events[:f.Limit]
		return list, nil
	}
	past, err := registry(snap, prefixPast)
	if err != nil {
		return list, err
	}
	var damaged gaps
	_, err = c.archive.events(ctx, past, &damaged, func(e api.Event) bool {
		if f.Match(e) {
			list.Events = append(list.Events, e)
		}
		return (f.Limit == 0 || len(list.Events) < f.Limit) && !e.At.Before(f.From.Add(-clockSlack))
	})
	list.Note = damaged.note("events", err)
	return list, ctx.Err()
}

// commit stores writes and returns when this controller shows them, so that the
// revision that goes with the answer covers them.
func (c *Controller) commit(ctx context.Context, s *coord.Session, writes ...coord.Write) error {
	res, err := s.Commit(ctx, coord.Tx{Then: writes})
	if err == nil {
		err = c.member.View().Wait(ctx, res.Revision)
	}
	return unavailable(err)
}

// unavailable turns an error of a commit into what the API says about it.
func unavailable(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, coord.ErrRefused):
		return fmt.Errorf("%w: %w", api.ErrInvalid, err)
	default:
		return fmt.Errorf("%w: %w", api.ErrUnavailable, err)
	}
}
