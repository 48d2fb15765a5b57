package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// The process that runs a cluster takes orders from other commands on a socket
// in the cluster's directory, which only its owner can enter.

// shortPath calls f with another path of a file in dir: the kernel allows a
// socket's path to have 107 bytes, which a directory can exceed.
func shortPath(dir, name string, f func(path string) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }() // only read
	return f(fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name))
}

// listenDev binds the socket. The caller holds the cluster's lock.
func listenDev(ctx context.Context, dir string) (l net.Listener, err error) {
	if err := os.RemoveAll(filepath.Join(dir, devSocket)); err != nil {
		return nil, err
	}
	err = shortPath(dir, devSocket, func(path string) error {
		var lc net.ListenConfig
		l, err = lc.Listen(ctx, "unix", path)
		if ul, ok := l.(*net.UnixListener); ok {
			ul.SetUnlinkOnClose(false) // the short path means nothing by then
		}
		return err
	})
	return l, err
}

// serveOrders carries out the orders of other commands until ctx ends. stop is
// called by the order to end the whole cluster.
func (s *devSupervisor) serveOrders(ctx context.Context, l net.Listener, stop func()) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /nodes/{name}/start", func(w http.ResponseWriter, r *http.Request) {
		started, err := s.startAlone(r.Context(), r.PathValue("name"))
		answerOrder(w, err, func() any { return started })
	})
	mux.HandleFunc("POST /nodes/{name}/kill", func(w http.ResponseWriter, r *http.Request) {
		k, err := s.kill(r.PathValue("name"))
		answerOrder(w, err, func() any { return k })
	})
	mux.HandleFunc("POST /stop", func(w http.ResponseWriter, _ *http.Request) {
		stop()
		answerOrder(w, nil, func() any { return struct{}{} })
	})
	g, ctx := errgroup.WithContext(ctx)
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	g.Go(func() error {
		<-ctx.Done()
		// Who gave the last order gets its answer.
		patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		return errors.Join(server.Shutdown(patience), server.Close())
	})
	g.Go(func() error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	return g.Wait()
}

// headerExitCode carries the exit code of a failed order.
const headerExitCode = "Exit-Code"

func answerOrder(w http.ResponseWriter, err error, result func() any) {
	if err != nil {
		w.Header().Set(headerExitCode, strconv.Itoa(int(codeOf(err))))
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	_ = json.NewEncoder(w).Encode(result()) // nobody is left to be told
}

// snapshot returns the cluster as it is now.
func (s *devSupervisor) snapshot() *devCluster {
	c := *s.cluster
	c.Nodes = s.nodes()
	return &c
}

// orderDev gives an order to the process that runs the cluster in dir.
func orderDev(ctx context.Context, dir, path string, out any) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (conn net.Conn, err error) {
			err = shortPath(dir, devSocket, func(path string) error {
				conn, err = (&net.Dialer{}).DialContext(ctx, "unix", path)
				return err
			})
			return conn, err
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://dev"+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return notRunning(dir)
	}
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // read to its end
	var body bytes.Buffer
	if _, err := body.ReadFrom(resp.Body); err != nil {
		return fmt.Errorf("order %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		code, err := strconv.Atoi(resp.Header.Get(headerExitCode))
		if err != nil {
			code = int(exitFailed)
		}
		return fail(exitCode(code), "%s", strings.TrimSpace(body.String()))
	}
	return json.Unmarshal(body.Bytes(), out)
}

// notRunning says what there is instead of a running cluster.
func notRunning(dir string) error {
	c, err := loadDevCluster(dir)
	switch {
	case err != nil:
		return err
	case c == nil:
		return fail(exitNotFound, "%[1]s holds no cluster; make one with: uac dev --dir %[1]s", dir)
	default:
		return fail(exitConflict, "the cluster in %[1]s does not run; start it with: uac dev --dir %[1]s", dir)
	}
}
