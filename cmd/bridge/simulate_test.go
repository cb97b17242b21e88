package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

type simulateOnly struct {
	Simulate simulateCmd `cmd:""`
}

// startSimulate runs the command until the test ends and returns its URL and the rest of its talk.
func startSimulate(t *testing.T, stdout io.Writer, args ...string) (url string, stop func() (talk string)) {
	t.Helper()
	parsed, err := parse(new(simulateOnly), append([]string{"simulate", "--listen", "127.0.0.1:0"}, args...), io.Discard, io.Discard)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	stderr, talk := io.Pipe()
	parsed.BindTo(ctx, (*context.Context)(nil))
	ended := make(chan error, 1)
	go func() {
		err := parsed.Run(stdio{strings.NewReader(""), stdout, talk})
		talk.Close()
		ended <- err
	}()
	lines := bufio.NewReader(stderr)
	line, err := lines.ReadString('\n')
	require.NoError(t, err)
	rest := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(lines) // ends with the command
		rest <- string(text)
	}()
	url, _, _ = strings.Cut(strings.TrimPrefix(line, "simulate: listening on "), ",")
	return url, func() string {
		cancel()
		require.NoError(t, <-ended)
		return line + <-rest
	}
}

func TestSimulateServesUntilItIsStopped(t *testing.T) {
	t.Setenv("BRIDGE_API_KEY", "k")
	var ids bytes.Buffer
	url, stop := startSimulate(t, &ids, "--mint", "2", "--duration", "0s", "--id-format", "int", "--result-bytes", "50")
	id, _, _ := strings.Cut(ids.String(), "\n")
	poll := func(key string) (int, string) {
		r, err := http.NewRequest("POST", url+"/api/v1/retrieve_future", strings.NewReader(`{"request_id":"`+id+`"}`))
		require.NoError(t, err)
		r.Header.Set("X-API-Key", key)
		resp, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
	code, _ := poll("wrong")
	require.Equal(t, http.StatusUnauthorized, code)
	code, body := poll("k")
	require.Equal(t, http.StatusOK, code)
	require.Contains(t, body, `{"status":"completed","result":`)
	http.DefaultClient.CloseIdleConnections()
	talk := stop()
	require.Contains(t, talk, "jobs take 0s, results are kept forever, wants the API key")
	require.Contains(t, talk, "stopped; 2 polls for 2 ids, 1 results and failures handed out")
	require.Equal(t, 2, strings.Count(ids.String(), "\n"))
}

func TestSimulatePlaysAScript(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script.json")
	require.NoError(t, os.WriteFile(script, []byte(`{"profiles":[{"name":"teapot","steps":[{"status":418}]}]}`), 0o600))
	url, stop := startSimulate(t, io.Discard, "--script", script)
	resp, err := http.Post(url+"/retrieve_future", "", strings.NewReader(`{"request_id":"any"}`))
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusTeapot, resp.StatusCode)
	http.DefaultClient.CloseIdleConnections()
	require.Contains(t, stop(), "plays "+script+" (1 profiles)")
}

func TestSimulateNamesWhatIsWrong(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.json")
	require.NoError(t, os.WriteFile(bad, []byte(`{"style":{"hold":"long"}}`), 0o600))
	for _, test := range []struct {
		args, want string
	}{
		{"--listen=nowhere", `--listen: "nowhere" is no address; give host:port`},
		{"--duration=soon", `"soon" is not a duration`},
		{"--hold=-1s", "--hold: is negative; give 0 or more"},
		{"--pending-style=maybe", "--pending-style must be one of"},
		{"--failure-rate=2", "--failure-rate: 2 is no share"},
		{"--retention=twice", `--retention: "twice" is not known; give forever, once, or a time`},
		{"--result-bytes=0", "--result-bytes: no JSON is that small"},
		{"--mint=-1", "--mint: -1 is negative"},
		{"--api-key-file=/nowhere", "--api-key-file: open /nowhere"},
		{"--script=/nowhere", "--script: open /nowhere"},
		{"--script=" + bad, `bad.json: style.hold: "long" is not a duration: write it like`},
		{"--script=" + bad + " --hold=1s", "--hold: does nothing beside --script"},
		{"--script=" + bad + " --seed=0", "--seed: does nothing beside --script"},
	} {
		_, err := parse(new(simulateOnly), append([]string{"simulate"}, strings.Fields(test.args)...), io.Discard, io.Discard)
		require.ErrorContains(t, err, test.want)
		exit := new(exitError)
		require.True(t, errors.As(err, &exit), test.args)
		require.Equal(t, exitUsage, exit.code, test.args)
		require.NotContains(t, err.Error(), "\n")
	}
}
