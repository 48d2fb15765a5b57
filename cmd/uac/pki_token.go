package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"uac/codestation/durable"
	"uac/roles/wire/pki"
)

// The first API token of a cluster: without one, nobody could make another.
const (
	// adminTokenFile, beside the authorities, is for the operator.
	adminTokenFile = "admin.token"
	// adminName is whom it stands for.
	adminName = "admin"
)

// initPKI creates the authorities and the first API token of a new cluster and
// returns the token. The token's record goes with the directories of
// controllers, which store it.
func initPKI(o pki.InitOptions) (string, error) {
	tokenFile, recordFile := filepath.Join(o.Dir, adminTokenFile), filepath.Join(o.Dir, firstTokenFile)
	for _, path := range []string{tokenFile, recordFile} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return "", errors.Join(fmt.Errorf("%s: %w", path, fs.ErrExist), err)
		}
	}
	token, record, err := pki.NewAPIToken(pki.APITokenSpec{Name: adminName, Role: pki.Admin, CreatedBy: "uac pki init"}, time.Now())
	if err != nil {
		return "", err
	}
	text, err := json.MarshalIndent(record, "", "  ")
	if err != nil {
		return "", err
	}
	if err := pki.Init(o); err != nil {
		return "", err
	}
	if err := durable.WriteFile(recordFile, append(text, '\n'), 0o600); err != nil {
		return "", err
	}
	return token, durable.WriteFile(tokenFile, []byte(token+"\n"), 0o600)
}

// issueNode makes the directory of a node by the authorities in dir. That of a
// controller gets the record of the first token, too.
func issueNode(authority *pki.Authority, dir, to string, spec pki.NodeSpec) error {
	if err := authority.IssueNode(to, spec); err != nil {
		return err
	}
	if spec.Role != pki.Controller {
		return nil
	}
	record, err := os.ReadFile(filepath.Join(dir, firstTokenFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // made before there were such tokens, or taken away
	}
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(to, firstTokenFile), record, 0o600)
}
