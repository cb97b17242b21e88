package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/publish"
	"futurebridge/internal/testbed"
)

// asAdmin sends each command that `bridge streams --out` prints as the nats command line does: the file, as it is, to
// the JSON API.
func asAdmin(t *testing.T, nc *nats.Conn, args ...string) {
	t.Helper()
	var out, stderr bytes.Buffer
	require.NoError(t, run(t.Context(), append([]string{"streams", "--out", t.TempDir()}, args...), nil, &out, &stderr))
	commands := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Len(t, commands, 7)
	for _, command := range commands {
		words := strings.Fields(command)
		config, err := os.ReadFile(words[len(words)-1])
		require.NoError(t, err)
		subject, request := "$JS.API.STREAM.CREATE."+words[3], config
		if words[1] == "consumer" {
			subject = "$JS.API.CONSUMER.CREATE." + words[3] + "." + words[4]
			request, err = json.Marshal(map[string]any{"stream_name": words[3], "config": json.RawMessage(config)})
			require.NoError(t, err)
		}
		reply, err := nc.RequestWithContext(t.Context(), subject, request)
		require.NoError(t, err, command)
		require.NotContains(t, string(reply.Data), `"error"`, command)
	}
}

func TestWhatAnAdminMakesFromStreamsSatisfiesServe(t *testing.T) {
	all := []string{
		"--replicas=1", "--states-max-age=48h", "--results-max-age=72h", "--results-max-bytes=1MiB", "--compress-results",
		"--ack-wait=1m", "--max-ack-pending=500",
	}
	for name, args := range map[string][]string{"defaults": nil, "every flag": all, "another prefix": {"--prefix=acme.tinker"}} {
		t.Run(name, func(t *testing.T) {
			testbed.Bubble(t, func(t *testing.T) {
				nc, js, err := (&natsFlags{}).dial(dialOptions{log: silent(), inProcess: testbed.NewServer(t, asEmbedded())})
				require.NoError(t, err)
				defer nc.Close()
				asAdmin(t, nc, args...)
				cfg, err := parseServe(t, append([]string{up, "--polls-per-second=5"}, args...)...)
				require.NoError(t, err)
				consumer, err := publish.Ensure(t.Context(), js, cfg.names(), cfg.streamOptions())
				require.NoError(t, err, "no difference")
				require.Equal(t, cfg.AckWait, consumer.AckWait)
				require.Equal(t, cfg.MaxAckPending, consumer.MaxAckPending)
				account, err := js.AccountInfo(t.Context())
				require.NoError(t, err)
				require.Equal(t, 6, account.Streams)
				require.Equal(t, 1, account.Consumers, "nothing had to be made besides")
			})
		})
	}
}

func TestStreamsPrintsThemAllAsOneObject(t *testing.T) {
	var out, stderr bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"streams", "--print", "--replicas=3"}, nil, &out, &stderr))
	var printed struct {
		Streams   []map[string]any
		Consumers []map[string]any
	}
	require.NoError(t, json.Unmarshal(out.Bytes(), &printed))
	require.Len(t, printed.Streams, 6)
	for _, stream := range printed.Streams {
		require.EqualValues(t, 3, stream["num_replicas"])
	}
	require.Len(t, printed.Consumers, 1)
	require.Equal(t, "TINKER_WORK", printed.Consumers[0]["stream_name"])
}

func TestStreamsSaysWhatIsWrong(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "--print or --out"},
		{[]string{"--print", "--prefix=a b"}, `--prefix: prefix "a b"`},
		{[]string{"--print", "--replicas=7"}, "--replicas: 7 copies are more than JetStream keeps; give 1, 3 or 5"},
		{[]string{"--print", "--ack-wait=0s"}, "--ack-wait: 0s is too short"},
		{[]string{"--out", file}, "--out: mkdir " + file},
	} {
		var out, stderr bytes.Buffer
		err := run(t.Context(), append([]string{"streams"}, c.args...), nil, &out, &stderr)
		require.ErrorContains(t, err, c.want)
		var exit *exitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, exitUsage, exit.code)
		require.Empty(t, out.String())
	}
}

func TestFlagsThatNobodyGaveSayWhatIsMadeWithoutThem(t *testing.T) {
	cfg, err := parseServe(t, up)
	require.NoError(t, err)
	names, written := cfg.names(), cfg.streamFlags.options(func(string) bool { return true })
	require.Equal(t, names.Streams(publish.Options{}), names.Streams(written))
	require.Equal(t, names.ConsumerConfig(publish.Options{}), names.ConsumerConfig(written))
}
