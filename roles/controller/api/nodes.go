package api

import (
	"context"
	"fmt"
	"strings"

	"uac/roles"
)

// NodePath is the part of an input that names a node. Parts of inputs are exported
// because they are read by reflection.
type NodePath struct {
	Name string `path:"name" doc:"Name of the node"`
}

func (in NodePath) check() error { return named("node", in.Name, roles.CheckNodeName) }

// StaleQuery is the part of an input of reads that this controller may answer from its own copy.
type StaleQuery struct {
	Stale bool `query:"stale" doc:"Answer even if it cannot be known to be current; the answer then has the header Uac-Stale"`
}

func (s *Server) nodeRoutes(d *definer) {
	define(d, route{pattern: "GET /v1/nodes", id: "listNodes", summary: "List all nodes"},
		func(ctx context.Context, _ *StaleQuery) (*output[[]Node], error) {
			return listOf(s.backend.ListNodes(ctx))
		})
	define(d, route{pattern: "GET /v1/nodes/{name}", id: "getNode", summary: "Show one node"},
		func(ctx context.Context, in *struct {
			NodePath
			StaleQuery
		}) (*output[Node], error) {
			if err := in.check(); err != nil {
				return nil, err
			}
			return oneOf(find(ctx, s, func(ctx context.Context) (Node, error) { return s.node(ctx, in.Name) }))
		})
	define(d, route{pattern: "POST /v1/nodes/switchover", id: "switchover", summary: "Make another controller Active"},
		func(ctx context.Context, in *struct {
			WhyQuery
			Body *struct {
				To string `json:"to,omitempty" doc:"The controller to become Active; the best one, if empty"`
			}
		}) (*output[switched], error) {
			to := ""
			if in.Body != nil {
				to = in.Body.To
			}
			if to != "" {
				if err := (NodePath{to}).check(); err != nil {
					return nil, err
				}
			}
			active, err := s.backend.Switchover(ctx, in.actor(ctx), to)
			return oneOf(switched{active}, err)
		})
	define(d, route{pattern: "POST /v1/nodes/confirm-lost", id: "confirmLost", summary: "Say that nodes are lost and switched off"}, s.confirmLost)
	define(d, route{pattern: "DELETE /v1/nodes/{name}", id: "removeNode", summary: "Forget an Offline node", status: 204},
		func(ctx context.Context, in *struct {
			NodePath
			WhyQuery
		}) (*struct{}, error) {
			if err := in.check(); err != nil {
				return nil, err
			}
			return nil, s.backend.RemoveNode(ctx, in.actor(ctx), in.Name)
		})

	yes, no := true, false
	s.flagRoute(d, "pause", "Stop a node from taking new work", &yes)
	s.flagRoute(d, "resume", "Let a node take new work again", &no)
	define(d, route{pattern: "POST /v1/nodes/{name}/prefer", id: "preferNode", summary: "Make a node the first to succeed"},
		func(ctx context.Context, in *struct {
			NodePath
			WhyQuery
			Body *struct {
				Preferred *bool `json:"preferred,omitempty" doc:"false: no longer prefer it"`
			}
		}) (*output[Node], error) {
			if err := in.check(); err != nil {
				return nil, err
			}
			preferred := &yes
			if in.Body != nil && in.Body.Preferred != nil {
				preferred = in.Body.Preferred
			}
			return oneOf(s.backend.SetNode(ctx, in.actor(ctx), in.Name, nil, preferred))
		})

	define(d, route{pattern: "POST /v1/nodes/{name}/stop", id: "stopNode", summary: "Stop a node in order"},
		func(ctx context.Context, in *struct {
			NodePath
			WhyQuery
			Body *struct {
				Failover *bool `json:"failover,omitempty" doc:"false: nobody takes its work over until it is back"`
			}
		}) (*output[done], error) {
			args := map[string]string{}
			if in.Body != nil && in.Body.Failover != nil && !*in.Body.Failover {
				args["failover"] = "no"
			}
			return s.order(ctx, in.NodePath, in.WhyQuery, "stop", args)
		})
	define(d, route{pattern: "POST /v1/nodes/{name}/abort", id: "abortNode", summary: "End a node at once, as if it crashed"},
		func(ctx context.Context, in *struct {
			NodePath
			WhyQuery
			Body *struct {
				Restart bool `json:"restart,omitempty" doc:"Start it again"`
			}
		}) (*output[done], error) {
			args := map[string]string{}
			if in.Body != nil && in.Body.Restart {
				args["restart"] = "yes"
			}
			return s.order(ctx, in.NodePath, in.WhyQuery, "abort", args)
		})
	s.orderRoute(d, "restart", "Stop a node in order and start it again")
	s.orderRoute(d, "drain", "Hand a node's requests over and pause it")
}

// switched is the answer to a switchover.
type switched struct {
	Active string `json:"active" doc:"The controller that is Active now"`
}

type nodeOrder struct {
	NodePath
	WhyQuery
}

// flagRoute makes a route that sets whether a node is paused.
func (s *Server) flagRoute(d *definer, verb, summary string, paused *bool) {
	define(d, route{pattern: "POST /v1/nodes/{name}/" + verb, id: verb + "Node", summary: summary},
		func(ctx context.Context, in *nodeOrder) (*output[Node], error) {
			if err := in.check(); err != nil {
				return nil, err
			}
			return oneOf(s.backend.SetNode(ctx, in.actor(ctx), in.Name, paused, nil))
		})
}

// orderRoute makes a route for an order without arguments.
func (s *Server) orderRoute(d *definer, verb, summary string) {
	define(d, route{pattern: "POST /v1/nodes/{name}/" + verb, id: verb + "Node", summary: summary},
		func(ctx context.Context, in *nodeOrder) (*output[done], error) {
			return s.order(ctx, in.NodePath, in.WhyQuery, verb, nil)
		})
}

func (s *Server) order(ctx context.Context, n NodePath, why WhyQuery, verb string, args map[string]string) (*output[done], error) {
	if err := n.check(); err != nil {
		return nil, err
	}
	return said(s.backend.Order(ctx, why.actor(ctx), n.Name, verb, args))
}

// node returns one node of the list.
func (s *Server) node(ctx context.Context, name string) (Node, error) {
	all, err := s.backend.ListNodes(ctx)
	if err != nil {
		return Node{}, err
	}
	for _, n := range all {
		if n.Name == name {
			return n, nil
		}
	}
	return Node{}, fmt.Errorf("%w: node %q", ErrNotFound, name)
}

// LostStatement is what a caller of confirm-lost says of the nodes.
const LostStatement = "switched off"

type lost struct {
	Nodes []string `json:"nodes" minItems:"1" maxItems:"100" nullable:"false" doc:"Every node that is lost"`
	// Statement makes sure that no program confirms by accident.
	Statement string `json:"statement" enum:"switched off" doc:"What the caller has made sure of: that each of these nodes is switched off and stays so"`
}

func (s *Server) confirmLost(ctx context.Context, in *struct {
	WhyQuery
	Body lost
}) (*output[done], error) {
	seen := map[string]bool{}
	for _, name := range in.Body.Nodes {
		if err := (NodePath{name}).check(); err != nil {
			return nil, err
		}
		if seen[name] {
			return nil, fmt.Errorf("%w: node %s is named twice", ErrInvalid, name)
		}
		seen[name] = true
	}
	text, err := s.backend.ConfirmLost(ctx, in.actor(ctx), in.Body.Nodes)
	if err == nil && text == "" {
		text = strings.Join(in.Body.Nodes, ", ") + ": taken as lost"
	}
	return said(text, err)
}
