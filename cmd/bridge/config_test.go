package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/publish"
)

// serveOnly is a grammar with the one command under test.
type serveOnly struct {
	Serve struct {
		serveConfig
	} `cmd:""`
}

// parseServe parses as `bridge serve` does. Variables of the machine that runs the tests do not count.
func parseServe(t *testing.T, args ...string) (*serveConfig, error) {
	t.Helper()
	var grammar serveOnly
	_, err := parse(&grammar, append([]string{"serve"}, args...), &bytes.Buffer{}, &bytes.Buffer{})
	return &grammar.Serve.serveConfig, err
}

func clearEnv(t *testing.T) {
	t.Helper()
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, "BRIDGE_") || strings.HasPrefix(name, "TINKER_") || name == "NATS_URL" {
			t.Setenv(name, "")
		}
	}
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

const up = "--upstream=http://127.0.0.1:8900"

func TestDefaultsAreTheContract(t *testing.T) {
	clearEnv(t)
	c, err := parseServe(t, up)
	require.NoError(t, err)
	require.Equal(t, "nats://127.0.0.1:4222", c.Nats)
	require.Equal(t, "tinker", c.Prefix)
	require.Equal(t, "/api/v1/retrieve_future", c.UpstreamPath)
	require.Equal(t, "X-API-Key", c.APIKeyHeader)
	require.Equal(t, 24*time.Hour, c.Timeout)
	require.Equal(t, 2*time.Minute, c.AckWait)
	require.Equal(t, 100_000, c.MaxRequests)
	require.Equal(t, 200_000, c.MaxAckPending)
	limit, known := descriptorLimit()
	require.Equal(t, known && limit < 1024+fdReserve, c.MaxPolls != 1024, "as far as this process may open files")
	require.Zero(t, c.PollsPerSecond)
	require.Equal(t, 65*time.Second, c.PollTimeout)
	require.Equal(t, 500*time.Millisecond, c.BackoffInitial)
	require.Equal(t, 30*time.Second, c.BackoffMax)
	require.Equal(t, time.Second, c.PausedWait)
	require.Equal(t, 3, c.ServerFailurePolls)
	require.Equal(t, 10*time.Second, c.NotFoundGrace)
	require.Equal(t, "adaptive", c.Cadence)
	require.Equal(t, byteSize(512<<10), c.MaxInlineResult)
	require.Equal(t, byteSize(256<<20), c.ResultMemory)
	require.Equal(t, byteSize(64<<20), c.MaxResult)
	require.Equal(t, 30*time.Second, c.DrainTimeout)
	require.Equal(t, "127.0.0.1:8910", c.HTTP)
	require.Equal(t, 192*time.Hour, c.StatesMaxAge)
	require.Equal(t, 192*time.Hour, c.ResultsMaxAge)
	require.Equal(t, 1, c.Replicas)
	require.Empty(t, c.apiKey)
	for _, flag := range following {
		require.False(t, c.given.has(flag), flag)
	}
	require.Equal(t, publish.Options{Timeout: &c.Timeout}, c.streamOptions(), "what nobody asked for follows what stands")
}

func TestOnlyGivenStreamSettingsAreInsistedOn(t *testing.T) {
	clearEnv(t)
	t.Setenv("BRIDGE_RESULTS_MAX_BYTES", "0")
	c, err := parseServe(t, up, "--ack-wait=2m", "--config", write(t, "c.yaml", "replicas: 1"))
	require.NoError(t, err)
	wait, replicas, noLimit := 2*time.Minute, 1, int64(-1)
	require.Equal(t, publish.Options{Timeout: &c.Timeout, AckWait: &wait, Replicas: &replicas, ResultsMaxBytes: &noLimit}, c.streamOptions())
}

func TestFlagWinsOverEnvironmentOverFileOverDefault(t *testing.T) {
	clearEnv(t)
	file := write(t, "bridge.yaml", "# comment\nmax-polls: 1\nmax-requests: 2\nack-wait: 3m\nupstream: https://file.example\nupstream-header: [A=1, 'B=2,3']\nembedded: false\nmax-result: 1MiB\n")
	t.Setenv("BRIDGE_MAX_POLLS", "10")
	t.Setenv("BRIDGE_MAX_REQUESTS", "20")
	t.Setenv("BRIDGE_CADENCE", "") // none at all
	t.Setenv("TINKER_BASE_URL", "https://tinker.example")
	c, err := parseServe(t, "--config", file, "--max-polls=100")
	require.NoError(t, err)
	require.Equal(t, 100, c.MaxPolls)
	require.Equal(t, 20, c.MaxRequests)
	require.Equal(t, 3*time.Minute, c.AckWait)
	require.Equal(t, "adaptive", c.Cadence)
	require.Equal(t, "https://tinker.example", c.Upstream)
	require.Equal(t, headers{{"A", "1"}, {"B", "2,3"}}, c.UpstreamHeader)
	require.Equal(t, byteSize(1<<20), c.MaxResult)
	require.True(t, c.given.has("ack-wait"))
	require.False(t, c.given.has("max-ack-pending"))

	t.Setenv("BRIDGE_UPSTREAM", "https://bridge.example")
	t.Setenv("BRIDGE_CONFIG", file)
	t.Setenv("BRIDGE_UPSTREAM_HEADER", "C=3\nD=4=5")
	c, err = parseServe(t)
	require.NoError(t, err)
	require.Equal(t, "https://bridge.example", c.Upstream)
	require.Equal(t, headers{{"C", "3"}, {"D", "4=5"}}, c.UpstreamHeader)

	c, err = parseServe(t, "--upstream-header", "E=5", "--upstream-header=F=6")
	require.NoError(t, err)
	require.Equal(t, headers{{"E", "5"}, {"F", "6"}}, c.UpstreamHeader)
}

func TestTheAPIKeyComesFromTheEnvironmentOrAFile(t *testing.T) {
	clearEnv(t)
	file := write(t, "key", "from-file\n")
	t.Setenv("TINKER_API_KEY", "tinker")
	c, err := parseServe(t, up)
	require.NoError(t, err)
	require.Equal(t, "tinker", c.apiKey)
	c, err = parseServe(t, up, "--config", write(t, "c.yaml", "api-key-file: "+file))
	require.NoError(t, err)
	require.Equal(t, "from-file", c.apiKey)
	t.Setenv("BRIDGE_API_KEY", "bridge")
	c, err = parseServe(t, up)
	require.NoError(t, err)
	require.Equal(t, "bridge", c.apiKey)
	c, err = parseServe(t, up, "--api-key-file", file)
	require.NoError(t, err)
	require.Equal(t, "from-file", c.apiKey)
	t.Setenv("BRIDGE_API_KEY_FILE", file)
	_, err = parseServe(t, up)
	require.EqualError(t, err, "BRIDGE_API_KEY_FILE: contradicts BRIDGE_API_KEY, which is set too; leave one of them out")
}

func TestWhatIsWrongIsNamedInOneLineWithItsMend(t *testing.T) {
	key := write(t, "key", "one\ntwo\n")
	empty := write(t, "empty", "\n")
	for _, c := range []struct{ name, args, env, file, want string }{
		{name: "duration", args: "--ack-wait=abc", want: `--ack-wait: "abc" is not a duration; give one such as`},
		{name: "duration without unit", args: "--ack-wait=5", want: `--ack-wait: "5" is not a duration`},
		{name: "duration missing", args: "--ack-wait", want: "--ack-wait: needs a value, such as 2m"},
		{name: "number", args: "--max-polls=many", want: `--max-polls: "many" is not a whole number`},
		{name: "huge number", args: "--max-polls=99999999999999999999", want: `is too large a number`},
		{name: "rate", args: "--polls-per-second=NaN", want: `--polls-per-second: "NaN" is not a number`},
		{name: "size", args: "--max-result=64XB", want: `--max-result: "64XB" is not a size; give one such as 512KiB`},
		{name: "bool", args: "--embedded=perhaps", want: `--embedded: "perhaps" is neither true nor false`},
		{name: "enum", args: "--cadence=weekly", want: `--cadence must be one of "adaptive","fixed" but got "weekly"`},
		{name: "unknown flag", args: "--max-poll=3", want: "unknown flag --max-poll, did you mean"},
		{name: "no positional", args: "hello", want: "unexpected argument hello"},
		{name: "header", args: "--upstream-header=secret", want: "--upstream-header: want a header as Name=value"},
		{name: "key as a flag", args: "--api-key=topsecret", want: "unknown flag --api-key"},

		{name: "env duration", env: "BRIDGE_ACK_WAIT=abc", want: `BRIDGE_ACK_WAIT: "abc" is not a duration`},
		{name: "env enum", env: "BRIDGE_LOG_FORMAT=xml", want: `BRIDGE_LOG_FORMAT: "xml" is not one of text, json`},
		{name: "env number", env: "BRIDGE_REPLICAS=three", want: `BRIDGE_REPLICAS: "three" is not a whole number`},
		{name: "env header", env: "BRIDGE_UPSTREAM_HEADER=topsecret", want: "BRIDGE_UPSTREAM_HEADER: want a header as Name=value"},
		{name: "env range", env: "BRIDGE_ACK_WAIT=10ms", want: "BRIDGE_ACK_WAIT: 10ms is too short; give at least 1s"},
		{name: "env upstream", env: "TINKER_BASE_URL=topsecret", args: "-", want: "TINKER_BASE_URL: must begin with https://"},
		{name: "env nats", env: "NATS_URL=nats://u:topsecret@:x", want: "NATS_URL: is not a list of URLs"},
		{name: "env key", env: "BRIDGE_API_KEY=top\nsecret", want: "BRIDGE_API_KEY: has more than one line"},

		{name: "file missing", args: "--config=/nowhere/x.yaml", want: "--config: open /nowhere/x.yaml"},
		{name: "file unknown key", file: "a: 1", want: "c.yaml:1: a: no such setting"},
		{name: "file misspelt key", file: "\nack_wait: 1m", want: "c.yaml:2: ack_wait: no such setting; did you mean ack-wait?"},
		{name: "file duplicate", file: "max-polls: 1\nmax-polls: 2", want: "c.yaml:2: max-polls: already set in line 1; delete one"},
		{name: "file type", file: "max-polls: [1]", want: "c.yaml:1: max-polls: want a whole number"},
		{name: "file quoted number", file: `max-polls: "1"`, want: "c.yaml:1: max-polls: want a whole number, without quotes"},
		{name: "file number for text", file: `prefix: 1`, want: "c.yaml:1: prefix: want a text"},
		{name: "file bool", file: `embedded: "yes"`, want: "c.yaml:1: embedded: want true or false"},
		{name: "file null", file: "prefix:", want: "c.yaml:1: prefix: want a text"},
		{name: "file duration", file: "# x\nack-wait: 5", want: "c.yaml:2: ack-wait: want a duration such as"},
		{name: "file bad duration", file: "ack-wait: 5 minutes", want: `c.yaml:1: ack-wait: "5 minutes" is not a duration`},
		{name: "file enum", file: "cadence: weekly", want: `c.yaml:1: cadence: "weekly" is not one of adaptive, fixed`},
		{name: "file range", file: "\n\nmax-polls: -1", want: "c.yaml:3: max-polls: -1 is too small; give at least 1"},
		{name: "file syntax", file: "a: b: c", want: "c.yaml:1: not YAML"},
		{name: "file list", file: "- a", want: "c.yaml:1: want one `flag: value` a line"},
		{name: "file two documents", file: "max-polls: 1\n---\nmax-polls: 2", want: "a second document begins here"},
		{name: "file key", file: "api-key: topsecret", want: "c.yaml:1: api-key: the key itself does not belong here"},
		{name: "file in file", file: "config: x", want: "c.yaml:1: config: no such setting"},
		{name: "file masked header", file: `upstream-header: ["A=********"]`, want: "c.yaml:1: upstream-header: the value of A is masked"},
		{name: "file masked user", file: `nats: nats://********@h`, want: "c.yaml:1: nats: the user is masked"},
		{name: "file headers nested", file: `upstream-header: [[A]]`, want: "c.yaml:1: upstream-header: want a list of Name=value"},
		{name: "file headers map", file: "upstream-header:\n  A: b", want: "c.yaml:1: upstream-header: want a list of Name=value"},

		{name: "upstream missing", args: "-", want: "--upstream: is missing; give the base URL"},
		{name: "upstream scheme", args: "- --upstream=ftp://x", want: "--upstream: must begin with https://"},
		{name: "upstream host", args: "- --upstream=https://", want: "--upstream: must begin with https:// (or http://) and a host"},
		{name: "upstream user", args: "- --upstream=https://u:topsecret@x", want: "--upstream: holds a user name or password"},
		{name: "upstream unparsable", args: "- --upstream=https://u:topsecret@x:y", want: "--upstream: is not a URL"},
		{name: "upstream query", args: "- --upstream=https://x?key=topsecret", want: "--upstream: has a query"},
		{name: "upstream plain http", args: "- --upstream=http://example.com", want: "--upstream: plain http to example.com sends the API key in the clear; use https, or add --insecure-upstream"},
		{name: "upstream is loopback by name alone", args: "- --upstream=http://localhost.example.com", want: "--upstream: plain http to localhost.example.com sends"},
		{name: "dialect", args: "--dialect=klingon", want: `--dialect must be one of "auto","bearer","skyrl","tinkerbell","tinkex","tuft","twinkle" but got "klingon"`},
		{name: "file dialect", file: "dialect: klingon", want: `c.yaml:1: dialect: "klingon" is not one of auto, bearer, skyrl`},
		{name: "dialect's key header twice", env: "BRIDGE_API_KEY=topsecret", args: "--dialect=bearer --upstream-header=authorization=topsecret", want: "authorization already carries the API key"},
		{name: "upstream ca missing", args: "- --upstream=https://x --upstream-ca=/nowhere", want: "--upstream-ca: open /nowhere: no such file or directory; name a file that can be read"},
		{name: "upstream ca", args: "- --upstream=https://x --upstream-ca=" + key, want: "holds no certificate; name a PEM file"},
		{name: "upstream ca without TLS", args: "--upstream-ca=" + key, want: "--upstream-ca: is of no use with plain http; give --upstream an https:// URL"},
		{name: "upstream cert without TLS", env: "BRIDGE_UPSTREAM_KEY=x", args: "--upstream-cert=x", want: "--upstream-cert: is of no use with plain http"},
		{name: "upstream cert alone", args: "- --upstream=https://x --upstream-cert=" + key, want: "--upstream-cert: is of no use alone; give --upstream-key too"},
		{name: "upstream key alone", args: "--upstream-key=" + key, want: "--upstream-key: is of no use alone; give --upstream-cert too"},
		{name: "upstream pair", args: "- --upstream=https://x --upstream-key=" + key + " --upstream-cert=" + key, want: "--upstream-cert: certificate and key cannot be used"},
		{name: "proxy", args: "--upstream-proxy=proxy.example.com:3128", want: "--upstream-proxy: must begin with http://, https:// or socks5:// and a host"},
		{name: "proxy unparsable", args: "--upstream-proxy=http://u:topsecret@x:y", want: "--upstream-proxy: is not a URL; give one such as http://proxy.example.com:3128"},
		{name: "proxy scheme", args: "--upstream-proxy=ftp://u:topsecret@x", want: "--upstream-proxy: must begin with http://"},
		{name: "proxy path", args: "--upstream-proxy=http://u:topsecret@x/y", want: "--upstream-proxy: has a path, a query or a fragment"},
		{name: "proxy in the clear", args: "--upstream-proxy=http://u:topsecret@proxy.example.com", want: "carry the API key to proxy.example.com in the clear; use https for --upstream, or add --insecure-upstream"},
		{name: "env proxy", env: "BRIDGE_UPSTREAM_PROXY=u:topsecret@x", want: "BRIDGE_UPSTREAM_PROXY: must begin with http://"},
		{name: "file masked proxy", file: `upstream-proxy: http://********@127.0.0.1:1`, want: "c.yaml:1: upstream-proxy: the user is masked; put the real one in its place"},
		{name: "path", args: "--upstream-path=x", want: "--upstream-path: is not a path"},
		{name: "path with a key", args: "--upstream-path=/x?api_key=topsecret", want: "--upstream-path: is not a path; give one such as /api/v1/retrieve_future, without a query"},
		{name: "key header", args: "--api-key-header=X:Y", want: "--api-key-header: cannot be a header's name"},
		{name: "key behind its header", env: "BRIDGE_API_KEY_HEADER=X-API-Key: topsecret", want: "BRIDGE_API_KEY_HEADER: cannot be a header's name; give the name alone"},
		{name: "key file missing", args: "--api-key-file=/nowhere", want: "--api-key-file: no such file or directory; name a file that can be read"},
		{name: "key for its file", args: "--api-key-file=topsecret", want: "--api-key-file: no such file or directory"},
		{name: "key for its file, another", args: "- --upstream=https://x --upstream-cert=" + key + " --upstream-key=topsecret", want: "--upstream-cert: certificate and key cannot be used: no such file"},
		{name: "key file empty", args: "--api-key-file=" + empty, want: "--api-key-file: the file is empty; put the key into it"},
		{name: "key file of two lines", args: "--api-key-file=" + key, want: "has more than one line"},
		{name: "header line break", env: "X=", args: "--upstream-header=A=b\x01c", want: "--upstream-header: the value of A has a line break"},
		{name: "header of HTTP", args: "--upstream-header=host=b", want: "--upstream-header: host is set by HTTP itself"},
		{name: "header of compression", args: "--upstream-header=accept-encoding=gzip", want: "--upstream-header: accept-encoding is set by HTTP itself; leave it out"},
		{name: "header of an upgrade", args: "--upstream-header=Upgrade=h2c", want: "--upstream-header: Upgrade is set by HTTP itself"},
		{name: "header of an expectation", args: "--upstream-header=Expect=100-continue", want: "--upstream-header: Expect is set by HTTP itself"},
		{name: "header of a connection", args: "--upstream-header=TE=trailers", want: "--upstream-header: TE is set by HTTP itself"},
		{name: "header of trailers", args: "--upstream-header=Trailer=X", want: "--upstream-header: Trailer is set by HTTP itself"},
		{name: "header of a proxy", args: "--upstream-header=Proxy-Authorization=topsecret", want: "--upstream-header: Proxy-Authorization is not for the upstream; give user and password in --upstream-proxy"},
		{name: "header is the key's", env: "BRIDGE_API_KEY=topsecret", args: "--upstream-header=x-api-key=topsecret", want: "x-api-key already carries the API key"},

		{name: "prefix", args: "--prefix=a..b", want: `--prefix: prefix "a..b": want tokens`},
		{name: "nats scheme", args: "--nats=http://x", want: "--nats: http:// is not for NATS"},
		{name: "nats mixed", args: "--nats=ws://x,nats://y", want: "--nats: mixes web sockets"},
		{name: "nats and context", args: "--nats=a --nats-context=b", want: "--nats-context: contradicts --nats; leave one of them out"},
		{name: "creds", args: "--nats-creds=" + key, want: "is not a credentials file"},
		{name: "creds for their file", env: "BRIDGE_NATS_CREDS=topsecret", want: "BRIDGE_NATS_CREDS: no such file or directory; name a file that can be read"},
		{name: "nkey for its file", args: "--nats-nkey=topsecret", want: "--nats-nkey: no such file or directory; name a file that can be read"},
		{name: "env nkey for its file", env: "BRIDGE_NATS_NKEY=topsecret", want: "BRIDGE_NATS_NKEY: no such file or directory"},
		{name: "file nkey for its file", file: "nats-nkey: topsecret", want: "c.yaml:1: nats-nkey: no such file or directory"},
		{name: "nkey too long for a file", args: "--nats-nkey=" + strings.Repeat("topsecret", 1000), want: "--nats-nkey: file name too long"},
		{name: "key of a pair for its file", args: "--nats-cert=" + key + " --nats-key=topsecret", want: "--nats-cert: certificate and key cannot be used: no such file"},
		{name: "URL for a context", args: "--nats-context=nats://u:topsecret@h", want: "--nats-context: is a URL; give the name of a context, or the URL as --nats"},
		{name: "ca", args: "--nats-ca=" + key, want: "holds no certificate"},
		{name: "cert alone", args: "--nats-cert=" + key, want: "--nats-cert: is of no use alone; give --nats-key too"},
		{name: "key alone", args: "--nats-key=" + key, want: "--nats-key: is of no use alone; give --nats-cert too"},
		{name: "pair", args: "--nats-key=" + key + " --nats-cert=" + key, want: "--nats-cert: certificate and key cannot be used"},

		{name: "embedded and nats", args: "--embedded --nats=x", want: "--nats: contradicts --embedded"},
		{name: "embedded and BRIDGE_NATS", args: "--nats-context=a", env: "BRIDGE_EMBEDDED=1", want: "--nats-context: contradicts --embedded"},
		{name: "store without embedded", args: "--store-dir=x", want: "--store-dir: says where the embedded NATS server is, but there is none; add --embedded"},
		{name: "embedded listen", args: "--embedded --embedded-listen=4222", want: `--embedded-listen: "4222" is not host:port`},
		{name: "embedded replicas", args: "--embedded --replicas=3", want: "--replicas: the embedded server is one server"},
		{name: "replicas", args: "--replicas=7", want: "--replicas: 7 copies are more than JetStream keeps"},
		{name: "negative", args: "--max-requests=-1", want: "--max-requests: -1 is too small"},
		{name: "poll timeout", args: "--poll-timeout=0s", want: "--poll-timeout: 0s is too short"},
		{name: "negative rate", args: "--polls-per-second=-1", want: "--polls-per-second: -1 is below 0"},
		{name: "backoff", args: "--backoff-max=100ms", want: "--backoff-max: 100ms is shorter than --backoff-initial"},
		{name: "ages", args: "--timeout=200h", want: "--states-max-age: 192h0m0s is not longer than --timeout 200h0m0s"},
		{name: "memory", args: "--result-memory=1KiB", want: "--result-memory: 1KiB does not hold one result of --max-result 64MiB; give at least that, or lower --max-result"},
		{name: "large results", args: "--max-result=1GiB", want: "--result-memory: 256MiB does not hold one result of --max-result 1GiB"},
		{name: "requests", args: "--max-requests=300000 --max-ack-pending=200000", want: "--max-requests: 300000 is more than --max-ack-pending 200000"},
		{name: "descriptors", args: "--max-polls=2000000000", want: "--max-polls: 2000000000 polls in flight need more than"},
		{name: "http", args: "--http=8910", want: `--http: "8910" is not host:port; give one such as 127.0.0.1:8910, or none`},
	} {
		t.Run(c.name, func(t *testing.T) {
			clearEnv(t)
			args := strings.Fields(c.args)
			if len(args) > 0 && args[0] == "-" {
				args = args[1:]
			} else {
				args = append([]string{up}, args...)
			}
			if c.file != "" {
				args = append(args, "--config="+write(t, "c.yaml", c.file))
			}
			if name, value, ok := strings.Cut(c.env, "="); ok {
				t.Setenv(name, value)
			}
			_, err := parseServe(t, args...)
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "topsecret")
			require.NotContains(t, err.Error(), "\n")
			var exit *exitError
			require.True(t, errors.As(err, &exit))
			require.Equal(t, exitUsage, exit.code)
		})
	}
}

func TestEverythingWrongIsToldAtOnce(t *testing.T) {
	clearEnv(t)
	_, err := parseServe(t, "--ack-wait=1ms", "--prefix=-.", "--http=x")
	require.Error(t, err)
	require.Len(t, strings.Split(err.Error(), "\n"), 4, err)
}

func TestLimitsThatNobodyAskedForFollowThoseThatWereGiven(t *testing.T) {
	clearEnv(t)
	c, err := parseServe(t, up, "--max-ack-pending=500")
	require.NoError(t, err)
	require.Equal(t, 500, c.MaxRequests)

	t.Setenv("NATS_URL", "nats://elsewhere")
	c, err = parseServe(t, up, "--embedded", "--http=none")
	require.NoError(t, err, "a variable for other programs contradicts nothing")
	require.NotEmpty(t, c.StoreDir)
	require.Empty(t, c.HTTP)
	c, err = parseServe(t, up, "--nats-context=x")
	require.NoError(t, err)
	require.True(t, c.contextWins())
}

func TestAConsumerThatStandsBoundsWhatABridgeHolds(t *testing.T) {
	clearEnv(t)
	for _, c := range []struct {
		args  string
		most  int // the consumer's
		made  bool
		holds int
		want  string
	}{
		{"", 500, false, 500, ""},
		{"", -1, false, 100_000, ""},
		{"--max-requests=500", 500, false, 500, ""},
		{"--max-requests=250000", 300_000, false, 250_000, ""},
		{"--max-requests=250000", 200_000, true, 0, "--max-requests: 250000 is more than the 200000 requests (max ack pending) that all bridges share; lower it, or give --max-ack-pending too"},
		{"--max-requests=501", 500, false, 0, "--max-requests: 501 is more than the 500 requests (max ack pending) that the consumer bridge of TINKER_WORK gives to all bridges; " +
			"lower it, or raise the consumer's: nats consumer edit TINKER_WORK bridge --max-pending=501"},
	} {
		config, err := parseServe(t, append([]string{up}, strings.Fields(c.args)...)...)
		require.NoError(t, err)
		err = config.fit(jetstream.ConsumerConfig{MaxAckPending: c.most}, !c.made)
		if c.want == "" {
			require.NoError(t, err)
			require.Equal(t, c.holds, config.MaxRequests)
			continue
		}
		require.EqualError(t, err, c.want)
		require.Equal(t, exitUsage, report(err, io.Discard))
	}
}

func TestAPrintedConfigCanBeFedBack(t *testing.T) {
	clearEnv(t)
	t.Setenv("BRIDGE_API_KEY", "topsecret")
	for _, args := range [][]string{
		{up},
		{up, "--embedded", "--http=", "--store-dir=/a b/c#d", "--replicas=1", "--ack-wait=90s"},
		{up, "--nats=nats://a:1,tls://b:2", "--max-result=1000001B", "--polls-per-second=2.5", "--timeout=36h", "--cadence=fixed"},
		{up, "--dialect=twinkle", "--upstream-proxy=socks5://127.0.0.1:1080"},
		{up, "--dialect=skyrl", "--poll-timeout=1m"},
	} {
		c, err := parseServe(t, args...)
		require.NoError(t, err)
		var out bytes.Buffer
		require.NoError(t, c.print(&out))
		require.NotContains(t, out.String(), "topsecret")
		back, err := parseServe(t, "--config", write(t, "c.yaml", out.String()))
		require.NoError(t, err, out.String())
		for _, flag := range following {
			require.Equal(t, c.given.has(flag), back.given.has(flag), flag)
		}
		back.given, back.Config, back.warnings = c.given, c.Config, c.warnings
		require.Equal(t, c, back)
	}
	c, err := parseServe(t, up, "--upstream-header=A=topsecret", "--nats=nats://u:topsecret@h:1,x@y", "--upstream-proxy=http://u:topsecret@127.0.0.1:3128")
	require.NoError(t, err)
	var out bytes.Buffer
	require.NoError(t, c.print(&out))
	require.NotContains(t, out.String(), "topsecret")
	require.Contains(t, out.String(), "A="+mask)
	require.Contains(t, out.String(), mask+"@h:1,"+mask+"@y")
	require.Contains(t, out.String(), "http://"+mask+"@127.0.0.1:3128")
}

func TestThePrintNeedsNoUpstream(t *testing.T) {
	clearEnv(t)
	_, err := parseServe(t, "--print-config")
	require.NoError(t, err)
}

func TestEveryFlagNamesItselfAndItsVariable(t *testing.T) {
	clearEnv(t)
	var out bytes.Buffer
	var grammar serveOnly
	parsed, err := parse(&grammar, []string{"serve", "--help"}, &out, &out)
	require.NoError(t, err)
	require.Nil(t, parsed)
	eachFlag(reflect.ValueOf(serveConfig{}), func(name string, _ reflect.Value) {
		require.Contains(t, out.String(), "--"+name)
		variable := envName(name)
		require.Contains(t, strings.Join(strings.Fields(out.String()), ""), "$"+variable, name)
	})
}

func TestByteSizesAreExact(t *testing.T) {
	for _, text := range []string{"0B", "1B", "1023B", "1KiB", "1536B", "64MiB", "1GiB", "1000001B"} {
		var b byteSize
		require.NoError(t, b.UnmarshalText([]byte(text)))
		require.Equal(t, text, b.String())
	}
	for _, d := range []time.Duration{0, time.Second, time.Minute, time.Hour, 90 * time.Second, 36 * time.Hour, time.Hour + time.Second} {
		back, err := time.ParseDuration(shortDuration(d))
		require.NoError(t, err)
		require.Equal(t, d, back, fmt.Sprint(d))
	}
}

func TestAVariableThatNoFlagReadsIsWarnedOf(t *testing.T) {
	warnings := strayVariables([]string{"BRIDGE_ACKWAIT=1s", "BRIDGE_ACK_WAIT=1s", "BRIDGE_API_KEY=k", "BRIDGE_CONFIG=f", "HOME=/"})
	require.Equal(t, []string{"BRIDGE_ACKWAIT in the environment is no setting; bridge serve --help names those there are"}, warnings)
}

// The embedded server has no authentication: nothing but its own flag lets other machines reach it.
func TestTheEmbeddedServerListensOnLoopbackUnlessTold(t *testing.T) {
	clearEnv(t)
	c, err := parseServe(t, up, "--embedded", "--store-dir="+t.TempDir(), "--http=0.0.0.0:8910")
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1:4222", c.EmbeddedListen)
	c, err = parseServe(t, up, "--embedded", "--store-dir="+t.TempDir(), "--embedded-listen=0.0.0.0:4222")
	require.NoError(t, err)
	require.Equal(t, "0.0.0.0:4222", c.EmbeddedListen)
}
