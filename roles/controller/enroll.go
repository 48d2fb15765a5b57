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
	for {
		if err := c.member.Sync(ctx); err != nil {
			return nil, unavailable(err)
		}
		resp, tx, err := c.admitNode(c.member.View().Snapshot(), r)
		if err != nil {
			return nil, err
		}
		// The token is spent and the name taken before anybody gets a certificate.
		res, err := s.Commit(ctx, tx)
		if err != nil {
			return nil, unavailable(err)
		}
		if res.Won {
			return resp, nil
		}
		// Another machine was faster, or this one, which repeats itself because an
		// answer was late: what is there now decides.
	}
}

// admitNode decides by a snapshot whether a machine may join. It returns the
// answer, and the transaction that must come before it.
func (c *Controller) admitNode(snap coord.Snapshot, r *wire.EnrollRequest) (*wire.EnrollResponse, coord.Tx, error) {
	none := func(err error) (*wire.EnrollResponse, coord.Tx, error) { return nil, coord.Tx{}, err }
	id, _, err := pki.ParseJoinToken(r.GetToken())
	if err != nil {
		return none(err)
	}
	kv, ok := snap.Get(tokenKey(id))
	if !ok {
		return none(pki.ErrTokenWrong)
	}
	rec, err := decode[tokenRecord](kv)
	if err != nil || rec.Join == nil {
		return none(pki.ErrTokenWrong)
	}
	reqs := pki.Requests{pki.Nodes: r.GetCsr()}
	for _, more := range r.GetMore() {
		reqs[pki.CA(more.GetCa())] = more.GetCsr()
	}
	key, err := reqs.Key()
	if err != nil {
		return none(err)
	}
	ask := pki.Ask{Role: pki.Role(r.GetRole()), Name: r.GetName(), Key: key}
	grant, err := rec.Join.Verify(r.GetToken(), ask, time.Now())
	if err != nil {
		return none(err)
	}
	var place string
	var record []byte
	switch grant.Role {
	case pki.Agent:
		place, record = agentKey(grant.Name), encode(agentRecord{Name: grant.Name, FirstSeen: now()})
	case pki.Relay:
		if _, member := c.member.Record(grant.Name); member {
			return none(fmt.Errorf("%s is the name of a controller or watch: %w", grant.Name, pki.ErrNameTaken))
		}
		place, record = relayKey(grant.Name), encode(relayRecord{Name: grant.Name, FirstSeen: now()})
	default:
		return none(fmt.Errorf("a %s does not join with a token", grant.Role))
	}
	_, known := snap.Get(place)
	bundle, err := c.deps.Authority.Enrol(reqs, grant, func(pki.Identity) (bool, error) { return known, nil })
	if err != nil {
		return none(err)
	}
	consumed := rec.Join.Consume(ask, time.Now())
	tx := coord.Tx{
		If: []coord.Cond{coord.ModIs(kv.Key, kv.Mod)},
		Then: []coord.Write{
			coord.Put(kv.Key, encode(tokenRecord{Join: &consumed})),
			c.event(api.Event{Kind: "node.enrolled", Subject: grant.Name, Detail: map[string]string{"role": string(grant.Role), "token": id}}),
		},
	}
	if !known {
		// Another token may be for the same name.
		tx.If = append(tx.If, coord.Absent(place))
		tx.Then = append(tx.Then, coord.Put(place, record))
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
	return resp, tx, nil
}
