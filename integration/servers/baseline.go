package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Baseline is the commit of this repository that upgrades are tried from and back
// to: the release before, or, before the first, the last state that others may
// run. tools/breaking.sh compares the protocols with it too. Advance it with each
// release.
const Baseline = "b42f91cb90eee2b9eb626d23ebb0744c08f7bebf"

// ErrNoHistory says that the clone has no such commit: it is shallow.
var ErrNoHistory = errors.New("the clone lacks the baseline commit")

// BaselineBinary builds the command weft of the baseline, once, and gives its path.
// progress is told about the build; it may be nil.
func BaselineBinary(ctx context.Context, progress func(string)) (string, error) {
	dir, err := once("weft-"+Baseline[:12], progressOf(progress), func(dir string) error {
		if exec.CommandContext(ctx, "git", "cat-file", "-e", Baseline+"^{commit}").Run() != nil {
			return fmt.Errorf("%w %s: fetch it", ErrNoHistory, Baseline)
		}
		src, err := os.MkdirTemp("", "weft-baseline-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(src)
		root, err := exec.CommandContext(ctx, "git", "rev-parse", "--show-toplevel").Output()
		if err != nil {
			return fmt.Errorf("git rev-parse: %w", err)
		}
		archive := filepath.Join(src, "tree.tar")
		if err := run(ctx, string(root[:len(root)-1]), "git", "archive", "--output="+archive, Baseline); err != nil {
			return err
		}
		if err := run(ctx, src, "tar", "-xf", archive); err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(dir, "weft"), "./tools/cmd/weft")
		cmd.Dir, cmd.Env = src, append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build of the baseline: %w\n%s", err, out)
		}
		return nil
	})
	return filepath.Join(dir, "weft"), err
}
