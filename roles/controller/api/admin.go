package api

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"

	"uac/roles"
	"uac/roles/wire/pki"
)

// joinTTL is the lifetime of a join token that was asked for without one.
const joinTTL = time.Hour

func (s *Server) adminRoutes(d *definer) {
	define(d, route{pattern: "GET /v1/mounts", id: "listMounts", summary: "Show the shared mount as each controller sees it"},
		func(ctx context.Context, _ *struct{}) (*output[[]Mount], error) {
			return listOf(s.backend.ListMounts(ctx))
		})
	define(d, route{pattern: "GET /v1/locks", id: "listLocks", summary: "List who holds and who waits for locks"},
		func(ctx context.Context, _ *struct{}) (*output[[]Lock], error) {
			return listOf(s.backend.ListLocks(ctx))
		})
	define(d, route{pattern: "DELETE /v1/locks/{name}", id: "releaseLock", summary: "Take a lock away from its holder", status: 204},
		func(ctx context.Context, in *struct {
			WhyQuery
			Name string `path:"name" doc:"Name of the lock"`
		}) (*struct{}, error) {
			if err := named("lock", in.Name, roles.CheckName); err != nil {
				return nil, err
			}
			return nil, s.backend.ReleaseLock(ctx, in.actor(ctx), in.Name)
		})
	define(d, route{pattern: "GET /v1/events", id: "listEvents", summary: "List events, newest first"},
		func(ctx context.Context, in *struct {
			Kind    string `query:"kind" doc:"Only those of this kind, such as agent.back; agent means all of agent.*"`
			Subject string `query:"subject" doc:"Only those about this"`
			By      string `query:"by" doc:"Only what this token did"`
			From    string `query:"from" format:"date-time" doc:"Only those at this time or later"`
			Limit   int    `query:"limit" default:"100" minimum:"1" maximum:"10000" doc:"At most so many"`
		}) (*eventList, error) {
			f := EventFilter{Kind: in.Kind, Subject: in.Subject, By: in.By, Limit: in.Limit}
			if err := readTime("from", in.From, &f.From); err != nil {
				return nil, err
			}
			list, err := s.backend.ListEvents(ctx, f)
			if err != nil {
				return nil, err
			}
			out := &eventList{Note: oneLine(list.Note), Body: list.Events}
			if out.Body == nil {
				out.Body = []Event{}
			}
			return out, nil
		})
	define(d, route{pattern: "GET /v1/tokens", id: "listTokens", summary: "List tokens, without their secrets"},
		func(ctx context.Context, _ *struct{}) (*output[[]Token], error) {
			return listOf(s.backend.ListTokens(ctx))
		})
	define(d, route{pattern: "POST /v1/tokens", id: "createToken", status: http.StatusCreated,
		summary: "Make a token for a person or program, or for a node to join. Its text is shown this once"}, s.createToken)
	define(d, route{pattern: "DELETE /v1/tokens/{id}", id: "deleteToken", summary: "Make a token worthless at once", status: 204},
		func(ctx context.Context, in *struct {
			WhyQuery
			ID string `path:"id" doc:"Id of the token"`
		}) (*struct{}, error) {
			if err := named("token", in.ID, roles.CheckName); err != nil {
				return nil, err
			}
			return nil, s.backend.DeleteToken(ctx, in.actor(ctx), in.ID)
		})
}

// eventList is the answer with a list of events.
type eventList struct {
	Note string `header:"Uac-Note" doc:"What is missing in the list and why, for people"`
	Body []Event
}

// newToken is a token with its text.
type newToken struct {
	Text string `json:"token" doc:"The token itself: a secret"`
	Token
}

func (s *Server) createToken(ctx context.Context, in *struct {
	WhyQuery
	Body struct {
		Role    string          `json:"role" enum:"viewer,operator,admin,agent,relay" doc:"Of a person or program: viewer, operator, admin. Of a node that joins: agent, relay"`
		Name    string          `json:"name,omitempty" maxLength:"63" doc:"Whom the token stands for, or the name or name pattern of the node"`
		TTL     *roles.Duration `json:"ttl,omitempty" doc:"Lifetime, like 1h30m. Without one a join token lives 1h, others for ever"`
		Hosts   []string        `json:"hosts,omitempty" maxItems:"20" doc:"Names and addresses of the API of a relay that joins"`
		Replace bool            `json:"replace,omitempty" doc:"The node may take the place of one with the same name"`
	}
}) (*output[newToken], error) {
	spec := TokenSpec{Role: in.Body.Role, Name: in.Body.Name, Hosts: in.Body.Hosts, Replace: in.Body.Replace}
	if in.Body.TTL != nil {
		spec.TTL = time.Duration(*in.Body.TTL)
	}
	_, err := pki.ParseAccess(spec.Role)
	joins := err != nil
	switch {
	case in.Body.TTL != nil && spec.TTL <= 0:
		return nil, fmt.Errorf("%w: ttl %s: must be positive", ErrInvalid, spec.TTL)
	case strings.ContainsFunc(spec.Name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return nil, fmt.Errorf("%w: name %q: has characters that cannot be printed", ErrInvalid, spec.Name)
	case joins && spec.TTL == 0:
		spec.TTL = joinTTL
	case len(spec.Hosts) > 0 && spec.Role != string(roles.RoleRelay):
		return nil, fmt.Errorf("%w: hosts are for relays: role %s serves nothing", ErrInvalid, spec.Role)
	case !joins && spec.Replace:
		return nil, fmt.Errorf("%w: replace is for join tokens: role %s joins nothing", ErrInvalid, spec.Role)
	}
	text, token, err := s.backend.CreateToken(ctx, in.actor(ctx), spec)
	return oneOf(newToken{text, token}, err)
}
