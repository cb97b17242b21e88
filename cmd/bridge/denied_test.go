package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/testbed"
)

func violation(format string, args ...any) error {
	return fmt.Errorf("%w: Permissions Violation for "+format, append([]any{nats.ErrPermissionViolation}, args...)...)
}

func nothing() {}

func TestAMissingPermissionIsReadFromTheServersWords(t *testing.T) {
	for _, c := range []struct {
		err  error
		want *deniedError
	}{
		{violation(`Publish to "a.b"`), &deniedError{"publish to", "a.b"}},
		{violation(`Publish with Reply of "$JS.ACK.x"`), &deniedError{"publish to", "$JS.ACK.x"}},
		{violation(`Subscription to "a.*"`), &deniedError{"subscribe to", "a.*"}},
		{violation(`Subscription to "a.*" using queue "q" (sid "3")`), &deniedError{"subscribe to", "a.*"}},
		{violation(`something new`), &deniedError{"do this:", "nats: permissions violation: Permissions Violation for something new"}},
		{nats.ErrSlowConsumer, nil},
		{nil, nil},
	} {
		require.Equal(t, c.want, asDenied(c.err))
	}
}

func TestADenialIsTroubleAsLongAsItExplainsAnything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d denials
		require.Equal(t, "no answer", d.explain("no answer"))
		require.True(t, d.note(violation(`Publish to "a"`), silent(), nothing))
		require.False(t, d.note(nats.ErrSlowConsumer, silent(), nothing))
		require.Contains(t, d.explain("no answer"), `publish to "a": see docs/security.md for what each role needs (no answer)`)
		require.Contains(t, d.explain(""), `publish to "a"`, "a bridge that may not fetch notices nothing itself")
		time.Sleep(deniedFor)
		require.Empty(t, d.explain(""), "it has not been tried again")

		var reconnects atomic.Int32
		for range 3 {
			d.note(violation(`Subscription to "b"`), silent(), func() { reconnects.Add(1) })
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Contains(t, d.explain(""), `subscribe to "b"`, "that is told only once")
		require.EqualValues(t, 1, reconnects.Load())
		d.forget()
		require.Empty(t, d.explain(""))
	})
}

func TestTheLogHasEachKindOfDenialOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d denials
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, nil))
		for i := range 100 {
			d.note(violation(`Publish to "ingest.tinker.result.req-%d"`, i), log, nothing)
			d.note(violation(`Publish to "$JS.ACK.TINKER_WORK.bridge.1.%d.%d.17.0"`, i, i), log, nothing)
		}
		require.Equal(t, 2, strings.Count(out.String(), "a permission is missing"), out.String())
		time.Sleep(time.Minute)
		d.note(violation(`Publish to "ingest.tinker.result.req-1"`), log, nothing)
		require.Equal(t, 3, strings.Count(out.String(), "a permission is missing"))
	})
}

// TestABridgeGoesOnOnceItIsPermitted: the server's permissions are mended while it runs, as with a reload.
func TestABridgeGoesOnOnceItIsPermitted(t *testing.T) {
	whole := creating(t)
	for name, c := range map[string][3]string{
		"publishing":  {`"ingest.tinker.result.*",`, `"nothing",`, `publish to "ingest.tinker.result.job-`},
		"creating":    {`"$JS.API.STREAM.CREATE.TINKER_STATES",`, `"nothing",`, `publish to "$JS.API.STREAM.CREATE.TINKER_STATES"`},
		"fetching":    {`"$JS.API.CONSUMER.MSG.NEXT.TINKER_WORK.bridge"`, `"nothing"`, `publish to "$JS.API.CONSUMER.MSG.NEXT.TINKER_WORK.bridge"`},
		"subscribing": {`"_INBOX.bridge.>"`, `"nothing"`, `subscribe to "_INBOX.bridge.`},
	} {
		t.Run(name, func(t *testing.T) {
			require.Contains(t, whole, c[0])
			before, after := permitting(t, strings.Replace(whole, c[0], c[1], 1)), permitting(t, whole)
			testbed.Bubble(t, func(t *testing.T) {
				w := newWorld(t, twoSizes())
				w.permit(before)
				state, stop := w.serveAs("--ack-wait=30s")
				if name == "publishing" || name == "fetching" {
					time.Sleep(time.Second)
					w.submit("job-1")
				}
				require.True(t, tells(state, c[2], time.Minute))
				time.Sleep(10 * time.Minute)
				require.True(t, tells(state, c[2], time.Minute))
				w.server.Reload(after)
				time.Sleep(2 * time.Minute)
				require.Empty(t, state.notReady())
				w.submit("job-2")
				w.settled(5 * time.Minute)
				stop()
				w.check()
				w.close()
			})
		})
	}
}
