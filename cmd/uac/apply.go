package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"uac/roles"
	"uac/roles/controller/api"
)

// applyOptions are the flags of uac apply.
type applyOptions struct {
	files  []string
	dryRun bool
	why    string
}

func newApplyCommand(a *app) *cobra.Command {
	var opts applyOptions
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Create and change what documents define",
		Long: `Create and change what YAML documents define: files, all *.yaml and *.yml files
of a directory and those below it, or standard input (-).

All documents are checked before anything is sent; a mistake is told with its
file and line, and exit code 2. Documents go to the cluster together: all of them
take effect or none. (Of more than 1 MiB, each part of 1 MiB does.) What is the
same already is left alone. Nothing is ever deleted.`,
		Example: `  uac apply -f deploy-web.yaml
  uac apply -f processes/ --dry-run
  uac export | uac apply -f -`,
		GroupID: groupCluster,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runApply(cmd.Context(), a, opts) },
	}
	fs := cmd.Flags()
	fs.StringArrayVarP(&opts.files, "file", "f", nil, "`FILE`, directory or - (repeatable)")
	fs.BoolVar(&opts.dryRun, "dry-run", false, "let the cluster check everything and say what would change, and change nothing")
	whyFlag(fs, &opts.why)
	a.addClientFlags(cmd)
	return cmd
}

func runApply(ctx context.Context, a *app, opts applyOptions) error {
	if len(opts.files) == 0 {
		return usageError("nothing to apply: give -f FILE, a directory or -")
	}
	docs, err := a.readDocuments(opts.files)
	if err != nil {
		return err
	}
	if len(docs) == 0 {
		return usageError("%s: no documents", strings.Join(opts.files, ", "))
	}
	parts, err := partsOf(docs)
	if err != nil {
		return err
	}
	c, err := a.newClient()
	if err != nil {
		return err
	}
	query := because(opts.why)
	if opts.dryRun {
		query.Set("dry_run", "true")
	}
	var all []api.Applied
	for i, part := range parts {
		var applied []api.Applied
		err := c.send(ctx, call{
			method: http.MethodPost, path: pathOf("documents"), query: query, body: part, media: "application/json",
		}, &applied)
		if err != nil && i > 0 && !opts.dryRun {
			err = fmt.Errorf("%w\nthe first %d of %d documents are applied", err, len(all), len(docs))
		}
		if err != nil {
			return err
		}
		all = append(all, applied...)
	}
	if opts.dryRun && a.output != formatJSON && a.output != formatYAML {
		fmt.Fprintln(a.stderr, "dry run: nothing was changed")
	}
	return printList(a, all,
		column[api.Applied]{title: "KIND", cell: func(d api.Applied) string { return d.Kind }},
		column[api.Applied]{title: "NAME", cell: func(d api.Applied) string { return d.Name }},
		column[api.Applied]{title: "RESULT", cell: func(d api.Applied) string { return d.Result }, color: func(d api.Applied) color {
			if d.Result == "unchanged" {
				return faint
			}
			return green
		}},
	)
}

// readDocuments reads and checks all documents of all inputs.
func (a *app) readDocuments(inputs []string) ([]roles.Document, error) {
	var docs []roles.Document
	var wrong []error
	for _, input := range inputs {
		files, err := documentFiles(input)
		if err != nil {
			wrong = append(wrong, err)
			continue
		}
		for _, file := range files {
			found, err := a.decodeFile(file)
			if err != nil {
				wrong = append(wrong, err)
			}
			docs = append(docs, found...)
		}
	}
	first := map[string]roles.Document{}
	for _, d := range docs {
		key := d.Kind + " " + d.Name
		if before, twice := first[key]; twice {
			wrong = append(wrong, fmt.Errorf("%s:%d: %s is in %s:%d already", d.File, d.Line, key, before.File, before.Line))
			continue
		}
		first[key] = d
	}
	if len(wrong) > 0 {
		return nil, usageError("%w", errors.Join(wrong...))
	}
	return docs, nil
}

// documentFiles returns the files that an input stands for, in order.
func documentFiles(input string) ([]string, error) {
	if input == "-" {
		return []string{"-"}, nil
	}
	info, err := os.Stat(input)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{input}, nil
	}
	var files []string
	err = filepath.WalkDir(input, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasPrefix(d.Name(), ".") && path != input {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if ext := filepath.Ext(path); !d.IsDir() && (ext == ".yaml" || ext == ".yml") {
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s: no *.yaml or *.yml files", input)
	}
	slices.Sort(files)
	return files, nil
}

func (a *app) decodeFile(file string) ([]roles.Document, error) {
	if file == "-" {
		return roles.Decode("standard input", a.stdin)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	return roles.Decode(file, f)
}

// fieldOf is the field of the call that carries documents of a kind.
func fieldOf(kind string) string {
	if kind == roles.KindAgentCluster {
		return "agent_clusters"
	}
	return "processes"
}

// callPart is the body of one call, in the making.
type callPart struct {
	items map[string][]json.RawMessage // by field
	bytes int
}

func (p *callPart) text() ([]byte, error) {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false) // scripts are full of < and &
	err := enc.Encode(p.items)
	return text.Bytes(), err
}

// partsOf returns the bodies of the calls that carry the documents: as few as
// the server's limit allows.
func partsOf(docs []roles.Document) ([][]byte, error) {
	const around = 64 // fields and brackets of a call
	parts := []callPart{{items: map[string][]json.RawMessage{}}}
	for _, d := range docs {
		var text bytes.Buffer
		enc := json.NewEncoder(&text)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(d.Definition()); err != nil {
			return nil, fmt.Errorf("encode %s %s: %w", d.Kind, d.Name, err)
		}
		one := bytes.TrimSuffix(text.Bytes(), []byte("\n"))
		if len(one)+around > api.MaxBody {
			return nil, usageError("%s:%d: %s %s has %d bytes, at most %d are allowed", d.File, d.Line, d.Kind, d.Name, len(one), api.MaxBody-around)
		}
		part := &parts[len(parts)-1]
		if part.bytes+len(one)+1+around > api.MaxBody {
			parts = append(parts, callPart{items: map[string][]json.RawMessage{}})
			part = &parts[len(parts)-1]
		}
		field := fieldOf(d.Kind)
		part.items[field] = append(part.items[field], one)
		part.bytes += len(one) + 1
	}
	var bodies [][]byte
	for _, part := range parts {
		body, err := part.text()
		if err != nil {
			return nil, fmt.Errorf("encode documents: %w", err)
		}
		bodies = append(bodies, body)
	}
	return bodies, nil
}

func newExportCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export [PROCESS...]",
		Short: "Print definitions as documents that apply takes",
		Long: `Print all agent clusters and processes, or the processes that are named, as YAML
documents that uac apply takes again.`,
		Example: `  uac export > definitions.yaml
  uac export deploy-web --server c1 | uac apply -f - --server other`,
		GroupID:           groupCluster,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: a.completeProcesses(100),
		RunE:              func(cmd *cobra.Command, args []string) error { return runExport(cmd.Context(), a, args) },
	}
	a.addClientFlags(cmd)
	return cmd
}

func runExport(ctx context.Context, a *app, names []string) error {
	c, err := a.newClient()
	if err != nil {
		return err
	}
	var all []roles.Definition
	if len(names) == 0 {
		var clusters []api.AgentClusterStatus
		var processes []*roles.Process
		if err := c.get(ctx, pathOf("agent-clusters"), nil, &clusters); err != nil {
			return err
		}
		if err := c.get(ctx, pathOf("processes"), nil, &processes); err != nil {
			return err
		}
		for _, g := range clusters {
			all = append(all, clusterDefinition(g))
		}
		for _, p := range processes {
			all = append(all, p)
		}
	}
	for _, name := range names {
		p := &roles.Process{}
		if err := c.get(ctx, pathOf("processes", name), nil, p); err != nil {
			return err
		}
		all = append(all, p)
	}
	if len(all) == 0 {
		return nil // an empty stream has no documents
	}
	var text bytes.Buffer
	if err := roles.Encode(&text, all...); err != nil {
		return err
	}
	_, err = io.Copy(a.stdout, &text)
	return err
}
