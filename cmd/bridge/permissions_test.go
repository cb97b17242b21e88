package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/synadia-io/orbit.go/natscontext"

	"futurebridge/internal/api"
	"futurebridge/internal/api/sim"
	"futurebridge/internal/publish"
	"futurebridge/internal/testbed"
)

// permissions is a block of docs/security.md, as it stands there: what is tested is what people paste.
func permissions(t *testing.T, name string) string {
	t.Helper()
	doc, err := os.ReadFile("../../docs/security.md")
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(doc), "<!-- "+name+" -->\n```\n")
	require.True(t, found, name)
	block, _, found := strings.Cut(rest, "```\n")
	require.True(t, found, name)
	return block
}

// creating is the configuration in which the bridge may also make its streams.
func creating(t *testing.T) string {
	const before = `            "ingest.tinker.state.*"`
	text := permissions(t, "permissions")
	require.Equal(t, 1, strings.Count(text, before))
	return strings.Replace(text, before, permissions(t, "permissions: makes its streams")+before, 1)
}

// publishes is what a user of the configuration may publish to.
func publishes(t *testing.T, text, user string) (subjects []string) {
	t.Helper()
	_, rest, found := strings.Cut(text, "{ user: "+user+",")
	require.True(t, found)
	_, rest, _ = strings.Cut(rest, "publish: [")
	list, _, _ := strings.Cut(rest, "]")
	for _, quoted := range regexp.MustCompile(`"([^"]+)"`).FindAllStringSubmatch(list, -1) {
		subjects = append(subjects, quoted[1])
	}
	require.NotEmpty(t, subjects)
	return subjects
}

// permitting are a server's options with these accounts. Beside their users there is one that may do everything in the
// bridge's account: who connects without a name.
func permitting(t *testing.T, accounts string) *server.Options {
	t.Helper()
	for _, user := range []string{"BRIDGE", "CONSUMER", "ADMIN", "SUBMITTER", "APP"} {
		t.Setenv("NATS_"+user+"_PASSWORD", strings.ToLower(user)+"-secret")
	}
	accounts = strings.Replace(accounts, "users: [", "users: [ { user: tester, password: tester-secret }", 1)
	file := filepath.Join(t.TempDir(), "nats.conf")
	require.NoError(t, os.WriteFile(file, []byte("no_auth_user: tester\n"+accounts), 0o600))
	opts, err := server.ProcessConfigFile(file)
	require.NoError(t, err)
	opts.JetStream, opts.SyncAlways = true, true
	return opts
}

// permit starts the world's server anew with other options.
func (w *world) permit(opts *server.Options) {
	w.server.Restart(opts)
	time.Sleep(5 * time.Second) // until the tester is connected again
}

// serveAs is what `serve` does once it has its settings, as the user bridge.
func (w *world) serveAs(args ...string) (state *readiness, stop func()) {
	w.t.Helper()
	cfg, err := parseServe(w.t, append([]string{up}, args...)...)
	require.NoError(w.t, err)
	state = newReadiness("starting")
	nc, err := nats.Connect("", append(cfg.handlers(dialOptions{log: w.logger(), patient: true, state: state}),
		nats.InProcessServer(w.server), nats.UserInfo("bridge", "bridge-secret"), nats.CustomInboxPrefix("_INBOX.bridge"),
		nats.MaxReconnects(-1), nats.ReconnectBufSize(-1))...)
	require.NoError(w.t, err)
	js, err := newJetStream(nc, natscontext.Settings{}, nil)
	require.NoError(w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	transport := w.memory.Transport()
	go func() {
		defer close(ended)
		consumer, err := cfg.prepare(ctx, nc, js, state, w.logger())
		if err != nil || ctx.Err() != nil {
			return
		}
		client, err := api.New(api.Config{BaseURL: "http://upstream", Timeout: cfg.PollTimeout, MaxResult: 1 << 20, Transport: transport})
		require.NoError(w.t, err)
		b, err := newBridge(cfg, nc, js, consumer, client, client.Full, w.logger(), prometheus.NewRegistry())
		require.NoError(w.t, err)
		state.ask(b.notReady)
		b.run(ctx, ctx)
	}()
	stop = sync.OnceFunc(func() {
		nc.Close()
		cancel()
		<-ended
		transport.CloseIdleConnections()
	})
	w.t.Cleanup(stop)
	return state, stop
}

// everyKind submits what makes a bridge do all that it ever does: states, results, large ones, rejections, and conflicts
// with another bridge that was faster, on a log, and on a result that is in the object store already, and with a message
// that no bridge wrote, on a log and in the place of a result.
func (w *world) everyKind() {
	w.t.Helper()
	w.submit("job-1", "large-1", "job-raced", "large-raced", "job-spoilt")
	w.submitMsg(&nats.Msg{Subject: "tinker.submit", Data: []byte("{}")})
	time.Sleep(3 * time.Second) // they are active, and their ends not yet there
	event := func(kind, id, status string) {
		m := nats.NewMsg("ingest.tinker." + kind + "." + id)
		m.Header.Set(publish.HeaderRequestID, id)
		m.Header.Set(publish.HeaderStatus, status)
		m.Header.Set(publish.HeaderPolls, "1")
		m.Header.Set(publish.HeaderSubmittedAt, time.Now().UTC().Format(time.RFC3339Nano))
		m.Data = []byte(`{"queue_state":"active","poll":1}`)
		_, err := w.js.PublishMsg(context.Background(), m)
		require.NoError(w.t, err)
	}
	event("state", "job-raced", "active")
	event("result", "large-raced", "completed")
	for _, kind := range []string{"state", "result"} {
		_, err := w.js.Publish(context.Background(), "ingest.tinker."+kind+".job-spoilt", []byte("rubbish"))
		require.NoError(w.t, err)
	}
}

// tells reports whether a bridge gives a reason within a time.
func tells(state *readiness, reason string, within time.Duration) bool {
	for begin := time.Now(); time.Since(begin) < within; time.Sleep(time.Second) {
		if strings.Contains(state.notReady(), reason) {
			return true
		}
	}
	return false
}

func twoSizes() sim.Script {
	life := func(name string, bytes int) sim.Profile {
		return sim.Profile{Name: name, Match: name + "-*", Steps: []sim.Step{{State: "active", For: 10 * time.Second}, {Answer: "completed", ResultBytes: bytes}}}
	}
	return sim.Script{Profiles: []sim.Profile{life("job", 200), life("large", 9000)}}
}

func TestTheBridgeNeedsEachOfItsPermissionsAndNoMore(t *testing.T) {
	text := creating(t)
	for _, missing := range append([]string{"none"}, publishes(t, text, "bridge")...) {
		t.Run(missing, func(t *testing.T) {
			opts := permitting(t, strings.Replace(text, fmt.Sprintf("%q", missing), `"nothing"`, 1)) // the bridge's list is the first
			testbed.Bubble(t, func(t *testing.T) {
				w := newWorld(t, twoSizes())
				w.permit(opts)
				state, stop := w.serveAs("--max-inline-result=2KiB", "--polls-per-second=100")
				named := `publish to "` + strings.TrimRight(missing, "*>")
				time.Sleep(5 * time.Second)
				if missing == "none" {
					w.everyKind()
					w.settled(5 * time.Minute)
					require.Empty(t, state.notReady())
					require.Nil(t, state.denied.last)
				} else if !tells(state, named, 30*time.Second) { // else it could not even begin
					w.everyKind()
					require.True(t, tells(state, named, 5*time.Minute), "not needed")
				}
				stop()
				w.close()
			})
		})
	}
}
