package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"uac/roles/wire"
)

// lookupPatience bounds what is asked of the machine before an attempt starts: where
// its users come from a directory service, answers may take long.
const lookupPatience = 10 * time.Second

// account is a user of the machine, other than that of the agent, as whom a command is
// to run.
type account struct {
	name     string
	uid, gid uint32
	groups   []uint32
	home     string
	setpriv  string // path of the program that changes to the user
}

// lookupAccount finds the user of that name, for an agent whose own user is euid. It is
// nil if that is the same. It asks the system's tools and not os/user, which in a static binary knows only the users
// in /etc/passwd, not those of directory services.
func lookupAccount(ctx context.Context, name string, euid int) (*account, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupPatience)
	defer cancel()
	text, err := exec.CommandContext(ctx, "getent", "passwd", name).Output()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == 2:
		return nil, fmt.Errorf("run as %s: this machine has no such user", name)
	case err != nil:
		return nil, fmt.Errorf("run as %s: ask getent for the user: %w", name, err)
	}
	a, err := parseAccount(string(text))
	if err != nil {
		return nil, fmt.Errorf("run as %s: %w", name, err)
	}
	switch {
	case euid == int(a.uid):
		return nil, nil
	case euid != 0:
		return nil, fmt.Errorf("run as %s: the agent is not root but has user id %d, and can run nothing as another user", name, euid)
	}
	if text, err = exec.CommandContext(ctx, "id", "-G", "--", a.name).Output(); err == nil {
		a.groups, err = parseGroups(string(text))
	}
	if err != nil {
		return nil, fmt.Errorf("run as %s: ask id for the groups: %w", name, err)
	}
	if a.setpriv, err = exec.LookPath("setpriv"); err != nil {
		return nil, fmt.Errorf("run as %s: needs the program setpriv of util-linux: %w", name, err)
	}
	return a, nil
}

// parseAccount reads a line as in /etc/passwd.
func parseAccount(text string) (*account, error) {
	line, _, _ := strings.Cut(text, "\n")
	f := strings.Split(line, ":")
	if len(f) != 7 || f[0] == "" {
		return nil, fmt.Errorf("getent says %q, which is no user", line)
	}
	uid, err1 := strconv.ParseUint(f[2], 10, 32)
	gid, err2 := strconv.ParseUint(f[3], 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("getent says %q: %w", line, err)
	}
	a := &account{name: f[0], uid: uint32(uid), gid: uint32(gid), home: f[5]}
	if a.home == "" {
		a.home = "/"
	}
	return a, nil
}

func parseGroups(text string) ([]uint32, error) {
	var groups []uint32
	for _, field := range strings.Fields(text) {
		gid, err := strconv.ParseUint(field, 10, 32)
		if err != nil {
			return nil, err
		}
		groups = append(groups, uint32(gid))
	}
	return groups, nil
}

// wrap returns the command line that changes to the user, sets the environment that is
// kept in a file, and runs command. It stays one process all the way.
func (a *account) wrap(environment string, command []string) []string {
	groups := "--clear-groups"
	if len(a.groups) > 0 {
		ids := make([]string, len(a.groups))
		for i, g := range a.groups {
			ids[i] = strconv.FormatUint(uint64(g), 10)
		}
		groups = "--groups=" + strings.Join(ids, ",")
	}
	return append([]string{
		a.setpriv, fmt.Sprintf("--reuid=%d", a.uid), fmt.Sprintf("--regid=%d", a.gid), groups, "--inh-caps=-all",
		"--", shell, environment,
	}, command...)
}

// canUse finds out, as the user, whether the command will be able to work in a directory
// and to read its script. Only the system knows: modes, access lists and what is mounted
// all have a say.
func (a *account) canUse(ctx context.Context, dir, script string) error {
	ctx, cancel := context.WithTimeout(ctx, lookupPatience)
	defer cancel()
	check := exec.CommandContext(ctx, shell, "-c", `cd -- "$1" && test -r "$2"`, shell, dir, script)
	check.Env, check.Dir = minimalEnv(), "/"
	check.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups}}
	said, err := check.CombinedOutput()
	if err != nil {
		return fmt.Errorf("user %s cannot use %s and read %s (each directory above must let that user pass): %w %s",
			a.name, dir, script, err, bytes.TrimSpace(said))
	}
	return nil
}

// own gives what was prepared for the attempt to the user. The directory itself stays
// the agent's, so that the user can change nothing in it but these files: not the
// status, and no file can be put in place of another.
func (a *account) own(d attemptDir, names ...string) error {
	for _, name := range names {
		if err := os.Lchown(d.file(name), int(a.uid), int(a.gid)); err != nil {
			return err
		}
	}
	// May be passed, not listed.
	return os.Chmod(string(d), 0o711)
}

// minimalEnv is the environment of programs that act for the agent itself. Nothing of
// a step's goes there: LD_PRELOAD and its like would bring code of the step's user into a
// process that is still root.
func minimalEnv() []string { return []string{"LANG=C.UTF-8", "PATH=" + defaultPath} }

// environmentScript returns a shell script that sets variables and then runs its
// arguments. A file, because everybody may read a command line.
func environmentScript(env []string) []byte {
	var b bytes.Buffer
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		fmt.Fprintf(&b, "export %s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`))
	}
	b.WriteString("exec \"$@\"\n")
	return b.Bytes()
}

// isVariable reports whether a shell can set a variable of that name.
func isVariable(name string) bool {
	for i, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '_', i > 0 && '0' <= c && c <= '9':
		default:
			return false
		}
	}
	return name != ""
}

// malformedRunAs says what is wrong with the user that a start names.
func malformedRunAs(c *wire.Start) string {
	name := c.GetRunAs()
	if name == "" {
		return ""
	}
	if strings.HasPrefix(name, "-") || strings.ContainsAny(name, ":/\n\x00") || len(name) > maxNameBytes {
		return fmt.Sprintf("run_as %q: no user can have this name", name)
	}
	for variable := range c.GetEnv() {
		if !isVariable(variable) {
			return fmt.Sprintf("environment variable %q: with run_as only letters, digits and '_' are possible", variable)
		}
	}
	for param := range c.GetParams() {
		if !isVariable("_" + param) {
			return fmt.Sprintf("parameter %q: with run_as only letters, digits and '_' are possible", param)
		}
	}
	return ""
}
