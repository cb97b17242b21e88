package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzConfig gives a whole file, or one setting in one of the ways that there are: what is wrong is told, as what the user
// gave, and never a panic. One way at a time, for each has the whole grammar read.
func FuzzConfig(f *testing.F) {
	for _, file := range []string{"", "upstream: http://a\n", "timeout: 1h\nmax-polls: [1, 2]\n", "a: &a [*a]\n", "? {}\n: x", "timeout: !!binary x", "\ufeffprefix: \"\\0\"", "- a", "{{", "upstream: |\n  x"} {
		f.Add(byte(0), []byte(file), "", "")
	}
	for way := range byte(4) {
		f.Add(way, []byte(nil), "timeout", "1h")
		f.Add(way, []byte(nil), "upstream-header", "X-A: b\r\nc")
		f.Add(way, []byte(nil), "max-polls", "99999999999999999999")
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, way byte, file []byte, name, value string) {
		if strings.Contains(strings.ToLower(name), "file") || strings.Contains(strings.ToLower(name), "dir") {
			return // the files of the machine are no inputs
		}
		var args []string
		switch way % 4 {
		case 0:
			path := filepath.Join(dir, "bridge.yaml")
			require.NoError(t, os.WriteFile(path, file, 0o600))
			args = []string{"serve", up, "--config=" + path}
		case 1:
			args = []string{"serve", up, "--" + name + "=" + value}
		case 2:
			if os.Setenv(envName(name), value) == nil {
				defer func() { require.NoError(t, os.Unsetenv(envName(name))) }()
			}
			args = []string{"serve", up}
		case 3:
			args = []string{name, value}
		}
		var grammar serveOnly
		_, err := parse(&grammar, args, &bytes.Buffer{}, &bytes.Buffer{})
		if err == nil {
			return
		}
		exit := new(exitError)
		require.True(t, errors.As(err, &exit), "%v", err)
		require.Equal(t, exitUsage, exit.code)
		require.NotEmpty(t, strings.TrimSpace(err.Error()))
	})
}
