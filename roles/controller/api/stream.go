package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"uac/roles"
)

// Media types of streams.
const (
	mediaLines = "application/x-ndjson"
	mediaBytes = "application/octet-stream"
)

// HeaderOutputNext is a trailer of an answer with output that ends before a part that
// is gone: the offset at which it goes on.
const HeaderOutputNext = "Uac-Output-Next"

// errStopping ends streams when this controller stops. Clients go on at the
// next one.
var errStopping = errors.New("this controller is stopping")

// stream is an answer that goes on until there is nothing more to say. The
// header goes out with the first byte or heartbeat, so that an early error is
// still an ordinary problem. Safe for concurrent use.
type stream struct {
	conn  *http.ResponseController
	media string
	mu    sync.Mutex // guards w, begun
	w     http.ResponseWriter
	begun bool
}

// Write sends b at once.
func (s *stream) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beginLocked()
	// A connection that does not support deadlines is a test's.
	_ = s.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	n, err := s.w.Write(b)
	if err != nil {
		return n, err
	}
	return n, s.conn.Flush()
}

func (s *stream) beginLocked() {
	if !s.begun {
		s.begun = true
		s.w.Header().Set("Content-Type", s.media)
		s.w.WriteHeader(http.StatusOK)
	}
}

// patience is how many heartbeats a stream of bytes waits for its first byte
// before it begins without one. Until then an error is an ordinary problem.
const patience = 5

// serveStream answers a call with what produce writes. Lines show every
// heartbeat that the stream lives; bytes cannot. The stream ends when produce
// returns; when the caller leaves, this controller stops or may no longer
// answer, then produce's context ends.
func (s *Server) serveStream(media string, produce func(context.Context, *stream) error) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		out := &stream{conn: http.NewResponseController(w), media: media, w: w}
		ctx, end := context.WithCancelCause(r.Context())
		defer end(nil)
		if stopping, ok := r.Context().Value(stoppingKey{}).(context.Context); ok {
			defer context.AfterFunc(stopping, func() { end(errStopping) })()
		}

		var wg sync.WaitGroup
		wg.Go(func() {
			ticker := time.NewTicker(s.cfg.Heartbeat)
			defer ticker.Stop()
			for beat := 1; ; beat++ {
				select {
				case <-ctx.Done():
					return
				case <-ticker.C:
				}
				if err := s.backend.Ready(); err != nil {
					end(err)
					return
				}
				var sign []byte
				if media == mediaLines {
					sign = []byte("\n")
				} else if beat != patience {
					continue
				}
				if _, err := out.Write(sign); err != nil {
					end(err)
					return
				}
			}
		})
		err := produce(ctx, out)
		cause := context.Cause(ctx)
		end(nil)
		wg.Wait()

		if gap := (*Gap)(nil); errors.As(err, &gap) {
			// The answer ends before what is gone, and says behind it where to ask again.
			_, _ = out.Write(nil)
			w.Header().Set(http.TrailerPrefix+HeaderOutputNext, strconv.FormatInt(gap.Next, 10))
			return
		}
		switch {
		case err == nil && !out.begun:
			_, _ = out.Write(nil) // an empty answer is an answer
		case err == nil:
		case r.Context().Err() != nil: // the caller has left
		case !out.begun && cause != nil:
			write(w, r, notReady("this controller cannot answer now: "+cause.Error()))
		case !out.begun:
			write(w, r, s.problem(r.Context(), err))
		default:
			s.log.Debug("stream cut", "request_id", callOf(r.Context()).id, "error", err, "cause", cause)
			panic(http.ErrAbortHandler) // so that the caller does not take it for complete
		}
	}}
}

// watch follows a request.
func (s *Server) watch(ctx context.Context, in *RequestPath) (*huma.StreamResponse, error) {
	if _, err := s.request(ctx, *in); err != nil {
		return nil, err
	}
	return s.serveStream(mediaLines, func(ctx context.Context, out *stream) error {
		return s.backend.WatchRequest(ctx, in.ID, func(req Request) error {
			line, err := json.Marshal(req)
			if err != nil {
				return fmt.Errorf("encode request %s: %w", req.ID, err)
			}
			_, err = out.Write(append(line, '\n'))
			return err
		})
	}), nil
}

// readOutput copies what a step wrote.
func (s *Server) readOutput(ctx context.Context, in *struct {
	RequestPath
	Step    string `query:"step" required:"true" doc:"Name of the step"`
	Attempt int    `query:"attempt" minimum:"0" doc:"Number of the attempt; the latest, if 0"`
	Offset  int64  `query:"offset" minimum:"0" doc:"Bytes to leave out at the beginning"`
	Follow  bool   `query:"follow" doc:"Go on until the attempt has ended"`
}) (*huma.StreamResponse, error) {
	if _, err := s.request(ctx, in.RequestPath); err != nil {
		return nil, err
	}
	if err := named("step", in.Step, roles.CheckStepName); err != nil {
		return nil, err
	}
	return s.serveStream(mediaBytes, func(ctx context.Context, out *stream) error {
		return s.backend.ReadOutput(ctx, in.ID, in.Step, in.Attempt, in.Offset, in.Follow, out)
	}), nil
}
