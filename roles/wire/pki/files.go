package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"uac/codestation/durable"
)

const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"

	keyPerm  = 0o600
	certPerm = 0o644
	dirPerm  = 0o700
)

func caCertFile(dir string, ca CA) string { return filepath.Join(dir, "ca", string(ca)+".crt") }
func caKeyFile(dir string, ca CA) string  { return filepath.Join(dir, "ca", string(ca)+".key") }

func rootKeyFile(rootDir string) string { return filepath.Join(rootDir, "root.key") }

// leafName is the name, without extension, of the files of a node's own
// certificate by ca.
func leafName(ca CA) string {
	switch ca {
	case Members:
		return "member"
	case Nodes:
		return "node"
	default:
		return string(ca)
	}
}

func leafCertFile(dir string, ca CA) string { return filepath.Join(dir, leafName(ca)+".crt") }
func leafKeyFile(dir string, ca CA) string  { return filepath.Join(dir, leafName(ca)+".key") }

// Fingerprint returns the SHA-256 of the certificate in hexadecimal.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

func newKey() (*ecdsa.PrivateKey, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

func encodeCerts(certs ...*x509.Certificate) []byte {
	var buf bytes.Buffer
	for _, c := range certs {
		// Writing to a bytes.Buffer cannot fail, and there are no headers to reject.
		_ = pem.Encode(&buf, &pem.Block{Type: pemCertificate, Bytes: c.Raw})
	}
	return buf.Bytes()
}

// decodeCerts reads all certificates of a PEM text, at least one.
func decodeCerts(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		block, text = pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != pemCertificate {
			return nil, fmt.Errorf("unexpected PEM block %q, want only %q", block.Type, pemCertificate)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no PEM certificate in it")
	}
	return certs, nil
}

func readCerts(path string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	certs, err := decodeCerts(text)
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", path, err)
	}
	return certs, nil
}

// readKey reads a private key and refuses one that anyone but its owner may read:
// such a key must be taken as known to others.
func readKey(path string) (*ecdsa.PrivateKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("private key %s is open to others (mode %04o): replace it if anyone may have read it, else run: chmod 600 %s", path, mode, path)
	}
	var buf bytes.Buffer
	if _, err := buf.ReadFrom(f); err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	block, _ := pem.Decode(buf.Bytes())
	if block == nil || block.Type != pemKey {
		return nil, fmt.Errorf("private key %s: no PEM block %q in it", path, pemKey)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("private key %s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("private key %s: is a %T, want an ECDSA key", path, parsed)
	}
	return key, nil
}

// noCAKeys makes sure that the directory of a node that is no controller holds no key
// of a CA: whoever holds one can make himself any node.
func noCAKeys(dir string) error {
	for _, ca := range issuing {
		_, err := os.Lstat(caKeyFile(dir, ca))
		if err == nil {
			return fmt.Errorf("%s: the keys of the CAs belong to controllers only", caKeyFile(dir, ca))
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// newFile is a file that must not exist yet.
type newFile struct {
	path string
	data []byte
	perm fs.FileMode
	// same accepts an existing file with just this content. It serves public CA
	// certificates, which a second issue into one directory meets again.
	same bool
}

// createAll writes the files in order and durably, and refuses to do anything if
// one of them exists. When it fails in the middle it removes what it wrote.
func createAll(files []newFile) (err error) {
	var missing []newFile
	for _, f := range files {
		have, err := os.ReadFile(f.path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing = append(missing, f)
		case err != nil:
			return err
		case f.same && bytes.Equal(have, f.data):
		case f.same:
			return fmt.Errorf("%s exists with other content: it belongs to another cluster", f.path)
		default:
			return &fs.PathError{Op: "create", Path: f.path, Err: fs.ErrExist}
		}
	}
	var written []string
	defer func() {
		if err != nil {
			for _, path := range written {
				err = errors.Join(err, durable.Remove(path))
			}
		}
	}()
	for _, f := range missing {
		if err := durable.MkdirAll(filepath.Dir(f.path), dirPerm); err != nil {
			return err
		}
		if err := durable.WriteFile(f.path, f.data, f.perm); err != nil {
			return err
		}
		written = append(written, f.path)
	}
	return nil
}
