// Package secretfile reads secrets from files, within bounds. Its errors tell
// what is wrong and never what is there.
package secretfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// Max is the largest file that is read, in bytes.
const Max = 64 << 10

// Read reads a regular file. Its error does not repeat the path.
func Read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, cause(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is not a regular file") // one that waits for a writer is not opened
	}
	f, err := os.Open(path) //nolint:gosec // whoever configures this process names it
	if err != nil {
		return nil, cause(err)
	}
	defer f.Close()
	return read(f)
}

// ReadIn reads a regular file of a folder: nothing outside of it, wherever links
// lead. name has slashes between its parts.
func ReadIn(folder, name string) ([]byte, error) {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, cause(err)
	}
	defer root.Close()
	info, err := root.Stat(name)
	if err != nil {
		return nil, cause(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, cause(err)
	}
	defer f.Close()
	return read(f)
}

func read(f fs.File) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(f, Max+1))
	if err != nil {
		return nil, cause(err)
	}
	if len(b) > Max {
		return nil, fmt.Errorf("is larger than %d bytes", Max)
	}
	return b, nil
}

// Text is what a file has, without white space around it: 1 to most printable
// ASCII characters on one line.
func Text(b []byte, most int) (string, error) {
	value := strings.TrimSpace(string(b))
	switch {
	case value == "":
		return "", errors.New("is empty or not set")
	case len(value) > most:
		return "", fmt.Errorf("has %d bytes, a key has at most %d", len(value), most)
	case strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", errors.New("is not a key: one has printable ASCII characters only, on one line")
	}
	return value, nil
}

// cause is err without the path.
func cause(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
