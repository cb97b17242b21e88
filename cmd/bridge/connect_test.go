package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/embedded"
	"futurebridge/internal/testbed"
)

// asBridge makes the test binary behave as another program, so that tests can kill real processes; standIn is what it
// does then, where tests of that kind run.
const asBridge = "TEST_AS_BRIDGE" // no BRIDGE_ in front: the demo and the benchmarks hand those on to no process of theirs

var standIn = func() { panic(asBridge + " is set") }

func TestMain(m *testing.M) {
	if os.Getenv(asBridge) != "" {
		standIn()
		return
	}
	testbed.Main(m)
}

func silent() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestADaemonWaitsForAnAbsentServerAndSaysSo(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		server := testbed.NewServer(t, asEmbedded())
		server.Stop()
		var log bytes.Buffer
		f := natsFlags{Nats: "nats://127.0.0.1:4222"}
		nc, js, err := f.dial(dialOptions{
			name: "test", log: slog.New(slog.NewTextHandler(&log, nil)), inProcess: server, patient: true,
		})
		require.NoError(t, err)
		require.NotNil(t, js)
		require.False(t, nc.IsConnected())
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.Equal(t, 1, strings.Count(log.String(), `msg="cannot connect to NATS`), "once a minute, not at each attempt")

		server.Start()
		time.Sleep(5 * time.Second)
		require.True(t, nc.IsConnected())
		nc.Close()
		synctest.Wait()
		require.Contains(t, log.String(), `msg="connected to NATS"`)
	})
}

func TestACommandFailsSoonWhenThereIsNoServer(t *testing.T) {
	testbed.ForgetTimers()
	s, err := embedded.Start(embedded.Options{StoreDir: t.TempDir(), Listen: "127.0.0.1:0"})
	require.NoError(t, err)
	url := s.ClientURL()
	s.Shutdown()
	f := natsFlags{Nats: url}
	_, _, err = f.dial(dialOptions{log: silent()})
	require.ErrorContains(t, err, "does not answer: start it, or say with --nats where it is")
	require.ErrorContains(t, err, url)
}

func TestCredentialsAndContextsAreUsed(t *testing.T) {
	addr := guarded(t, &server.Options{Username: "ada", Password: "topsecret"})
	f := natsFlags{Nats: addr}
	_, _, err := f.dial(dialOptions{log: silent()})
	require.ErrorContains(t, err, "refuses these credentials")
	require.ErrorIs(t, err, nats.ErrAuthorization)

	f = natsFlags{Nats: "nats://ada:wrong@" + addr}
	_, _, err = f.dial(dialOptions{log: silent()})
	require.ErrorContains(t, err, "refuses these credentials")
	require.NotContains(t, err.Error(), "wrong@")

	config := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", config)
	dir := filepath.Join(config, "nats", "context")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	text := fmt.Sprintf(`{"url":"nats://%s","user":"ada","password":"topsecret","jetstream_domain":"hub"}`, addr)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "home.json"), []byte(text), 0o600))
	f = natsFlags{Nats: "nats://127.0.0.1:4222", NatsContext: "home", given: given{"nats-context": {byFlag, "--nats-context"}}}
	nc, js, err := f.dial(dialOptions{log: silent()})
	require.NoError(t, err)
	require.Equal(t, "hub", js.Options().Domain)
	nc.Close()

	f.NatsContext = "work"
	_, _, err = f.dial(dialOptions{log: silent()})
	require.EqualError(t, err, "--nats-context: unknown context \"work\"; `nats context ls` lists those there are")
	var exit *exitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, exitUsage, exit.code)

	require.NoError(t, os.WriteFile(filepath.Join(dir, "work.json"), []byte(`{"url":"nats://ada:topsecret@h:x"}`), 0o600))
	_, _, err = f.dial(dialOptions{log: silent()})
	require.EqualError(t, err, `NATS (context "work"): its URL is not one: correct the context`)
}

func TestWhereNATSIsWaitedForIsSaid(t *testing.T) {
	clearEnv(t)
	for flag, want := range map[string]string{
		"--nats-context=home":     `nats="context \"home\""`,
		"--nats=nats://token@h:1": "nats=nats://" + mask + "@h:1",
		"--embedded":              `nats="in this process"`,
	} {
		config, err := parseServe(t, up, flag)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var log bytes.Buffer
		_, err = config.prepare(ctx, &nats.Conn{}, nil, newReadiness(""), slog.New(slog.NewTextHandler(&log, nil)))
		require.NoError(t, err)
		require.Contains(t, log.String(), want)
	}
}
