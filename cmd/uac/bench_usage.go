package main

import (
	"fmt"
	"time"

	"github.com/prometheus/procfs"
)

// usage is what a process of a cluster takes.
type usage struct {
	cpu      time.Duration // since its start
	resident int64         // bytes
}

// usage returns what each node that runs takes now.
func (b *bench) usage() (map[string]usage, error) {
	used := map[string]usage{}
	for _, n := range b.sup.nodes() {
		if n.PID == 0 {
			continue
		}
		u, err := usageOf(n.PID)
		if err != nil {
			return nil, fmt.Errorf("processor time of %s: %w", n.Name, err)
		}
		used[n.Name] = u
	}
	return used, nil
}

func usageOf(pid int) (usage, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return usage{}, err
	}
	st, err := p.Stat()
	if err != nil {
		return usage{}, err
	}
	return usage{cpu: time.Duration(st.CPUTime() * float64(time.Second)), resident: int64(st.ResidentMemory())}, nil
}
