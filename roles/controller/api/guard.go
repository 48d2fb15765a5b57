package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"uac/roles"
	"uac/roles/wire/pki"
)

// Limits of one call. They bound what a caller can hold on to.
const (
	// MaxBody is the most bytes of a call's body: one document.
	MaxBody = roles.MaxDocument
	// maxDiscard is how much more of a body that is too large is taken, so that its
	// sender hears the refusal.
	maxDiscard = 32 << 20
	// bodyTimeout is how long a caller may take to send its body.
	bodyTimeout = 10 * time.Second
	// callTimeout bounds everything but streams. Clients wait a little longer, so
	// that they hear from this controller and do not go on to the next.
	callTimeout = 12 * time.Second
	// writeTimeout is how long a caller may take to read one piece of an answer.
	writeTimeout = 30 * time.Second
)

// guard returns the handler of a route behind the checks that its rule asks for.
func (s *Server) guard(_ string, rule rule, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if rule.access == public {
			next(w, r)
			return
		}
		// Whether this controller can answer comes first: one that is starting
		// knows no tokens, and must not call a good one wrong.
		if p := s.ready(w, r, rule); p != nil {
			write(w, r, p)
			return
		}
		actor, p := s.authorize(r, rule.access)
		if p != nil {
			write(w, r, p)
			return
		}
		callOf(r.Context()).actor = actor
		if p := checkTarget(r); p != nil {
			write(w, r, p)
			return
		}

		if !rule.stream {
			ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
			defer cancel()
			r = r.WithContext(ctx)
			// A connection that does not support deadlines is a test's.
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(callTimeout + writeTimeout))
		}
		if p := s.catchUp(r); p != nil {
			write(w, r, p)
			return
		}
		if r.Method == http.MethodPost {
			body, p := readBody(w, r)
			if p != nil {
				write(w, r, p)
				return
			}
			callOf(r.Context()).body = len(body) > 0
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		if resp, ok := w.(*response); ok && r.Method != http.MethodGet && r.Method != http.MethodHead {
			resp.before = func(status int) {
				if status < 300 {
					w.Header().Set(HeaderRevision, strconv.FormatInt(s.backend.Revision(), 10))
				}
			}
		}
		next(w, r)
	}
}

// ready refuses calls while this controller cannot know whether what it says is
// true.
func (s *Server) ready(w http.ResponseWriter, r *http.Request, rule rule) *huma.ErrorModel {
	err := s.backend.Ready()
	if err == nil || rule.alone {
		return nil
	}
	if rule.stale && r.URL.Query().Get("stale") == "true" {
		w.Header().Set(HeaderStale, "true")
		return nil
	}
	return notReady("this controller cannot answer now: " + err.Error())
}

// authorize returns who makes a call, or why they may not.
func (s *Server) authorize(r *http.Request, need pki.Access) (Actor, *huma.ErrorModel) {
	return authorize(r, need, func(ctx context.Context, token string) (Actor, string, error) {
		actor, access, err := s.backend.Authenticate(ctx, token)
		// The token may have been made a moment ago by another controller. An
		// attacker who guesses must not cost the cluster a round for each guess.
		if errors.Is(err, ErrUnauthenticated) && s.misses.Allow() && s.backend.Ready() == nil && s.sync(ctx) == nil {
			actor, access, err = s.backend.Authenticate(ctx, token)
		}
		return actor, access, err
	})
}

// Authenticate returns the actor and the access of a bearer token.
type Authenticate func(ctx context.Context, token string) (Actor, string, error)

// RequireAccess returns h behind the check that the caller has at least the
// access need.
func RequireAccess(need pki.Access, authenticate Authenticate, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		actor, p := authorize(r, need, authenticate)
		if p != nil {
			write(w, r, p)
			return
		}
		callOf(r.Context()).actor = actor
		h.ServeHTTP(w, r)
	})
}

func authorize(r *http.Request, need pki.Access, authenticate Authenticate) (Actor, *huma.ErrorModel) {
	token, p := bearer(r)
	if p != nil {
		return Actor{}, p
	}
	actor, access, err := authenticate(r.Context(), token)
	switch {
	case errors.Is(err, ErrUnauthenticated):
		// Not err's text: it may say how near a guess was.
		return Actor{}, problem(http.StatusUnauthorized, "the token is not valid here: it is wrong, has expired or was deleted")
	case err != nil:
		return Actor{}, notReady("cannot check the token now: " + err.Error())
	case !pki.Access(access).Allows(need):
		return Actor{}, problem(http.StatusForbidden, fmt.Sprintf("needs the role %s; the token %s has %s", need, actor.Name, access))
	}
	actor.From, actor.RequestID = r.RemoteAddr, callOf(r.Context()).id
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		actor.From = host
	}
	return actor, nil
}

// bearer returns the token of a call.
func bearer(r *http.Request) (string, *huma.ErrorModel) {
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return "", problem(http.StatusUnauthorized, "no token: send Authorization: Bearer TOKEN")
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	token = strings.TrimSpace(token)
	if len(values) > 1 || !strings.EqualFold(scheme, "Bearer") || token == "" || strings.ContainsAny(token, " \t") {
		return "", problem(http.StatusUnauthorized, "the Authorization header is not of the form: Bearer TOKEN")
	}
	return token, nil
}

// catchUp waits until this controller shows what the caller has seen already.
func (s *Server) catchUp(r *http.Request) *huma.ErrorModel {
	text := r.Header.Get(HeaderRevision)
	if text == "" {
		return nil
	}
	rev, err := strconv.ParseInt(text, 10, 64)
	if err != nil || rev < 0 {
		return problem(http.StatusBadRequest, "the header "+HeaderRevision+" must be a number that a write answered")
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.WaitTimeout)
	defer cancel()
	if err := s.backend.Wait(ctx, rev); err != nil {
		return notReady(fmt.Sprintf("this controller shows revision %d and has not reached %d", s.backend.Revision(), rev))
	}
	return nil
}

// sync returns when this controller shows everything committed before.
func (s *Server) sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.WaitTimeout)
	defer cancel()
	return s.backend.Sync(ctx)
}

// readBody reads the JSON body of a call as a whole: so its limits have one
// place, and no deadline of the body outlives it and ends a slow handler.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, *huma.ErrorModel) {
	if r.ContentLength > MaxBody && r.Header.Get("Expect") != "" {
		return nil, tooLarge() // the caller has sent nothing yet
	}
	conn := http.NewResponseController(w)
	_ = conn.SetReadDeadline(time.Now().Add(bodyTimeout)) // not supported: see guard
	body, err := io.ReadAll(io.LimitReader(r.Body, MaxBody+1))
	if len(body) > MaxBody {
		// Whoever is still sending when the connection closes may never read why.
		_, _ = io.CopyN(io.Discard, r.Body, maxDiscard)
	}
	_ = conn.SetReadDeadline(time.Time{})
	var ne net.Error
	switch {
	case len(body) > MaxBody:
		return nil, tooLarge()
	case errors.As(err, &ne) && ne.Timeout():
		return nil, problem(http.StatusRequestTimeout, fmt.Sprintf("the body did not arrive within %s", bodyTimeout))
	case err != nil:
		return nil, problem(http.StatusBadRequest, "the body could not be read: "+err.Error())
	case len(body) == 0:
		return nil, nil
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return nil, problem(http.StatusUnsupportedMediaType, "the body must not be compressed")
	}
	if media := r.Header.Get("Content-Type"); media != "" {
		kind, params, err := mime.ParseMediaType(media)
		charset := params["charset"]
		if err != nil || kind != "application/json" || charset != "" && !strings.EqualFold(charset, "utf-8") {
			return nil, problem(http.StatusUnsupportedMediaType, "the body must be application/json in UTF-8")
		}
	}
	if !utf8.Valid(body) {
		return nil, problem(http.StatusBadRequest, "the body is not valid UTF-8")
	}
	return body, checkBody(body)
}

func tooLarge() *huma.ErrorModel {
	return problem(http.StatusRequestEntityTooLarge,
		fmt.Sprintf("the body is larger than %d bytes (%d MiB); send fewer or smaller documents in one call", MaxBody, MaxBody>>20))
}
