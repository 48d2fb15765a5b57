package config

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Client is the whole of the command line client's settings.
type Client struct {
	// Server holds the API's addresses, tried in order. [LoadClient] returns
	// each as https://host:port.
	Server []string `yaml:"server"`
	// Token is the bearer token.
	Token string `yaml:"token" secret:"true"`
	// CACert is the file with the authority that the API's certificate must
	// come from. Empty means those that the system trusts.
	CACert string `yaml:"cacert"`
}

// LoadClient reads the settings of the client: the file, which may be missing,
// under UAC_SERVER, UAC_TOKEN and UAC_CACERT under flags. All problems come in
// one [*Error].
func LoadClient(o Options) (Client, Origins, error) {
	var c Client
	s := schemaOf(reflect.TypeFor[Client]())
	file, env, flags := newReader(s), newReader(s), newReader(s)
	if o.File != "" {
		file.file(o.File, true)
	}
	env.environment(o.Env)
	for _, f := range o.Flags {
		flags.text(f.Key, Origin{Source: FromFlag, Name: f.Name}, f.Value)
	}
	origins, err := s.overlay(&c, file.layer, env.layer, flags.layer)
	if err != nil {
		return c, origins, err
	}

	problems := slices.Concat(file.problems, env.problems, flags.problems)
	for i, server := range c.Server {
		addr, err := serverURL(server)
		if err != nil {
			key := fmt.Sprintf("server[%d]", i)
			problems = append(problems, Problem{Key: key, Origin: origins.Of(key), Message: err.Error()})
		}
		c.Server[i] = addr
	}
	if strings.ContainsFunc(c.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		problems = append(problems, Problem{Key: "token", Origin: origins.Of("token"), Message: "holds characters that no token has"})
	}
	// A file's paths are relative to the file: it is read from everywhere.
	if at := origins.Of("cacert"); at.Source == FromFile && c.CACert != "" && !filepath.IsAbs(c.CACert) {
		c.CACert = filepath.Join(filepath.Dir(at.Name), c.CACert)
	}
	return c, origins, errorOf(problems)
}

// serverURL makes https://host:port of what a user writes: host, host:port or
// the URL itself. A token is never sent without TLS, so there is no http.
func serverURL(text string) (string, error) {
	host, hasScheme := strings.CutPrefix(text, "https://")
	if !hasScheme && strings.Contains(text, "://") {
		return "", fmt.Errorf("%s must begin with https://", quoted(text))
	}
	u, err := url.Parse("https://" + withPort(strings.TrimSuffix(host, "/"), PortAPI))
	if err != nil || u.Hostname() == "" || u.Path != "" || u.RawQuery != "" || u.User != nil || u.Fragment != "" {
		return "", fmt.Errorf("%s is not of the form https://host:port", quoted(text))
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil || port == 0 {
		return "", fmt.Errorf("%s has no valid port", quoted(text))
	}
	return "https://" + net.JoinHostPort(u.Hostname(), u.Port()), nil
}
