package coord

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
)

// Raft's own timing. It is not what failover waits for (that is the forced
// election in kick.go), so it can be slow enough never to elect by accident on
// a loaded machine, and not to keep an idle one busy. etcd wants the election at
// least five heartbeats long, and grants no lease below one and a half of them,
// in whole seconds.
const (
	raftTick     = 200 * time.Millisecond
	raftElection = time.Second
)

const (
	// backendBatch is how often the backend writes down what raft's log has. That
	// log is what makes a write durable: a server that starts again reads it from
	// there on. Each time costs an idle member a sync and a busy one a pause.
	backendBatch = 500 * time.Millisecond // etcd's own is 100 ms
	// maxTxnOps is what etcd accepts in one transaction, nested ones included.
	maxTxnOps       = 8192
	maxRequestBytes = 8 << 20
)

// etcd is one running embedded server with its in-process client.
type etcd struct {
	log    *slog.Logger
	server *embed.Etcd
	client *clientv3.Client
	// quiet silences etcd's log: what it says while it is being stopped
	// frightens and means nothing.
	quiet *atomic.Bool
	// txn runs one transaction once.
	txn txnFunc

	stopOnce sync.Once
	// stopped is closed when stop begins, drained when nothing of the server is
	// left.
	stopped, drained chan struct{}
}

// txnFunc runs one etcd transaction once.
type txnFunc func(ctx context.Context, cmps []clientv3.Cmp, then, els []clientv3.Op) (*clientv3.TxnResponse, error)

// hooks change for tests what no operator may change.
type hooks struct {
	// election replaces raftElection.
	election time.Duration
	// txn wraps every transaction that an attempt sends.
	txn func(next txnFunc) txnFunc
}

// etcdDir is where the server keeps its data below the member's directory.
func etcdDir(dataDir string) string { return filepath.Join(dataDir, "etcd") }

// hasEtcdData reports whether the member took part in a cluster before.
func hasEtcdData(dataDir string) (bool, error) {
	_, err := os.Stat(filepath.Join(etcdDir(dataDir), "member", "wal"))
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, os.ErrNotExist):
		return false, nil
	default:
		return false, fmt.Errorf("look for etcd data: %w", err)
	}
}

// startEtcd starts the embedded server and returns without waiting for a
// leader. On a first bootstrap etcd itself may block up to two seconds while
// it asks peers that have bound their port but do not serve yet. alone makes
// the member continue as a cluster of one with the data it has.
func startEtcd(cfg Config, tls *TLSFiles, alone bool, log *slog.Logger) (*etcd, error) {
	ec := embed.NewConfig()
	ec.Name = cfg.Name
	ec.Dir = etcdDir(cfg.DataDir)
	ec.TickMs = uint(raftTick / time.Millisecond)
	ec.ElectionMs = uint(cmp.Or(cfg.hooks.election, raftElection) / time.Millisecond)
	ec.PreVote = true
	ec.StrictReconfigCheck = true
	ec.EnableGRPCGateway = false
	ec.MaxTxnOps = maxTxnOps
	ec.MaxRequestBytes = maxRequestBytes
	ec.QuotaBackendBytes = cfg.QuotaBytes
	ec.BackendFreelistType = "map"
	ec.BackendBatchInterval = backendBatch
	// A start makes the file smaller when that is worth the wait.
	ec.BootstrapDefragThresholdMegabytes = uint(cfg.QuotaBytes >> 22)
	// Compaction is driven by the Active (room.go), not by each server's clock.
	ec.AutoCompactionMode = embed.CompactorModePeriodic
	ec.AutoCompactionRetention = "0"
	ec.ForceNewCluster = alone
	ec.InitialClusterToken = cfg.Cluster
	ec.ClusterState = embed.ClusterStateFlagNew
	quiet := new(atomic.Bool)
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapToSlog(log, quiet))

	scheme := "http"
	if tls != nil {
		scheme = "https"
		ec.PeerTLSInfo = transport.TLSInfo{
			CertFile: tls.Cert, KeyFile: tls.Key, TrustedCAFile: tls.CA,
			ClientCertAuth: true,
			ServerName:     tls.ServerName,
			// The members' CA signs members only and their certificates carry no
			// addresses, so a member may move to another address.
			SkipClientSANVerify: true,
		}
		ec.TlsMinVersion = "TLS1.3"
	}
	peer := func(addr string) url.URL { return url.URL{Scheme: scheme, Host: addr} }
	self := cfg.self()
	listen := cfg.RaftListen
	if listen == "" {
		listen = self.Raft
	}
	ec.ListenPeerUrls = []url.URL{peer(listen)}
	ec.AdvertisePeerUrls = []url.URL{peer(self.Raft)}
	// Nobody talks to this etcd but this process. The advertised client
	// address is a placeholder: etcd's bootstrap wants one, nothing listens.
	ec.ListenClientUrls = nil
	ec.ListenClientHttpUrls = nil
	ec.AdvertiseClientUrls = []url.URL{{Scheme: "http", Host: "localhost:0"}}
	var initial []string
	for _, p := range cfg.Peers {
		u := peer(p.Raft)
		initial = append(initial, p.Name+"="+u.String())
	}
	ec.InitialCluster = strings.Join(initial, ",")

	server, err := embed.StartEtcd(ec)
	if err != nil {
		return nil, fmt.Errorf("start etcd on %s: %w", listen, err)
	}
	e := &etcd{
		log: log, server: server, client: v3client.New(server.Server), quiet: quiet,
		stopped: make(chan struct{}), drained: make(chan struct{}),
	}
	e.txn = func(ctx context.Context, cmps []clientv3.Cmp, then, els []clientv3.Op) (*clientv3.TxnResponse, error) {
		return e.client.Txn(ctx).If(cmps...).Then(then...).Else(els...).Commit()
	}
	if wrap := cfg.hooks.txn; wrap != nil {
		e.txn = wrap(e.txn)
	}
	return e, nil
}

// stop ends the server within milliseconds. embed.Etcd.Close alone takes a
// second, because it lets idle peer connections drain first, and seconds more
// when it leads raft and nobody is left to hand over to. That draining goes on
// after stop has returned, until drained is closed: nothing is left to lose.
func (e *etcd) stop() {
	e.stopOnce.Do(func() {
		close(e.stopped)
		e.quiet.Store(true)
		_ = e.client.Close()
		for _, p := range e.server.Peers {
			_ = p.Close()
		}
		e.server.Server.HardStop()
		go func() {
			defer close(e.drained)
			e.server.Close()
		}()
	})
}

// handOver moves raft leadership from this member to another one, so that the
// others need no election when it stops. It is a courtesy: it may fail.
func (e *etcd) handOver(ctx context.Context, to string) {
	s := e.server.Server
	id, ok := e.members()[to]
	if s.Leader() != s.MemberID() || !ok {
		return
	}
	const patience = 400 * time.Millisecond // MoveLeader looks every raftTick
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := s.MoveLeader(ctx, uint64(s.MemberID()), uint64(id)); err != nil {
		e.log.Debug("raft leadership not handed over", "to", to, "error", err)
	}
}

func (e *etcd) ready() <-chan struct{} { return e.server.Server.ReadyNotify() }

// published reports whether the server has made itself known through raft: it has
// applied what its log held at its start.
func (e *etcd) published() bool {
	select {
	case <-e.ready():
		return true
	default:
		return false
	}
}

// failed closes when the server stopped by itself, because the member was removed
// from the cluster.
func (e *etcd) failed() <-chan struct{} { return e.server.Server.StopNotify() }

// members are all voters, those without a name included.
func (e *etcd) members() map[string]types.ID {
	m := map[string]types.ID{}
	for _, mb := range e.server.Server.Cluster().Members() {
		if !mb.IsLearner {
			m[cmp.Or(mb.Name, mb.ID.String())] = mb.ID // as name, which would copy it again
		}
	}
	return m
}

// full names the members whose storage quota is exhausted: etcd then refuses
// all writes.
func (e *etcd) full() []string {
	var names []string
	for _, a := range e.server.Server.Alarms() {
		if a.Alarm == etcdserverpb.AlarmType_NOSPACE {
			names = append(names, e.name(types.ID(a.MemberID)))
		}
	}
	return names
}

// leader names the raft leader as this member sees it, "" if there is none.
func (e *etcd) leader() string {
	if lead := e.server.Server.Leader(); lead != 0 {
		return e.name(lead)
	}
	return ""
}

// name of a member. One that was added and has never run has none yet.
func (e *etcd) name(id types.ID) string {
	if mb := e.server.Server.Cluster().Member(id); mb != nil {
		return cmp.Or(mb.Name, id.String())
	}
	return id.String()
}

// errUnknown marks an outcome that may or may not have happened.
var errUnknown = errors.New("outcome unknown")

// breath is how long an attempt that was turned away at once takes at least, so
// that whoever repeats it does not spin: etcd is overloaded or stopping. When it
// is full, each attempt makes raft's log longer, and only an operator can help.
const (
	breath         = 10 * time.Millisecond
	breathWhenFull = 500 * time.Millisecond
)

// attempt runs one transaction once, for at most d. It gives up early when
// raft has another leader: a proposal that was on its way to the old one may be
// lost without a word. One made while there is none waits for the first. An error that wraps errUnknown may have been applied,
// now or later; any other was not and never will be.
func (e *etcd) attempt(ctx context.Context, d time.Duration, cmps []clientv3.Cmp, then, els []clientv3.Op) (*clientv3.TxnResponse, error) {
	newLeader, none := e.server.Server.LeaderChangedNotify(), e.server.Server.Leader() == 0
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-newLeader:
			case <-done:
				return
			}
			if !none {
				cancel()
				return
			}
			newLeader, none = e.server.Server.LeaderChangedNotify(), false
		}
	}()
	resp, err := e.txn(ctx, cmps, then, els)
	switch {
	case err == nil:
		return resp, nil
	case definite(err):
		return nil, fmt.Errorf("etcd transaction: %w", err)
	}
	if errors.Is(err, rpctypes.ErrNoSpace) || errors.Is(err, rpctypes.ErrGRPCNoSpace) {
		_ = pause(ctx, breathWhenFull)
	} else {
		_ = pause(ctx, breath) // over at once if it was time or a new leader
	}
	if overloaded(err) {
		return nil, fmt.Errorf("etcd transaction: %w", err)
	}
	return nil, fmt.Errorf("etcd transaction: %w (%w)", errUnknown, err)
}

// definite reports whether etcd refused a request before proposing it, and
// always will. ErrNoSpace is not among them: etcd may apply a write and complain
// then.
func definite(err error) bool {
	for _, e := range []error{
		rpctypes.ErrGRPCTooManyOps, rpctypes.ErrTooManyOps,
		rpctypes.ErrGRPCRequestTooLarge, rpctypes.ErrRequestTooLarge,
		rpctypes.ErrGRPCDuplicateKey, rpctypes.ErrDuplicateKey,
		rpctypes.ErrGRPCEmptyKey, rpctypes.ErrEmptyKey,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// overloaded reports that etcd refused a request before proposing it, because
// too many wait.
func overloaded(err error) bool {
	return errors.Is(err, rpctypes.ErrTooManyRequests) || errors.Is(err, rpctypes.ErrGRPCRequestTooManyRequests)
}

// get reads keys linearizably, for at most d. What passes, like a change of the
// raft leader in the middle, it sits out.
func (e *etcd) get(ctx context.Context, d time.Duration, keys ...string) (map[string]KV, int64, error) {
	ops := make([]clientv3.Op, len(keys))
	for i, k := range keys {
		ops[i] = clientv3.OpGet(k)
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	resp, err := e.client.Txn(ctx).Then(ops...).Commit()
	for err != nil {
		if pause(ctx, breath) != nil {
			return nil, 0, fmt.Errorf("read %s: %w", strings.Join(keys, ", "), err)
		}
		resp, err = e.client.Txn(ctx).Then(ops...).Commit()
	}
	out := make(map[string]KV, len(keys))
	for i, r := range resp.Responses {
		for _, kv := range r.GetResponseRange().Kvs {
			out[keys[i]] = kvOf(kv)
		}
	}
	return out, resp.Header.Revision, nil
}

// pause waits for about d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
