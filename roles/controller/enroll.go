package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"uac/coord"
	"uac/roles/controller/api"
	"uac/roles/wire"
	"uac/roles/wire/pki"
)

// enrollServer lets machines join with a token. The token is the only thing
// that they have to show; what they become stands in its record.
type enrollServer struct {
	wire.UnimplementedEnrollServer
	c *Controller
}

// Enroll consumes a join token and signs the node's first certificates.
func (s *enrollServer) Enroll(ctx context.Context, r *wire.EnrollRequest) (*wire.EnrollResponse, error) {
	resp, err := s.c.enroll(ctx, r)
	switch {
	case err == nil:
		return resp, nil
	case errors.Is(err, api.ErrUnavailable):
		return nil, status.Error(codes.Unavailable, err.Error())
	case errors.Is(err, pki.ErrNameTaken):
		return nil, status.Error(codes.AlreadyExists, err.Error())
	default:
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
}

func (c *Controller) enroll(ctx context.Context, r *wire.EnrollRequest) (*wire.EnrollResponse, error) {
	s, err := c.current()
	if err != nil {
		return nil, err
	}
	id, _, err := pki.ParseJoinToken(r.GetToken())
	if err != nil {
		return nil, err
	}
	if err := c.member.Sync(ctx); err != nil {
		return nil, unavailable(err)
	}
	kv, ok := c.member.View().Get(tokenKey(id))
	if !ok {
		return nil, pki.ErrTokenWrong
	}
	rec, err := decode[tokenRecord](kv)
	if err != nil || rec.Join == nil {
		return nil, pki.ErrTokenWrong
	}
	reqs := pki.Requests{pki.Nodes: r.GetCsr()}
	for _, more := range r.GetMore() {
		reqs[pki.CA(more.GetCa())] = more.GetCsr()
	}
	key, err := reqs.Key()
	if err != nil {
		return nil, err
	}
	ask := pki.Ask{Role: pki.Role(r.GetRole()), Name: r.GetName(), Key: key}
	grant, err := rec.Join.Verify(r.GetToken(), ask, time.Now())
	if err != nil {
		return nil, err
	}
	bundle, err := c.deps.Authority.Enrol(reqs, grant, func(id pki.Identity) (bool, error) {
		_, agent := c.member.View().Get(agentKey(id.Name))
		_, node := c.nodeRecord(id.Name)
		return agent && id.Role == pki.Agent || node && id.Role != pki.Agent, nil
	})
	if err != nil {
		return nil, err
	}
	// The token is spent and the name taken before anybody gets a certificate.
	consumed := rec.Join.Consume(ask, time.Now())
	writes := []coord.Write{
		coord.Put(kv.Key, encode(tokenRecord{Join: &consumed})),
		c.event(api.Event{Kind: "node.enrolled", Subject: grant.Name, Detail: map[string]string{"role": string(grant.Role), "token": id}}),
	}
	if grant.Role == pki.Agent {
		if _, known := c.member.View().Get(agentKey(grant.Name)); !known {
			writes = append(writes, coord.Put(agentKey(grant.Name), encode(agentRecord{Name: grant.Name, FirstSeen: now()})))
		}
	}
	res, err := s.Commit(ctx, coord.Tx{If: []coord.Cond{coord.ModIs(kv.Key, kv.Mod)}, Then: writes})
	switch {
	case err != nil:
		return nil, unavailable(err)
	case !res.Won:
		return nil, fmt.Errorf("%w: the token is being used by another machine", pki.ErrTokenUsed)
	}
	resp := &wire.EnrollResponse{
		Cluster:     c.deps.Authority.Cluster(),
		Certificate: &wire.Certificate{Chain: bundle.Certs[pki.Nodes]},
		Cas:         map[string][]byte{},
	}
	for _, more := range r.GetMore() {
		resp.More = append(resp.More, &wire.Certificate{Chain: bundle.Certs[pki.CA(more.GetCa())]})
	}
	for ca, pem := range bundle.CAs {
		resp.Cas[string(ca)] = pem
	}
	return resp, nil
}
