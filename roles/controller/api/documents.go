package api

import (
	"context"
	"errors"
	"fmt"

	"uac/roles"
)

// DryRunQuery is the part of a call that may be only a question.
type DryRunQuery struct {
	DryRun bool `query:"dry_run" doc:"Check everything and say what would change, and change nothing"`
}

func (s *Server) documentRoutes(d *definer) {
	define(d, route{pattern: "POST /v1/documents", id: "applyDocuments", summary: "Create or change definitions of any kind, all of them or none"},
		func(ctx context.Context, in *struct {
			WhyQuery
			DryRunQuery
			Body Documents
		}) (*output[[]Applied], error) {
			return s.apply(ctx, in.actor(ctx), in.Body, in.DryRun)
		})
	// What documents may leave out, calls may, too.
	d.optional("StepDef", "on")
	d.optional("AgentCluster", "distribution")
}

// apply checks documents and stores them.
func (s *Server) apply(ctx context.Context, a Actor, docs Documents, dryRun bool) (*output[[]Applied], error) {
	c := checker{seen: map[[2]string]bool{}}
	for i := range docs.Processes {
		p := &docs.Processes[i]
		for k := range p.Steps {
			if p.Steps[k].On == "" {
				p.Steps[k].On = roles.OnSuccess
			}
		}
		c.check(fmt.Sprintf("processes[%d]", i), "process", p.Name, p)
	}
	for i := range docs.AgentClusters {
		cluster := &docs.AgentClusters[i]
		if cluster.Distribution == "" {
			cluster.Distribution = roles.DistributeAny
		}
		c.check(fmt.Sprintf("agent_clusters[%d]", i), "agent cluster", cluster.Name, cluster)
	}
	switch {
	case c.err != nil:
		return nil, c.err
	case len(c.wrong) > 0:
		return nil, c.wrong
	case len(c.seen) == 0:
		return nil, fmt.Errorf("%w: there are no documents in this call", ErrInvalid)
	}
	return listOf(s.backend.Apply(ctx, a, docs, dryRun))
}

// checker collects what is wrong with documents.
type checker struct {
	seen  map[[2]string]bool // kind and name
	wrong roles.Problems
	err   error
}

func (c *checker) check(at, kind, name string, d roles.Definition) {
	if c.seen[[2]string{kind, name}] {
		c.wrong = append(c.wrong, roles.Problem{File: at, Field: "name", Message: fmt.Sprintf("%s %q is in this call already", kind, name)})
	}
	c.seen[[2]string{kind, name}] = true
	err := d.Validate()
	var problems roles.Problems
	switch {
	case errors.As(err, &problems):
		c.wrong = append(c.wrong, problems...)
	case err != nil:
		c.err = fmt.Errorf("%w: %w", ErrInvalid, err)
	}
}
