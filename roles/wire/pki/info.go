package pki

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Info describes a certificate for operators.
type Info struct {
	File        string    `json:"file"`
	Subject     string    `json:"subject"`
	Identity    string    `json:"identity,omitempty"` // uac://..., of leaves
	Role        Role      `json:"role,omitempty"`
	Name        string    `json:"name,omitempty"`
	DNSNames    []string  `json:"dns_names"`
	Addresses   []string  `json:"addresses"`
	Issuer      string    `json:"issuer"`
	Serial      string    `json:"serial"` // hexadecimal
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	RenewAfter  time.Time `json:"renew_after"`
	DaysLeft    int       `json:"days_left"` // whole days, negative once expired
	Fingerprint string    `json:"fingerprint"`
	IsCA        bool      `json:"is_ca"`
}

// Describe returns the description of a certificate that was read from file.
func Describe(cert *x509.Certificate, file string, now time.Time) Info {
	info := Info{
		File:        file,
		Subject:     cert.Subject.String(),
		DNSNames:    append([]string{}, cert.DNSNames...),
		Addresses:   []string{},
		Issuer:      cert.Issuer.String(),
		Serial:      cert.SerialNumber.Text(16),
		NotBefore:   cert.NotBefore.UTC(),
		NotAfter:    cert.NotAfter.UTC(),
		RenewAfter:  RenewAfter(cert).UTC().Truncate(time.Second),
		Fingerprint: Fingerprint(cert),
		IsCA:        cert.IsCA,
	}
	const day = 24 * time.Hour
	left := cert.NotAfter.Sub(now)
	info.DaysLeft = int(left / day)
	if left < 0 {
		info.DaysLeft--
	}
	for _, ip := range cert.IPAddresses {
		info.Addresses = append(info.Addresses, ip.String())
	}
	if id, err := ParseIdentity(cert); err == nil {
		info.Identity, info.Role, info.Name = id.String(), id.Role, id.Name
	}
	return info
}

// Show describes the certificates at path: a certificate file, or a directory, of
// which it shows the node's own certificates and then the CAs.
func Show(path string, now time.Time) ([]Info, error) {
	var files []string
	for _, ca := range issuing {
		files = append(files, leafCertFile(path, ca))
	}
	for _, ca := range []CA{Root, Members, API, Nodes} {
		files = append(files, caCertFile(path, ca))
	}
	files = append(files, filepath.Join(path, "root.crt"))
	if stat, err := os.Stat(path); err != nil {
		return nil, err
	} else if !stat.IsDir() {
		files = []string{path}
	}
	infos := []Info{}
	for _, file := range files {
		certs, err := readCerts(file)
		if errors.Is(err, fs.ErrNotExist) && file != path {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(certs, func(c *x509.Certificate) bool { return !c.IsCA }) {
			for _, c := range certs {
				infos = append(infos, Describe(c, file, now))
			}
			continue
		}
		infos = append(infos, Describe(certs[0], file, now)) // the rest is its CA
	}
	if len(infos) == 0 {
		return nil, fmt.Errorf("%s: no certificates there: %w", path, fs.ErrNotExist)
	}
	return infos, nil
}
