package main

import (
	"context"
	"time"

	"uac/roles/wire"
	"uac/roles/wire/pki"
)

const (
	// renewEvery is how often certificates are looked at, at least: the machine's
	// clock may be set, and they may be replaced by hand.
	renewEvery = time.Hour
	// renewRetry is how soon a renewal that failed is tried again, at the soonest.
	renewRetry = time.Second
)

// lookAgain returns how long certificates need not be looked at. One that is due
// and could not be renewed is tried again in a tenth of the time that it has left:
// often enough, however short its lifetime is, and never in haste.
func lookAgain(certs []pki.Info, now time.Time) time.Duration {
	wait := renewEvery
	for _, c := range certs {
		due := c.RenewAfter.Add(time.Second) // it was rounded down
		switch {
		case now.Before(due):
			wait = min(wait, due.Sub(now))
		case now.Before(c.NotAfter):
			wait = min(wait, max(renewRetry, c.NotAfter.Sub(now)/10))
		}
		// One that has ended opens no link over which it could be renewed.
	}
	return wait
}

// keepRenewed calls renew whenever a certificate is due, until ctx ends.
func keepRenewed(ctx context.Context, d daemonDeps, store *pki.Store, renew func(ctx context.Context)) error {
	for {
		renew(ctx)
		certs, err := store.Certificates(time.Now())
		if err != nil {
			d.log.Error("certificates not looked at", "error", err)
		}
		timer := time.NewTimer(lookAgain(certs, time.Now()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// renewOwn renews this controller's certificates, which it signs itself.
func renewOwn(ctx context.Context, d daemonDeps, store *pki.Store, a *pki.Authority) error {
	return keepRenewed(ctx, d, store, func(context.Context) {
		done, err := a.RenewDue(d.cfg.PKI.Dir)
		if err != nil {
			d.log.Error("certificates not renewed", "error", err)
		}
		for _, cert := range done {
			d.log.Info("certificate renewed", "file", cert.File, "not_after", cert.NotAfter)
		}
	})
}

// renewFrom renews this node's certificates from two thirds of their lifetime
// on, over a link to a controller.
func renewFrom(ctx context.Context, d daemonDeps, store *pki.Store, ask func(context.Context, *wire.RenewRequest) (*wire.Certificate, error)) error {
	return keepRenewed(ctx, d, store, func(ctx context.Context) {
		due, err := store.Renewals(time.Now())
		if err != nil {
			d.log.Error("certificates not looked at", "error", err)
		}
		for _, r := range due {
			callCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
			cert, err := ask(callCtx, &wire.RenewRequest{Ca: string(r.CA), Csr: r.CSR, Current: r.Current})
			cancel()
			if err == nil {
				err = store.Install(r.CA, cert.GetChain())
			}
			if err != nil {
				d.log.Warn("certificate not renewed; trying again later", "ca", r.CA, "error", err)
				continue
			}
			d.log.Info("certificate renewed", "ca", r.CA)
		}
	})
}
