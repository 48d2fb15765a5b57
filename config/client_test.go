package config

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLoadClient(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "client.yaml")
	if err := os.WriteFile(file, []byte("server: [c1, 'https://[fd00::1]:8443/']\ntoken: from-file\ncacert: ca.crt\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		opts Options
		want Client
	}{
		{"file", Options{File: file},
			Client{Server: []string{"https://c1:7600", "https://[fd00::1]:8443"}, Token: "from-file", CACert: filepath.Join(dir, "ca.crt")}},
		{"environment over file", Options{File: file, Env: []string{"UAC_SERVER=https://c1:7600,c2", "UAC_CACERT=ca.crt", "UAC_TOKEN=", "UAC_NODE_NAME=x"}},
			Client{Server: []string{"https://c1:7600", "https://c2:7600"}, Token: "from-file", CACert: "ca.crt"}},
		{"flags over environment", Options{Env: []string{"UAC_TOKEN=env"}, Flags: []Flag{{Key: "token", Value: "flag", Name: "--token"}}},
			Client{Token: "flag"}},
		{"no file", Options{File: filepath.Join(dir, "absent.yaml")}, Client{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, _, err := LoadClient(tt.opts)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestLoadClientProblems(t *testing.T) {
	tests := []struct {
		name string
		file string
		env  []string
		want []string
	}{
		{"unknown key", "servers: [c1]", nil, []string{"uac.yaml:1: servers: there is no such key; did you mean server?"}},
		{"plain http", "", []string{"UAC_SERVER=c1,http://c2:7600"}, []string{`env UAC_SERVER: server[1]: "http://c2:7600" must begin with https://`}},
		{"with a path", "server: https://c1:7600/v1", nil, []string{`uac.yaml:1: server[0]: "https://c1:7600/v1" is not of the form https://host:port`}},
		{"with a password", "server: https://u:p@c1:7600", nil, []string{`uac.yaml:1: server[0]: "https://u:p@c1:7600" is not of the form https://host:port`}},
		{"port", "server: c1:0", nil, []string{`uac.yaml:1: server[0]: "c1:0" has no valid port`}},
		{"token with a line end", "", []string{"UAC_TOKEN=a\nb"}, []string{`env UAC_TOKEN: token: holds characters that no token has`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := LoadClient(Options{File: writeFile(t, tt.file), Env: tt.env})
			if diff := cmp.Diff(tt.want, problems(t, err)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
