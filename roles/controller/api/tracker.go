package api

import (
	"net/http"
	"sync"
)

// tracker knows whether handlers are running: net/http's Close does not wait
// for them.
type tracker struct {
	mu   sync.Mutex // guards n, idle
	n    int
	idle chan struct{} // closed when n falls to 0; nil if nobody waits
}

func (t *tracker) track(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.mu.Lock()
		t.n++
		t.mu.Unlock()
		defer func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			if t.n--; t.n == 0 && t.idle != nil {
				close(t.idle)
				t.idle = nil
			}
		}()
		h.ServeHTTP(w, r)
	})
}

// wait returns when no handler runs. No new ones may be started meanwhile.
func (t *tracker) wait() {
	t.mu.Lock()
	if t.n == 0 {
		t.mu.Unlock()
		return
	}
	if t.idle == nil {
		t.idle = make(chan struct{})
	}
	idle := t.idle
	t.mu.Unlock()
	<-idle
}
