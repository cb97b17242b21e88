package intake

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/publish"
)

// What a server with replicas sends in which order depends on its followers, so here a script takes its place.
func TestAFetchEndsWhenAllHasComeThatTheServerSays(t *testing.T) {
	status := func(code, description, left string) *nats.Msg {
		m := &nats.Msg{Header: nats.Header{"Status": {code}, "Description": {description}}}
		if left != "" {
			m.Header.Set("Nats-Pending-Messages", left)
		}
		return m
	}
	item := &nats.Msg{Reply: "ack"}
	posing := &nats.Msg{Reply: item.Reply, Header: nats.Header{"Status": {"409"}, "Nats-Pending-Messages": {"3"}}}
	for name, c := range map[string]struct {
		sent []*nats.Msg
		got  int
		err  string
		took time.Duration // until there is nothing more to wait for
		huge bool
	}{
		"complete":                        {[]*nats.Msg{item, item, item, item}, 3, "", 0, false},
		"complete, and told so before":    {[]*nats.Msg{item, status("409", "Batch Completed", "0"), item, item}, 3, "", 0, false},
		"no more":                         {[]*nats.Msg{item, status("408", "Request Timeout", "2"), item}, 1, "", 0, false},
		"no more, told before the last":   {[]*nats.Msg{status("408", "Request Timeout", "1"), item, item, item}, 2, "", 0, false},
		"no more, and one that is lost":   {[]*nats.Msg{status("408", "Request Timeout", "1"), item}, 1, "", 3 * time.Second, false},
		"nothing":                         {[]*nats.Msg{status("404", "No Messages", "")}, 0, "", 0, false},
		"no room for the next":            {[]*nats.Msg{item, status("409", "Message Size Exceeds MaxBytes", "2")}, 1, "", 0, false},
		"no room for the first":           {[]*nats.Msg{status("409", "Message Size Exceeds MaxBytes", "3")}, 0, "", 0, true},
		"no room, told before the first":  {[]*nats.Msg{status("409", "Message Size Exceeds MaxBytes", "2"), item}, 1, "", 0, false},
		"another leader":                  {[]*nats.Msg{item, status("409", "Leadership Change", ""), item}, 1, "the server ended the fetch: 409 Leadership Change", 0, false},
		"no consumer":                     {[]*nats.Msg{status("503", "", "")}, 0, nats.ErrNoResponders.Error(), 0, false},
		"a number that is none":           {[]*nats.Msg{item, status("408", "Request Timeout", "two"), item}, 1, "", 0, false},
		"more left than was asked for":    {[]*nats.Msg{item, status("408", "Request Timeout", "9"), item}, 1, "", 0, false},
		"a sign of life":                  {[]*nats.Msg{status("100", "Idle Heartbeat", "3"), item, item, item}, 3, "", 0, false},
		"a submission that poses as this": {[]*nats.Msg{posing, posing, item}, 3, "", 0, false},
		"silence":                         {nil, 0, "", 3 * time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				sub, err := w.other.Subscribe("scripted", func(ask *nats.Msg) {
					for _, m := range c.sent {
						if err := w.other.PublishMsg(&nats.Msg{Subject: ask.Reply, Reply: m.Reply, Header: m.Header}); err != nil {
							t.Error(err)
						}
					}
				})
				require.NoError(t, err)
				synctest.Wait() // the server has it
				consumer, err := w.js.Consumer(t.Context(), w.names.WorkStream(), w.names.Consumer())
				require.NoError(t, err)
				p := NewPuller(w.nc, publish.APIPrefix(w.js), consumer)
				p.next = sub.Subject
				begin, got := time.Now(), 0
				batch, err := p.Fetch(3, 2*time.Second)
				require.NoError(t, err)
				for range batch.Messages() {
					got++
				}
				require.Equal(t, c.got, got)
				require.Equal(t, c.took, time.Since(begin).Truncate(time.Second))
				require.Equal(t, c.huge, p.huge.Load())
				if c.err == "" {
					require.NoError(t, batch.Error())
				} else {
					require.EqualError(t, batch.Error(), c.err)
				}
				synctest.Wait()
				require.Equal(t, 1, w.nc.NumSubscriptions(), "for answers, and none for the fetch")
			})
		})
	}
}
