package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"golang.org/x/sync/errgroup"

	"uac/codestation/durable"
	"uac/codestation/mount"
	"uac/config"
	"uac/roles"
	"uac/roles/wire/pki"
)

// devCluster is a whole cluster on one machine: the directory in which all of
// it lives, and what is written in its cluster.json.
type devCluster struct {
	dir string // absolute

	// What follows is cluster.json. Others read it; names are a contract.
	Nodes []devNode `json:"nodes"`
	// Set holds settings of all nodes, KEY=VALUE.
	Set []string `json:"set,omitempty"`
	// Subnet is the /24 of the loopback network that belongs to this cluster,
	// for example 127.18.52. Empty if its nodes have addresses of another kind.
	Subnet string `json:"subnet,omitempty"`
}

// devNode is one node of a cluster on one machine.
type devNode struct {
	Name    string     `json:"name"`
	Role    roles.Role `json:"role"`
	PID     int        `json:"pid"`     // 0 while it does not run
	API     string     `json:"api"`     // URL; "" of an agent
	Address string     `json:"address"` // without a port; "" of an agent
	DataDir string     `json:"data_dir"`
	Config  string     `json:"config"`
	Log     string     `json:"log"`

	namespace string // network namespace that it runs in, "" for that of this process
}

// devShape is how many nodes of each role a cluster has.
type devShape struct {
	controllers, watches, relays, agents int
}

// devLabels are what steps can select the agents of such a cluster by.
const devLabels = "{tier: web}"

// The files of a cluster beside the directories of its nodes.
func (c *devCluster) file(name string) string { return filepath.Join(c.dir, name) }

const (
	devClusterFile = "cluster.json"
	devEnvFile     = "env"      // shell variables of a client
	devMountDir    = "mount"    // shared by the controllers
	devPKIDir      = "pki"      // the authorities, and the first token
	devLogFile     = "dev.log"  // of the process that runs the nodes, if it is in the background
	devSocket      = "dev.sock" // where that process takes orders
)

// loadDevCluster reads what there is in a directory: nothing (nil, nil), or a
// cluster.
func loadDevCluster(dir string) (*devCluster, error) {
	text, err := os.ReadFile(filepath.Join(dir, devClusterFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c := &devCluster{dir: dir}
	if err := json.Unmarshal(text, c); err != nil {
		return nil, fmt.Errorf("%s: %w", c.file(devClusterFile), err)
	}
	return c, nil
}

// save writes cluster.json: readers see the old one or the new one.
func (c *devCluster) save() error {
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(c.file(devClusterFile), append(text, '\n'), 0o644)
}

// node returns the node of that name.
func (c *devCluster) node(name string) (*devNode, error) {
	for i := range c.Nodes {
		if c.Nodes[i].Name == name {
			return &c.Nodes[i], nil
		}
	}
	return nil, fail(exitNotFound, "%s has no node %q; its nodes are %s", c.dir, name, strings.Join(c.names(), ", "))
}

func (c *devCluster) names() []string {
	var names []string
	for _, n := range c.Nodes {
		names = append(names, n.Name)
	}
	return names
}

func (c *devCluster) withRole(role roles.Role) []devNode {
	return slices.DeleteFunc(slices.Clone(c.Nodes), func(n devNode) bool { return n.Role != role })
}

func (c *devCluster) shape() devShape {
	return devShape{
		controllers: len(c.withRole(roles.RoleController)), watches: len(c.withRole(roles.RoleWatch)),
		relays: len(c.withRole(roles.RoleRelay)), agents: len(c.withRole(roles.RoleAgent)),
	}
}

// token returns the token of the first operator.
func (c *devCluster) token() (string, error) {
	text, err := os.ReadFile(filepath.Join(c.file(devPKIDir), adminTokenFile))
	return strings.TrimSpace(string(text)), err
}

// cacert is the file by which clients trust the cluster.
func (c *devCluster) cacert() string { return filepath.Join(c.file(devPKIDir), "ca", "root.crt") }

// newDevCluster describes a cluster that does not exist yet. address returns
// that of the i-th node that listens.
func newDevCluster(dir string, shape devShape, set []string, address func(i int) string) *devCluster {
	c := &devCluster{dir: dir, Set: set}
	add := func(role roles.Role, prefix string, count int) {
		for n := range count {
			node := devNode{Name: fmt.Sprintf("%s%d", prefix, n+1), Role: role}
			if role != roles.RoleAgent {
				node.Address = address(len(c.Nodes))
				node.API = fmt.Sprintf("https://%s:%d", node.Address, config.PortAPI)
			}
			home := filepath.Join(dir, node.Name)
			node.DataDir, node.Config, node.Log = filepath.Join(home, "data"), filepath.Join(home, "uac.yaml"), filepath.Join(home, "log")
			c.Nodes = append(c.Nodes, node)
		}
	}
	add(roles.RoleController, "c", shape.controllers)
	add(roles.RoleWatch, "w", shape.watches)
	add(roles.RoleRelay, "r", shape.relays)
	add(roles.RoleAgent, "a", shape.agents)
	return c
}

// devClusterName is the name of every cluster made here, as in certificates.
const devClusterName = "dev"

// create makes the cluster's files, cluster.json last. If that fails it leaves
// nothing.
func (c *devCluster) create() (err error) {
	if entries, err := os.ReadDir(c.dir); err != nil {
		return err
	} else if i := slices.IndexFunc(entries, func(e os.DirEntry) bool { return e.Name() != devLogFile }); i >= 0 {
		return usageError("%s holds no cluster, but it is not empty (%s): name a new directory", c.dir, entries[i].Name())
	}
	defer func() {
		if err == nil {
			return
		}
		for _, name := range append(c.names(), devMountDir, devPKIDir, devEnvFile, devClusterFile) {
			err = errors.Join(err, os.RemoveAll(c.file(name)))
		}
	}()
	token, err := initPKI(pki.InitOptions{Dir: c.file(devPKIDir), Cluster: devClusterName})
	if err != nil {
		return err
	}
	if err := durable.MkdirAll(c.file(devMountDir), 0o700); err != nil {
		return err
	}
	if _, err := mount.Init(c.file(devMountDir), devClusterName); err != nil {
		return err
	}
	authority, err := pki.OpenAuthority(c.file(devPKIDir))
	if err != nil {
		return err
	}
	var g errgroup.Group
	for _, n := range c.Nodes {
		g.Go(func() error { return c.createNode(authority, n) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	var servers []string
	for _, n := range c.withRole(roles.RoleController) {
		servers = append(servers, n.API)
	}
	env := fmt.Sprintf("export UAC_SERVER=%s\nexport UAC_TOKEN=%s\nexport UAC_CACERT=%s\n",
		shellQuote(strings.Join(servers, ",")), shellQuote(token), shellQuote(c.cacert()))
	if err := durable.WriteFile(c.file(devEnvFile), []byte(env), 0o600); err != nil {
		return err
	}
	return c.save()
}

func (c *devCluster) createNode(authority *pki.Authority, n devNode) error {
	if err := durable.MkdirAll(n.DataDir, 0o700); err != nil {
		return err
	}
	text, err := c.config(n)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(n.Config, text, 0o644); err != nil {
		return err
	}
	if err := c.check(n); err != nil {
		return err
	}
	spec := pki.NodeSpec{Role: n.Role, Name: n.Name}
	if n.Role != roles.RoleAgent {
		spec.Hosts = append(pki.DefaultHosts(n.Name), n.Address)
	}
	return issueNode(authority, c.file(devPKIDir), filepath.Join(n.DataDir, "pki"), spec)
}

// check reads the settings of a node as the node will.
func (c *devCluster) check(n devNode) error {
	o := daemonOptions{file: n.Config}
	for _, setting := range c.Set {
		if err := (&settingFlag{o: &o, flag: "set"}).Set(setting); err != nil {
			return usageError("--set %q: %w", setting, err)
		}
	}
	_, _, err := o.load(&app{})
	return err
}

var devConfig = template.Must(template.New("uac.yaml").Funcs(template.FuncMap{
	"quote": func(s string) string { return fmt.Sprintf("%q", s) },
}).Parse(`# Written by uac dev. Settings given to it by --set win over these.
node: {role: {{.Node.Role}}, name: {{.Node.Name}}, data_dir: {{quote .Node.DataDir}}{{if not .Members}}{{with .Node.Address}}, advertise: {{.}}{{end}}{{end}}}
cluster: {name: {{.Cluster}}}
{{- if .Servers}}
{{.Node.Role}}:
  servers: [{{range $i, $s := .Servers}}{{if $i}}, {{end}}{{$s}}{{end}}]
{{- end}}
{{- if .Labels}}
  labels: {{.Labels}}
{{- end}}
{{- if .Node.Address}}
listen:
  api: "{{.Node.Address}}:{{.API}}"
  raft: "{{.Node.Address}}:{{.Raft}}"
  link: "{{.Node.Address}}:{{.Link}}"
{{- end}}
{{- if .Mount}}
mount: {dir: {{quote .Mount}}}
{{- end}}
{{- if .Members}}
members:
{{- range .Members}}
- {name: {{.Name}}, role: {{.Role}}, address: {{.Address}}}
{{- end}}
{{- end}}
`))

// config returns the settings of a node.
func (c *devCluster) config(n devNode) ([]byte, error) {
	data := struct {
		Node            devNode
		Cluster, Labels string
		Mount           string
		Members         []devNode
		Servers         []string
		API, Raft, Link int
	}{
		Node: n, Cluster: devClusterName,
		API: config.PortAPI, Raft: config.PortRaft, Link: config.PortLink,
	}
	if n.Role == roles.RoleController {
		data.Mount = c.file(devMountDir)
	}
	controllers := c.withRole(roles.RoleController)
	switch n.Role {
	case roles.RoleController, roles.RoleWatch:
		data.Members = slices.Concat(controllers, c.withRole(roles.RoleWatch))
	case roles.RoleRelay:
		data.Servers = addresses(controllers, 0)
	case roles.RoleAgent:
		// Each begins with others, so that all have links. Relays come first: that is
		// what they are there for.
		agents := c.withRole(roles.RoleAgent)
		first := slices.IndexFunc(agents, func(a devNode) bool { return a.Name == n.Name })
		data.Servers = append(addresses(c.withRole(roles.RoleRelay), first), addresses(controllers, first)...)
		data.Labels = devLabels
	}
	var text bytes.Buffer
	if err := devConfig.Execute(&text, data); err != nil {
		return nil, err
	}
	return text.Bytes(), nil
}

// addresses lists where nodes are, beginning with another one for every first.
func addresses(nodes []devNode, first int) []string {
	var all []string
	for i := range nodes {
		all = append(all, nodes[(first+i)%len(nodes)].Address)
	}
	return all
}

// shellQuote makes one word of text for a POSIX shell.
func shellQuote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }
