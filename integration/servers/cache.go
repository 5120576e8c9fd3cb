package servers

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
)

//go:embed java
var java embed.FS

// CacheDir is where downloads and built servers are kept.
func CacheDir() (string, error) {
	if dir := os.Getenv("WEFT_CACHE"); dir != "" {
		return dir, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no cache folder: set WEFT_CACHE: %w", err)
	}
	return filepath.Join(home, ".cache", "weft"), nil
}

// once makes the folder name in the cache by calling fill with a folder beside
// it, which gets its name only when fill has succeeded. Processes that want the
// same folder wait for each other.
func once(name string, progress func(string), fill func(dir string) error) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, name)
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close() // which unlocks
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	progress("getting " + name + " (once, into " + cache + ")")
	aside, err := os.MkdirTemp(filepath.Dir(dir), ".aside-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(aside)
	if err := fill(aside); err != nil {
		return "", err
	}
	if err := os.Chmod(aside, 0o755); err != nil {
		return "", err
	}
	return dir, os.Rename(aside, dir)
}

// javaDir is the cached folder of one Java server: its jars in lib, in the
// order of the class path, and its compiled classes, if it has sources, in
// classes.
func javaDir(ctx context.Context, name, version string, progress func(string)) (string, error) {
	sum := sha256.New()
	err := fs.WalkDir(java, "java/"+name, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := java.ReadFile(path)
		sum.Write([]byte(path))
		sum.Write(b)
		return err
	})
	if err != nil {
		return "", err
	}
	key := fmt.Sprintf("%s-%s-%s", name, version, hex.EncodeToString(sum.Sum(nil)[:4]))
	return once(key, progress, func(dir string) error {
		if err := need("mvn", "maven"); err != nil {
			return err
		}
		if err := os.CopyFS(filepath.Join(dir, "src"), sub(java, "java/"+name)); err != nil {
			return err
		}
		if err := run(ctx, dir, "mvn", "-B", "-q", "-f", "src/pom.xml", "dependency:copy-dependencies",
			"-DoutputDirectory="+filepath.Join(dir, "lib")); err != nil {
			return err
		}
		sources, err := filepath.Glob(filepath.Join(dir, "src", "*.java"))
		if err != nil || len(sources) == 0 {
			return err
		}
		if err := need("javac", "openjdk-17-jdk-headless"); err != nil {
			return err
		}
		args := append([]string{"-nowarn", "-d", "classes", "-cp", filepath.Join(dir, "lib", "*")}, sources...)
		return run(ctx, dir, "javac", args...)
	})
}

func sub(f embed.FS, dir string) fs.FS {
	s, err := fs.Sub(f, dir)
	if err != nil {
		panic(err) // the name is a constant
	}
	return s
}

func need(command, pkg string) error {
	if _, err := exec.LookPath(command); err != nil {
		return fmt.Errorf("%s is not installed: on Debian, apt-get install %s", command, pkg)
	}
	return nil
}

func run(ctx context.Context, dir, command string, args ...string) error {
	cmd := exec.CommandContext(ctx, command, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", command, err, out)
	}
	return nil
}

// classPath lists the jars of dir/lib in order of their names, those that begin
// with one of first before the others.
func classPath(dir string, first ...string) (string, error) {
	jars, err := filepath.Glob(filepath.Join(dir, "lib", "*.jar"))
	if err != nil {
		return "", err
	}
	if len(jars) == 0 {
		return "", fmt.Errorf("no jars in %s: remove the folder and try again", dir)
	}
	rank := func(jar string) int {
		for i, f := range first {
			if strings.HasPrefix(filepath.Base(jar), f) {
				return i
			}
		}
		return len(first)
	}
	sort.Slice(jars, func(i, j int) bool {
		if a, b := rank(jars[i]), rank(jars[j]); a != b {
			return a < b
		}
		return jars[i] < jars[j]
	})
	if _, err := os.Stat(filepath.Join(dir, "classes")); err == nil {
		jars = append([]string{filepath.Join(dir, "classes")}, jars...)
	}
	return strings.Join(jars, ":"), nil
}

// goBinary builds a command of this module into the cache.
func goBinary(ctx context.Context, pkg, name, version string, progress func(string)) (string, error) {
	dir, err := once(name+"-"+version, progress, func(dir string) error {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(dir, name), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
		}
		return nil
	})
	return filepath.Join(dir, name), err
}
