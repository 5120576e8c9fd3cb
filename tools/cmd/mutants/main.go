// Command mutants proves that tests can fail. Each patch in integration/mutants
// breaks one promise and names the test that must notice:
//
//	# test: ./store/embedded -run TestPowerLoss
//	# breaks: an acknowledged event survives power loss
//
// The patches are applied, one at a time, to a copy of the tree; the named test
// must fail there, by failing, not by failing to build; one that hangs for two minutes,
// or the -timeout it has, has failed as well. All are tried, and those that were not
// killed are listed at the end. With -check they are only checked to
// apply; with -slice 2/5 only the second of five shares is tried. Arguments are
// parts of the names of those to try; all without.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	check := flag.Bool("check", false, "only check that every patch applies and names a test")
	dir := flag.String("dir", "integration/mutants", "where the patches are")
	share := flag.String("slice", "1/1", "try the `i/n`th share of them, for machines that work side by side")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *dir, flag.Args(), *share, *check); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// mutant is one patch.
type mutant struct {
	file   string
	test   []string // arguments of go test
	breaks string
}

func run(ctx context.Context, dir string, only []string, share string, check bool) error {
	mutants, err := choose(dir, only, share)
	if err != nil {
		return err
	}
	if check {
		var stale []error
		for _, m := range mutants {
			if out, err := exec.CommandContext(ctx, "git", "apply", "--check", m.file).CombinedOutput(); err != nil {
				stale = append(stale, fmt.Errorf("%s no longer applies: refresh it so that it breaks the promise again\n%s", m.file, out))
			}
		}
		if len(stale) > 0 {
			return errors.Join(stale...)
		}
		fmt.Fprintf(os.Stdout, "%d mutants apply\n", len(mutants))
		return nil
	}
	tree, err := copyTree(ctx)
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	var alive []error
	for _, m := range mutants {
		start := time.Now()
		verdict, err := try(ctx, tree, m)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			verdict = "ALIVE"
			alive = append(alive, fmt.Errorf("%s: %w", m.file, err))
		}
		fmt.Fprintf(os.Stdout, "%-6s %4.0fs %-44s %s\n", verdict, time.Since(start).Seconds(), filepath.Base(m.file), m.breaks)
		if err != nil {
			reason, _, _ := strings.Cut(err.Error(), "\n\n")
			fmt.Fprintf(os.Stdout, "       %s\n", reason)
		}
	}
	if len(alive) > 0 {
		return fmt.Errorf("%d of %d not killed:\n%w", len(alive), len(mutants), errors.Join(alive...))
	}
	fmt.Fprintf(os.Stdout, "%d of %d killed\n", len(mutants), len(mutants))
	return nil
}

// choose reads the patches in dir that have one of only in their names, and
// of those the share asked for: each nth, so that the long ones of one package
// are spread.
func choose(dir string, only []string, share string) ([]mutant, error) {
	var i, n int
	if _, err := fmt.Sscanf(share, "%d/%d", &i, &n); err != nil || i < 1 || i > n {
		return nil, fmt.Errorf("-slice %q is not i/n with i from 1 to n", share)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.patch"))
	if err != nil {
		return nil, err
	}
	var all []mutant
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".patch")
		if len(only) > 0 && !slices.ContainsFunc(only, func(part string) bool { return strings.Contains(name, part) }) {
			continue
		}
		m, err := parse(f)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no patch in %s has one of %q in its name", dir, only)
	}
	var mine []mutant
	for k := i - 1; k < len(all); k += n {
		mine = append(mine, all[k])
	}
	return mine, nil
}

func parse(file string) (mutant, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return mutant{}, err
	}
	abs, err := filepath.Abs(file)
	if err != nil {
		return mutant{}, err
	}
	m := mutant{file: abs}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		line, ok := strings.CutPrefix(sc.Text(), "# ")
		if !ok {
			break
		}
		if v, ok := strings.CutPrefix(line, "test:"); ok {
			m.test = strings.Fields(v)
		}
		if v, ok := strings.CutPrefix(line, "breaks:"); ok {
			m.breaks = strings.TrimSpace(v)
		}
	}
	if len(m.test) == 0 || m.breaks == "" {
		return mutant{}, fmt.Errorf("%s must begin with '# test: <arguments of go test>' and '# breaks: <promise>'", file)
	}
	return m, nil
}

// copyTree copies what git tracks, as it is in the working tree.
func copyTree(ctx context.Context) (string, error) {
	tree, err := os.MkdirTemp("", "weft-mutants-")
	if err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, "git", "ls-files", "-z").Output()
	if err != nil {
		return "", fmt.Errorf("git ls-files: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		b, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		info, err := os.Stat(name)
		if err != nil {
			return "", err
		}
		to := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(to, b, info.Mode().Perm()); err != nil {
			return "", err
		}
	}
	return tree, nil
}

// try applies m, runs its test, and takes m back. It tells how the test failed, or why m
// was not killed.
func try(ctx context.Context, tree string, m mutant) (verdict string, err error) {
	git := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "git", args...)
		cmd.Dir = tree
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("git %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	if err := git("apply", m.file); err != nil {
		return "", err
	}
	tctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(tctx, "go", append([]string{"test", "-count=1", "-timeout=2m"}, m.test...)...)
	cmd.Dir = tree
	out, err := cmd.CombinedOutput()
	if rerr := git("apply", "-R", m.file); rerr != nil {
		return "", rerr
	}
	switch {
	case bytes.Contains(out, []byte("panic: test timed out")):
		return "hung", nil
	case bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("[setup failed]")):
		return "", fmt.Errorf("it does not build: a mutant must break a promise, not the build\n%s", out)
	case err == nil && bytes.Contains(out, []byte("no tests to run")):
		return "", fmt.Errorf("there is no test for %q", strings.Join(m.test, " "))
	case err == nil:
		return "", errors.New("it survived")
	case bytes.Contains(out, []byte("--- FAIL")) || bytes.Contains(out, []byte("panic:")):
		return "killed", nil
	default:
		return "", fmt.Errorf("the test did not run:\n%s", out)
	}
}
