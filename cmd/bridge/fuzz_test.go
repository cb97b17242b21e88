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

// FuzzConfig gives one setting by flag and one by variable, beside a whole file: what is wrong is told, as what the user
// gave, and never a panic.
func FuzzConfig(f *testing.F) {
	for _, file := range []string{"", "upstream: http://a\n", "timeout: 1h\nmax-polls: [1, 2]\n", "a: &a [*a]\n", "? {}\n: x", "timeout: !!binary x", "\ufeffprefix: \"\\0\"", "- a", "{{", "upstream: |\n  x"} {
		f.Add([]byte(file), "timeout", "1h")
		f.Add([]byte(file), "upstream-header", "X-A: b\r\nc")
		f.Add([]byte(file), "max-polls", "99999999999999999999")
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, file []byte, name, value string) {
		if strings.Contains(strings.ToLower(name), "file") || strings.Contains(strings.ToLower(name), "dir") {
			return // the files of the machine are no inputs
		}
		path := filepath.Join(dir, "bridge.yaml")
		require.NoError(t, os.WriteFile(path, file, 0o600))
		for _, args := range [][]string{
			{"serve", up, "--config=" + path},
			{"serve", up, "--" + name + "=" + value},
			{"serve", up, "--" + name, value},
			{name, value},
		} {
			if args[len(args)-2] == up && os.Setenv(envName(name), value) == nil {
				t.Cleanup(func() { require.NoError(t, os.Unsetenv(envName(name))) })
			}
			var grammar serveOnly
			_, err := parse(&grammar, args, &bytes.Buffer{}, &bytes.Buffer{})
			if err == nil {
				continue
			}
			exit := new(exitError)
			require.True(t, errors.As(err, &exit), "%v", err)
			require.Equal(t, exitUsage, exit.code)
			require.NotEmpty(t, strings.TrimSpace(err.Error()))
		}
	})
}
