package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"uac/config"
	"uac/roles"
	"uac/roles/wire/pki"
)

func newPKICommand(a *app) *cobra.Command {
	cmd := newNounCommand("pki", "Create, issue, renew and show keys and certificates",
		newPKIInitCommand(a),
		newPKIIssueCommand(a),
		newPKIRenewCommand(a),
		newPKIShowCommand(a),
	)
	cmd.GroupID = groupNode
	return cmd
}

// caDirFlag adds the flag that says where the CAs are.
func caDirFlag(fs *pflag.FlagSet, dir *string) {
	fs.StringVar(dir, "dir", "pki", "`DIR` with the certificate authorities and their keys; a controller's own directory will do")
}

// openAuthority opens the CAs, or says what is wrong with the directory that the
// user named.
func openAuthority(dir string) (*pki.Authority, error) {
	authority, err := pki.OpenAuthority(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, usageError("%s holds no certificate authorities with their keys (%w); see uac pki init --help", dir, err)
	}
	return authority, err
}

// pkiError gives a refusal to overwrite something its exit code.
func pkiError(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return fail(exitConflict, "%w; nothing is overwritten, and nothing was done", err)
	}
	return err
}

func newPKIInitCommand(a *app) *cobra.Command {
	var opts pki.InitOptions
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Create the certificate authorities of a new cluster",
		Long: `Create the certificate authorities of a new cluster: an offline root and, signed
by it, one CA each for members, for the API, and for the links of agents and
relays. Nothing is overwritten (exit code 6).

The key of the root goes into a directory of its own. Take that directory
offline: it is needed again only to replace a CA. The keys of the other three
stay in ca/ and go to the controllers, which issue and renew with them.

The first operator gets in with the API token in admin.token, which has the role
admin. first-token.json, by which the cluster knows it, goes to the controllers
with their keys and holds no secret.`,
		Example: `  uac pki init --cluster prod
  uac pki init --cluster prod --dir /etc/uac/pki --root-dir /media/usb/uac-root`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return runPKIInit(a, opts) },
	}
	caDirFlag(cmd.Flags(), &opts.Dir)
	cmd.Flags().StringVar(&opts.Cluster, "cluster", config.Default().Cluster.Name, "`NAME` of the cluster, cluster.name in the settings of its nodes")
	cmd.Flags().StringVar(&opts.RootDir, "root-dir", "", "`DIR` for the root and its key (default: root below --dir)")
	return cmd
}

func runPKIInit(a *app, opts pki.InitOptions) error {
	if err := pki.ValidateCluster(opts.Cluster); err != nil {
		return usageError("--cluster: %w", err)
	}
	if opts.RootDir == "" {
		opts.RootDir = filepath.Join(opts.Dir, "root")
	}
	if _, err := initPKI(opts); err != nil {
		return pkiError(err)
	}
	authority, err := pki.OpenAuthority(opts.Dir)
	if err != nil {
		return err
	}
	result := struct {
		Cluster         string `json:"cluster"`
		Dir             string `json:"dir"`
		RootDir         string `json:"root_dir"`
		RootFingerprint string `json:"root_fingerprint"`
		AdminTokenFile  string `json:"admin_token_file"`
	}{opts.Cluster, opts.Dir, opts.RootDir, authority.RootFingerprint(), filepath.Join(opts.Dir, adminTokenFile)}
	return printObject(a, result, func(w io.Writer, p paint) error {
		_, err := fmt.Fprintf(w, `created the certificate authorities of cluster %s in %s
root fingerprint %s
API token of the first operator in %s
%s
next: uac pki issue --dir %s --role controller --name NAME
`, result.Cluster, result.Dir, result.RootFingerprint, result.AdminTokenFile,
			p.apply(yellow, "take "+result.RootDir+" offline now: it holds the key of the root"), result.Dir)
		return err
	})
}

// pkiIssueOptions are the flags of uac pki issue.
type pkiIssueOptions struct {
	dir, role, name string
	hosts           []string
	days            int
	to              string
}

func newPKIIssueCommand(a *app) *cobra.Command {
	var opts pkiIssueOptions
	cmd := &cobra.Command{
		Use:   "issue --role ROLE --name NAME [DIR]",
		Short: "Make the directory with all keys and certificates of a node",
		Long: `Make the directory with all keys and certificates that a node needs: copy it to
the node's pki.dir (by default pki below its data directory). Without DIR it is
called like the node. Nothing is overwritten (exit code 6).

The directory of a controller holds the keys of the CAs as well, with which
controllers issue and renew, and the record of the first API token. Agents
can also enrol by themselves with a join token; see uac token create --help.`,
		Example: `  uac pki issue --role controller --name c1 --host c1.example.com --host 10.0.0.1
  uac pki issue --role watch --name w1
  uac pki issue --role agent --name web1.example.com --days 365 /tmp/web1`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			opts.to = opts.name
			if len(args) > 0 {
				opts.to = args[0]
			}
			return runPKIIssue(a, opts)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&opts.role, "role", "", "`ROLE` of the node: controller, watch, relay or agent")
	fs.StringVar(&opts.name, "name", "", "`NAME` of the node")
	fs.StringSliceVar(&opts.hosts, "host", nil, "`HOST` name or address by which clients reach the node's API (repeatable; default: the name and localhost)")
	lifetimeFlag(fs, &opts.days)
	caDirFlag(fs, &opts.dir)
	return cmd
}

// maxDays is the lifetime of a CA, which no certificate outlives.
const maxDays = int(pki.CALifetime / (24 * time.Hour))

func lifetimeFlag(fs *pflag.FlagSet, days *int) {
	fs.IntVar(days, "days", int(pki.DefaultLifetime/(24*time.Hour)), "`DAYS` for which certificates are valid")
}

func checkDays(days int) error {
	if days < 1 || days > maxDays {
		return usageError("--days: %d is not between 1 and %d", days, maxDays)
	}
	return nil
}

func runPKIIssue(a *app, opts pkiIssueOptions) error {
	role, err := roles.ParseRole(opts.role)
	if err != nil {
		return usageError("--role: %w", err)
	}
	if err := roles.CheckNodeName(opts.name); err != nil {
		return usageError("--name: %w", err)
	}
	if err := checkDays(opts.days); err != nil {
		return err
	}
	if len(opts.hosts) > 0 {
		if role == roles.RoleAgent {
			return usageError("--host: an agent has no API")
		}
		if err := pki.ValidateHosts(opts.hosts); err != nil {
			return usageError("--host: %w", err)
		}
	}
	authority, err := openAuthority(opts.dir)
	if err != nil {
		return err
	}
	authority.Lifetime = time.Duration(opts.days) * 24 * time.Hour
	if err := issueNode(authority, opts.dir, opts.to, pki.NodeSpec{Role: role, Name: opts.name, Hosts: opts.hosts}); err != nil {
		return pkiError(err)
	}
	infos, err := pki.Show(opts.to, time.Now())
	if err != nil {
		return err
	}
	result := struct {
		Name         string     `json:"name"`
		Role         roles.Role `json:"role"`
		Cluster      string     `json:"cluster"`
		Dir          string     `json:"dir"`
		Certificates []pki.Info `json:"certificates"`
	}{opts.name, role, authority.Cluster(), opts.to, ownCertificates(infos)}
	return printObject(a, result, func(w io.Writer, _ paint) error {
		if _, err := fmt.Fprintf(w, "issued %s %s of cluster %s in %s\n", role, result.Name, result.Cluster, result.Dir); err != nil {
			return err
		}
		return printCertificates(a, result.Certificates)
	})
}

func ownCertificates(infos []pki.Info) []pki.Info {
	own := []pki.Info{}
	for _, info := range infos {
		if !info.IsCA {
			own = append(own, info)
		}
	}
	return own
}

func newPKIRenewCommand(a *app) *cobra.Command {
	var dir string
	var all bool
	var days int
	cmd := &cobra.Command{
		Use:   "renew [DIR...]",
		Short: "Renew the certificates in node directories",
		Long: `Renew the certificates in node directories that have less than a third of their
lifetime left, and show them. Keys, names and hosts stay as they are. A running
node uses the new certificates from its next connection on.

Running nodes renew by themselves. This is for nodes that were off for too long:
an expired certificate is renewed, too. Without DIR it is --dir itself, the
directory of a controller.`,
		Example: `  uac pki renew --dir /var/lib/uac/pki
  uac pki renew --dir pki --all c1 w1`,
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{dir}
			}
			return runPKIRenew(a, dir, args, all, days)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "renew also what is not due")
	lifetimeFlag(cmd.Flags(), &days)
	caDirFlag(cmd.Flags(), &dir)
	return cmd
}

func runPKIRenew(a *app, dir string, nodes []string, all bool, days int) error {
	if err := checkDays(days); err != nil {
		return err
	}
	authority, err := openAuthority(dir)
	if err != nil {
		return err
	}
	authority.Lifetime = time.Duration(days) * 24 * time.Hour
	renewed, err := authority.RenewNodes(all, nodes...)
	if errors.Is(err, fs.ErrNotExist) {
		err = usageError("%w", err)
	}
	if err == nil && len(renewed) == 0 {
		fmt.Fprintln(a.stderr, "nothing is due for renewal")
	}
	if printErr := printCertificates(a, append([]pki.Info{}, renewed...)); err == nil {
		err = printErr
	}
	return err
}

func newPKIShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show [PATH...]",
		Short: "Show certificates and for how long they are valid",
		Long: `Show the certificates in a node's directory and those of its CAs, or a single
file. Without PATH it is the directory pki. A moment after RENEW a running node
renews by itself.`,
		Example: `  uac pki show /var/lib/uac/pki
  uac pki show -o json c1/api.crt`,
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"pki"}
			}
			return runPKIShow(a, args, time.Now())
		},
	}
}

func runPKIShow(a *app, paths []string, now time.Time) error {
	all := []pki.Info{}
	for _, path := range paths {
		infos, err := pki.Show(path, now)
		if errors.Is(err, fs.ErrNotExist) {
			return fail(exitNotFound, "%w", err)
		}
		if err != nil {
			return err
		}
		all = append(all, infos...)
	}
	return printCertificates(a, all)
}

func printCertificates(a *app, infos []pki.Info) error {
	date := func(t time.Time) string { return t.Format(time.DateOnly) }
	return printList(a, infos,
		column[pki.Info]{title: "FILE", cell: func(i pki.Info) string { return i.File }},
		column[pki.Info]{title: "FOR", cell: func(i pki.Info) string {
			if i.Identity != "" {
				return i.Identity
			}
			return i.Subject
		}},
		column[pki.Info]{title: "HOSTS", cell: func(i pki.Info) string {
			return strings.Join(append(append([]string{}, i.DNSNames...), i.Addresses...), ",")
		}},
		column[pki.Info]{title: "EXPIRES", cell: func(i pki.Info) string { return date(i.NotAfter) }},
		column[pki.Info]{title: "RENEW", cell: func(i pki.Info) string { return date(i.RenewAfter) }},
		column[pki.Info]{
			title: "DAYS LEFT",
			cell:  func(i pki.Info) string { return fmt.Sprint(i.DaysLeft) },
			color: func(i pki.Info) color {
				switch {
				case i.DaysLeft < 0:
					return red
				case time.Now().After(i.RenewAfter):
					return yellow
				}
				return green
			},
		},
		column[pki.Info]{title: "ISSUER", wide: true, cell: func(i pki.Info) string { return i.Issuer }},
		column[pki.Info]{title: "SERIAL", wide: true, cell: func(i pki.Info) string { return i.Serial }},
		column[pki.Info]{title: "FINGERPRINT", wide: true, cell: func(i pki.Info) string { return i.Fingerprint }},
	)
}
