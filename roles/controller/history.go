package controller

import "time"

// HistoryConfig says how long finished requests are kept, and where.
type HistoryConfig struct {
	// Hot is how long a finished request stays in the store; HotCount is how many
	// do at most.
	Hot      time.Duration
	HotCount int
	// Keep is how long a request stays in the history, 0 for ever.
	Keep time.Duration
}
