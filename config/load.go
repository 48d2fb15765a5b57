package config

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/viper"

	"uac/roles"
)

// Options says where to read settings from.
type Options struct {
	// File is the configuration file. Empty means [DefaultFile], and only then
	// may the file be missing.
	File string
	// Env is the environment as os.Environ returns it. Empty variables count
	// as not set.
	Env []string
	// Flags are the settings of the command line. A later one replaces an
	// earlier one of the same key.
	Flags []Flag
}

// Flag is one setting made on the command line.
type Flag struct {
	Key   string // of the setting, for example node.role
	Value string
	Name  string // as the user wrote it, for example --role
}

// Load reads, completes and validates the settings of a daemon. The origins
// say where each was set. All problems come in one [*Error].
func Load(o Options) (Config, Origins, error) {
	return load(o, DefaultFile)
}

func load(o Options, defaultFile string) (Config, Origins, error) {
	cfg := Default()
	s := schemaOf(reflect.TypeFor[Config]())

	file, env, flags := newReader(s), newReader(s), newReader(s)
	file.file(cmp.Or(o.File, defaultFile), o.File == "")
	env.environment(o.Env)
	for _, f := range o.Flags {
		flags.text(f.Key, Origin{Source: FromFlag, Name: f.Name}, f.Value)
	}

	origins, err := s.overlay(&cfg, file.layer, env.layer, flags.layer)
	if err != nil {
		return cfg, origins, err
	}
	if err := cfg.complete(); err != nil {
		return cfg, origins, err
	}

	problems := slices.Concat(file.problems, env.problems, flags.problems)
	misread := func(key string) bool { return file.misread(key) || env.misread(key) || flags.misread(key) }
	for _, p := range fieldErrors(cfg.Validate()) {
		if slices.ContainsFunc(p.keys, misread) {
			continue
		}
		if _, given := origins["members"]; !given && strings.HasPrefix(p.keys[0], "members[") {
			continue // made of the node's own settings, which have the same problem
		}
		problem := Problem{Key: p.keys[0], Message: p.message}
		for _, key := range p.keys { // a default is never to blame if something else was set
			if problem.Origin = origins.Of(key); problem.Origin.Source != FromDefault {
				break
			}
		}
		problems = append(problems, problem)
	}
	return cfg, origins, errorOf(problems)
}

// overlay lays the layers over the settings in target, the last one on top,
// and returns where each value came from.
func (s schema) overlay(target any, layers ...layer) (Origins, error) {
	v := viper.New()
	settings := reflect.ValueOf(target).Elem()
	origins := Origins{}
	for _, f := range s {
		if !f.freeKeys() {
			v.SetDefault(f.key, settings.FieldByIndex(f.index).Interface())
		}
	}
	for _, l := range layers {
		for _, f := range s {
			value, ok := l.values[f.key]
			if !ok {
				continue
			}
			for key := range origins { // what lay below is hidden whole
				if rest, below := strings.CutPrefix(key, f.key); below && rest != "" && strings.ContainsAny(rest[:1], ".[") {
					delete(origins, key)
				}
			}
			if f.freeKeys() {
				settings.FieldByIndex(f.index).Set(value)
			} else if err := v.MergeConfigMap(nested(f.key, value.Interface())); err != nil {
				return nil, fmt.Errorf("merge %s: %w", f.key, err)
			}
		}
		for key, origin := range l.origins {
			origins[key] = origin
		}
	}
	err := v.UnmarshalExact(target, func(dc *mapstructure.DecoderConfig) { dc.TagName = "yaml" })
	if err != nil {
		return nil, fmt.Errorf("decode settings: %w", err)
	}
	return origins, nil
}

// nested wraps a value into one map per part of its key.
func nested(key string, value any) map[string]any {
	parts := strings.Split(key, ".")
	for _, part := range slices.Backward(parts) {
		value = map[string]any{part: value}
	}
	return value.(map[string]any)
}

// environment reads the variables that name settings. A variable that belongs
// to a section but names no setting is a mistake; other UAC_ variables (of the
// client, of a running step) are none of a daemon's business.
func (r *reader) environment(environ []string) {
	keyOf := map[string]string{}
	var names []string
	for _, f := range r.schema {
		keyOf[envName(f.key)] = f.key
		names = append(names, envName(f.key))
	}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, "UAC_") || value == "" {
			continue
		}
		at := Origin{Source: FromEnv, Name: name}
		if key, ok := keyOf[name]; ok {
			r.text(key, at, value)
			continue
		}
		for _, section := range r.sections() {
			if strings.HasPrefix(name, envName(section)+"_") {
				r.problems = append(r.problems, Problem{Origin: at, Message: "names no setting" + roles.DidYouMean(roles.Nearest(name, names))})
			}
		}
	}
}

// complete fills in what follows from the rest.
func (c *Config) complete() error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("configuration: find the host name: %w", err)
	}
	if c.Node.Name == "" {
		c.Node.Name = nodeName(host)
	}
	if c.Node.Advertise == "" {
		c.Node.Advertise = host
		if self, ok := c.Self(); ok && self.Address != "" {
			c.Node.Advertise = self.Address
		}
	}
	if len(c.Members) == 0 && c.Node.Role == roles.RoleController {
		c.Members = []Member{{Name: c.Node.Name, Role: roles.RoleController, Address: c.Node.Advertise}}
	}
	for _, dir := range []*string{&c.Node.DataDir, &c.PKI.Dir} {
		if *dir == "" {
			continue
		}
		// A daemon's working directory is nobody's business later on.
		if *dir, err = filepath.Abs(*dir); err != nil {
			return fmt.Errorf("configuration: find the working directory: %w", err)
		}
	}
	if c.PKI.Dir == "" && c.Node.DataDir != "" {
		c.PKI.Dir = filepath.Join(c.Node.DataDir, "pki")
	}
	for _, servers := range [][]string{c.Agent.Servers, c.Relay.Servers} {
		for i, server := range servers {
			servers[i] = withPort(server, PortLink)
		}
	}
	return nil
}

// Self returns this node's entry in members.
func (c *Config) Self() (Member, bool) {
	for _, m := range c.Members {
		if m.Name == c.Node.Name {
			return m, true
		}
	}
	return Member{}, false
}

var notInName = regexp.MustCompile(`[^a-z0-9-]+`)

// nodeName makes a node's name of a host name.
func nodeName(host string) string {
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	name := strings.Trim(notInName.ReplaceAllString(host, "-"), "-")
	return name[:min(len(name), roles.MaxName)]
}

// fieldErrors takes the field errors out of what Validate returned.
func fieldErrors(err error) []*fieldError {
	var list interface{ Unwrap() []error }
	if err == nil || !errors.As(err, &list) {
		return nil
	}
	var out []*fieldError
	for _, e := range list.Unwrap() {
		var fe *fieldError
		if errors.As(e, &fe) {
			out = append(out, fe)
		}
	}
	return out
}
