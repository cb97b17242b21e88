package main

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
	"futurebridge/internal/api/sim"
	"futurebridge/internal/testbed"
)

// keyed is a bridge whose key is in a file, and what it says about that.
func (w *world) keyed(path string, options ...string) (*running, *keyFile, *bytes.Buffer) {
	var log bytes.Buffer
	text, err := os.ReadFile(path)
	require.NoError(w.t, err)
	key := &keyFile{path: path, key: string(text), log: slog.New(slog.NewTextHandler(&log, nil))}
	b := w.odd("bridge-1", seams{upstream: func(c *api.Config) { c.Key, c.KeyRefused = key.key, key.refused }}, options...)
	key.use = b.client.SetKey
	return b, key, &log
}

func TestANewKeyInTheFileNeedsNoRestart(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, sim.Script{}, sim.WithAPIKey("the-new-key"))
		file := write(t, "key", "the-old-key")
		b, _, log := w.keyed(file)
		w.submit(ids("req", 50)...)
		time.Sleep(10 * time.Minute)
		require.True(t, b.engine.KeyRefused())
		require.Less(t, w.sim.Stats().Answers["unauthorized"], 80, "those in flight, then one probe at a time")
		require.Empty(t, log.String())
		require.NoError(t, os.WriteFile(file, []byte("the-new-key\n"), 0o600))
		begin := time.Now()
		w.settled(time.Minute)
		require.Less(t, time.Since(begin), 40*time.Second, "the next probe is at most 30 s away")
		require.False(t, b.engine.KeyRefused())
		require.Equal(t, 1, strings.Count(log.String(), "the API key has changed"))
		require.NotContains(t, log.String(), "the-")
		w.check()
		w.close()
	})
}

func TestAKeyThatIsRotatedInTimeHoldsNobody(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, sim.Script{Profiles: []sim.Profile{{Name: "long", Steps: []sim.Step{{State: "active", For: time.Minute}, {Answer: "completed"}}}}}, sim.WithAPIKey("first"))
		file := write(t, "key", "first")
		b, _, log := w.keyed(file)
		w.submit(ids("req", 20)...)
		time.Sleep(10 * time.Second)
		require.NoError(t, os.WriteFile(file, []byte("second"), 0o600))
		w.sim.SetAPIKey("second")
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			require.False(t, b.engine.KeyRefused(), "the first poll that is refused finds the new key")
		}
		w.settled(time.Minute)
		require.Contains(t, log.String(), "the API key has changed")
		require.Positive(t, w.sim.Stats().Answers["unauthorized"])
		w.check()
		w.close()
	})
}

func TestHangUpProbesAtOnce(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, sim.Script{Profiles: []sim.Profile{{Name: "done", Steps: []sim.Step{{Answer: "completed"}}}}}, sim.WithAPIKey("second"))
		file := write(t, "key", "first")
		b, key, log := w.keyed(file)
		w.submit("req-1") // alone: nobody else's poll can be the probe
		time.Sleep(10 * time.Minute)
		require.NoError(t, os.WriteFile(file, []byte("second"), 0o600))
		begin := time.Now()
		hangUp(key, b.engine)
		w.settled(time.Minute)
		require.Less(t, time.Since(begin), 2*time.Second)
		require.False(t, b.engine.KeyRefused())
		require.Contains(t, log.String(), "the API key has changed")
		hangUp(key, b.engine)
		require.Contains(t, log.String(), "the API key is the same as before")
		w.close()
	})
}

func TestAKeyFileThatCannotBeUsedLeavesTheKeyBefore(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"gone":      {"", "no such file"},
		"empty":     {"\n", "is empty; put the key into it"},
		"two lines": {"topsecret\ntopsecret", "has more than one line"},
		"binary":    {"topsecret\x01", "or a control character"},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			path := write(t, "key", c.text)
			if name == "gone" {
				require.NoError(t, os.Remove(path))
			}
			k := &keyFile{path: path, key: "before", log: slog.New(slog.NewTextHandler(&log, nil)), use: func(string) error {
				require.Fail(t, "another key is used")
				return nil
			}}
			for range 3 {
				k.refused()
				k.read = time.Time{} // a second later
			}
			require.Equal(t, 1, strings.Count(log.String(), "\n"), "it is told once")
			require.Contains(t, log.String(), c.want)
			require.Contains(t, log.String(), "polls go on with the one before")
			k.hangUp()
			require.Equal(t, 2, strings.Count(log.String(), "\n"), "who asks is told again")
			require.NotContains(t, log.String(), "topsecret")
			require.Equal(t, "before", k.key)
		})
	}
}

func TestManyRefusalsReadTheFileOnce(t *testing.T) {
	uses := 0
	path := write(t, "key", "second")
	k := &keyFile{path: path, key: "first", log: silent(), use: func(string) error { uses++; return nil }}
	for i := range 100 {
		k.refused()
		require.NoError(t, os.WriteFile(path, []byte(strings.Repeat("x", i+1)), 0o600))
	}
	require.Equal(t, 1, uses)
}

func TestAKeyFromTheEnvironmentCannotBeReadAgain(t *testing.T) {
	var log bytes.Buffer
	k := &keyFile{log: slog.New(slog.NewTextHandler(&log, nil))}
	k.refused()
	require.Empty(t, log.String())
	k.hangUp()
	require.Contains(t, log.String(), "use --api-key-file")
}
