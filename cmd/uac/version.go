package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Set by the linker (see the Makefile).
var (
	version string // tag, or commit if there is none
	commit  string
	date    string // of the commit, RFC 3339: builds of one commit are equal
)

// buildInfo says which build this is.
type buildInfo struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"`
	Date     string `json:"date"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// thisBuild returns the linker's values, else what the go command recorded.
func thisBuild() buildInfo {
	b := buildInfo{
		Version: version, Commit: commit, Date: date,
		Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		b.fillFrom(info)
	}
	return b
}

// fillFrom fills what the linker left empty.
func (b *buildInfo) fillFrom(info *debug.BuildInfo) {
	recorded := map[string]string{}
	for _, s := range info.Settings {
		recorded[s.Key] = s.Value
	}
	for _, f := range []struct {
		field *string
		from  string
	}{
		{&b.Version, info.Main.Version}, {&b.Commit, recorded["vcs.revision"]}, {&b.Date, recorded["vcs.time"]},
	} {
		if *f.field == "" {
			*f.field = f.from
		}
		if *f.field == "" {
			*f.field = "unknown"
		}
	}
}

func newVersionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print which build of uac this is",
		GroupID: groupTool,
		Args:    cobra.NoArgs,
		Example: "  uac version -o json",
		RunE:    func(*cobra.Command, []string) error { return runVersion(a, thisBuild()) },
	}
}

func runVersion(a *app, b buildInfo) error {
	return printObject(a, b, func(w io.Writer, _ paint) error {
		_, err := fmt.Fprintf(w, "uac %s (commit %s, %s, %s, %s)\n", b.Version, b.Commit, b.Date, b.Go, b.Platform)
		return err
	})
}
