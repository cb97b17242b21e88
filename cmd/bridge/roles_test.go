package main

import (
	"bytes"
	"context"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/api/sim"
	"futurebridge/internal/testbed"
)

// office is a NATS server with the accounts of docs/security.md, streams that its admin has made, and a bridge.
type office struct {
	t        *testing.T
	addr     string
	upstream string
}

func newOffice(t *testing.T, accounts string) *office {
	t.Helper()
	addr := guarded(t, permitting(t, accounts))
	upstream := httptest.NewServer(sim.New(sim.Script{Profiles: []sim.Profile{
		{Name: "large", Match: "large-*", Steps: []sim.Step{{State: "active", For: 10 * time.Millisecond}, {Answer: "completed", ResultBytes: 9000}}},
		{Name: "job", Steps: []sim.Step{{State: "active", For: 10 * time.Millisecond}, {Answer: "completed", ResultBytes: 100}}},
	}}))
	t.Cleanup(upstream.Close)
	return &office{t: t, addr: addr, upstream: upstream.URL}
}

// as are the flags of a user, whose name may begin with that of a team.
func (o *office) as(user string) []string {
	return []string{"--nats=nats://" + user + ":" + user[strings.LastIndex(user, "-")+1:] + "-secret@" + o.addr, "--nats-inbox-prefix=_INBOX." + user}
}

func (o *office) connect(user string) *nats.Conn {
	o.t.Helper()
	nc, err := nats.Connect(o.addr, nats.UserInfo(user, user[strings.LastIndex(user, "-")+1:]+"-secret"), nats.CustomInboxPrefix("_INBOX."+user),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	require.NoError(o.t, err)
	o.t.Cleanup(nc.Close)
	return nc
}

// serve runs a bridge until the test ends.
func (o *office) serve(user string, args ...string) {
	o.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var log testbed.Log
	ended := make(chan error)
	args = append(append([]string{"serve", "--upstream=" + o.upstream, "--http=none", "--max-inline-result=2KiB", "--max-polls=16"}, o.as(user)...), args...)
	go func() { ended <- run(ctx, args, nil, &log, &log) }()
	o.t.Cleanup(func() {
		stop()
		require.NoError(o.t, <-ended)
		require.NotContains(o.t, log.String(), "level=ERROR")
	})
}

// run is a command of a user, which nothing may be denied to.
func (o *office) run(user string, args ...string) (stdout string) {
	o.t.Helper()
	var out, talk bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	require.NoError(o.t, run(ctx, append(append(args[:1:1], o.as(user)...), args[1:]...), nil, &out, &talk), "%s %v: %s", user, args, &talk)
	require.Empty(o.t, talk.String(), "%s %v", user, args)
	return out.String()
}

// refused says whether the server does not let a user publish to a subject or, with sub, subscribe to it.
func refused(t *testing.T, nc *nats.Conn, sub bool, subject string) bool {
	t.Helper()
	if sub {
		s, err := nc.SubscribeSync(subject)
		require.NoError(t, err)
		defer s.Unsubscribe()
	} else {
		require.NoError(t, nc.Publish(subject, nil))
	}
	require.NoError(t, nc.Flush())
	found := asDenied(nc.LastError())
	return found != nil && found.subject == subject
}

func TestEachRoleCanDoItsWorkAndNothingElse(t *testing.T) {
	o := newOffice(t, permissions(t, "permissions"))
	asAdmin(t, o.connect("admin"))
	o.serve("bridge", "--polls-per-second=100")

	require.Equal(t, "job-1\nlarge-1\n", o.run("submitter", "submit", "job-1", "large-1"))
	require.Equal(t, "job-2\n", o.run("app", "submit", "job-2"))
	require.Contains(t, o.run("app", "wait", "job-2"), `"of":"job-2"`)
	require.Contains(t, o.run("app", "wait", "job-1"), `"of":"job-1"`)
	require.Contains(t, o.run("app", "result", "job-2"), `"of":"job-2"`)
	require.Contains(t, o.run("consumer", "wait", "job-1"), `"of":"job-1"`)
	require.Equal(t, 3, strings.Count(o.run("consumer", "wait", "--json", "job-1", "job-2", "large-1"), `"status":"completed"`))
	require.Len(t, o.run("consumer", "result", "large-1"), 9000)
	require.Contains(t, o.run("consumer", "watch", "job-1", "large-1"), "completed")

	t.Run("a consumer finds a result under what no bridge wrote", func(t *testing.T) {
		tester, err := jetstream.New(o.connect("tester"))
		require.NoError(t, err)
		_, err = tester.Publish(t.Context(), "ingest.tinker.result.job-2", []byte("rubbish"))
		require.NoError(t, err)
		require.Contains(t, o.run("consumer", "result", "job-2"), `"of":"job-2"`)
	})
	t.Run("a consumer reads live", func(t *testing.T) {
		nc := o.connect("consumer")
		live, err := nc.SubscribeSync("tinker.result.*")
		require.NoError(t, err)
		require.NoError(t, nc.Flush())
		appLive, err := o.connect("app").SubscribeSync("tinker.result.job-3")
		require.NoError(t, err)
		o.run("app", "submit", "job-3")
		for _, sub := range []*nats.Subscription{live, appLive} {
			m, err := sub.NextMsg(30 * time.Second)
			require.NoError(t, err)
			require.Equal(t, "completed", m.Header.Get("Bridge-Status"))
		}
		require.NoError(t, nc.LastError())
	})
	t.Run("a consumer has a durable group", func(t *testing.T) {
		nc := o.connect("consumer")
		js, err := jetstream.New(nc)
		require.NoError(t, err)
		group, err := js.CreateConsumer(t.Context(), "TINKER_RESULTS", jetstream.ConsumerConfig{Durable: "group", AckPolicy: jetstream.AckExplicitPolicy})
		require.NoError(t, err)
		batch, err := group.Fetch(1)
		require.NoError(t, err)
		for m := range batch.Messages() {
			require.NoError(t, m.DoubleAck(t.Context()))
		}
		require.NoError(t, js.DeleteConsumer(t.Context(), "TINKER_RESULTS", "group"))
		require.NoError(t, nc.LastError())
	})

	events := []string{"ingest.tinker.state.x", "ingest.tinker.result.x", "ingest.tinker.rejected.1", "tinker.state.x", "tinker.result.x", "$O.TINKER_LARGE.C.x"}
	submits := []string{"tinker.submit", "tinker.submit.x"}
	work := []string{"$JS.API.CONSUMER.CREATE.TINKER_WORK.x", "$JS.API.STREAM.MSG.GET.TINKER_WORK", "$JS.API.DIRECT.GET.TINKER_WORK", "$JS.ACK.TINKER_WORK.bridge.1.1.1.1.1"}
	streams := []string{"$JS.API.STREAM.CREATE.X", "$JS.API.STREAM.UPDATE.TINKER_WORK", "$JS.API.STREAM.DELETE.TINKER_RESULTS", "$JS.API.STREAM.PURGE.TINKER_STATES"}
	reads := []string{
		"$JS.API.CONSUMER.CREATE.TINKER_STATES.x", "$JS.API.CONSUMER.CREATE.TINKER_RESULTS.x", "$JS.API.STREAM.MSG.GET.TINKER_RESULTS",
		"$JS.API.DIRECT.GET.TINKER_STATES.tinker.state.job-1", "$JS.API.DIRECT.GET.OBJ_TINKER_LARGE.x",
	}
	one := []string{"$JS.API.DIRECT.GET.TINKER_RESULTS.tinker.result.job-1", "$JS.API.STREAM.INFO.TINKER_RESULTS"}
	for _, c := range []struct {
		user          string
		publish       [][]string
		subscriptions []string
	}{
		{"bridge", [][]string{submits, streams, events[3:5], {work[0], work[1]}, reads[:2]}, []string{"tinker.result.*", "tinker.submit", "_INBOX.app.>"}},
		{"consumer", [][]string{submits, streams, events, work}, []string{"tinker.submit", "ingest.>", "_INBOX.bridge.>"}},
		{"admin", [][]string{submits, events}, []string{"tinker.result.*", "ingest.>"}},
		{"submitter", [][]string{streams, events, work, reads, one}, []string{"tinker.result.*", "tinker.state.*", "tinker.submit", "_INBOX.app.>", "_INBOX.>"}},
		{"app", [][]string{streams, events, work, reads}, []string{"tinker.state.*", "tinker.submit", "ingest.>", "_INBOX.submitter.>"}},
	} {
		t.Run(c.user+" can do nothing else", func(t *testing.T) {
			nc := o.connect(c.user)
			for _, subjects := range c.publish {
				for _, subject := range subjects {
					require.True(t, refused(t, nc, false, subject), "publish to %s", subject)
				}
			}
			for _, subject := range append(c.subscriptions, ">") {
				require.True(t, refused(t, nc, true, subject), "subscribe to %s", subject)
			}
		})
	}
}

// Where an answer goes is the asker's choice. In the bridge's account that forges a result; from another one it does not.
func TestAnswersCannotForgeAResultFromAnotherAccount(t *testing.T) {
	o := newOffice(t, permissions(t, "permissions"))
	asAdmin(t, o.connect("admin"))
	tester := o.connect("tester")
	js, err := jetstream.New(tester)
	require.NoError(t, err)
	stored := func(stream string) uint64 {
		s, err := js.Stream(t.Context(), stream)
		require.NoError(t, err)
		return s.CachedInfo().State.Msgs
	}
	for _, user := range []string{"submitter", "app"} {
		nc := o.connect(user)
		require.NoError(t, nc.PublishRequest("tinker.submit", "ingest.tinker.result.victim", []byte(user)))
		require.NoError(t, nc.PublishRequest("tinker.submit.key", "$JS.ACK.TINKER_WORK.bridge.1.1.1.1.1", []byte(user)))
		require.NoError(t, nc.Flush())
	}
	o.run("submitter", "submit", "job-1") // what came before has been answered now
	require.EqualValues(t, 3, stored("TINKER_WORK"))
	require.Zero(t, stored("TINKER_RESULTS"))

	require.NoError(t, tester.PublishRequest("tinker.submit", "ingest.tinker.result.victim", []byte("job-2")))
	require.Eventually(t, func() bool { return stored("TINKER_RESULTS") == 1 }, 30*time.Second, 10*time.Millisecond, "this is how it would be done")
}

// Two teams share a server: each has the block of docs/security.md with names of its own.
func TestTeamsCannotReadEachOther(t *testing.T) {
	text := permissions(t, "permissions")
	other := strings.NewReplacer(
		"tinker", "acme", "TINKER", "ACME", "  BRIDGE {", "  ACME_BRIDGE {", "  APP {", "  ACME_APP {", "account: BRIDGE", "account: ACME_BRIDGE",
		"[APP]", "[ACME_APP]", "user: ", "user: acme-", "_INBOX.>", "_INBOX.>", "_INBOX.", "_INBOX.acme-",
	).Replace(strings.TrimSuffix(strings.TrimPrefix(text, "accounts {\n"), "}\n"))
	o := newOffice(t, strings.TrimSuffix(text, "}\n")+other+"}\n")
	for user, args := range map[string][]string{"admin": nil, "acme-admin": {"--prefix=acme"}} {
		asAdmin(t, o.connect(user), args...)
	}
	o.serve("bridge")
	o.serve("acme-bridge", "--prefix=acme")
	for user, prefix := range map[string]string{"app": "--prefix=tinker", "acme-app": "--prefix=acme"} {
		o.run(user, "submit", prefix, "job-of-"+user)
		require.Contains(t, o.run(user, "wait", prefix, "job-of-"+user), "job-of-"+user)
	}
	for user, theirs := range map[string]string{"acme-app": "TINKER_RESULTS.tinker.result.job-of-app", "acme-consumer": "TINKER_RESULTS.tinker.result.job-of-app", "app": "ACME_RESULTS.acme.result.job-of-acme-app"} {
		nc := o.connect(user)
		_, subject, _ := strings.Cut(theirs, ".")
		require.True(t, refused(t, nc, false, "$JS.API.DIRECT.GET."+theirs), user)
		require.True(t, refused(t, nc, true, subject), user)
	}
}
