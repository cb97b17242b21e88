package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"futurebridge/client"
	"futurebridge/internal/publish"
)

// crowd is the demo's watchers: core subscribers of states and of results, stream readers, and one that comes late.
type crowd struct {
	d        *demo
	client   *client.Client
	watchers []*watcher
}

// watcher counts how often it saw each request end.
type watcher struct {
	name   string
	core   bool // at most once: it may miss events, and says so
	events atomic.Int64
	mu     sync.Mutex
	ends   map[string]int
}

func (w *watcher) saw(id string, end bool) {
	w.events.Add(1)
	if end {
		w.mu.Lock()
		w.ends[id]++
		w.mu.Unlock()
	}
}

func newCrowd(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, names publish.Names, d *demo) (*crowd, error) {
	c := &crowd{d: d}
	var err error
	if c.client, err = client.New(nc, client.WithJetStream(js)); err != nil {
		return nil, err
	}
	c.follow(ctx, c.add("log reader", false), true)
	for n := range 4 {
		if err := c.subscribe(nc, names, names.Results(), c.add(fmt.Sprintf("core subscriber %d of results", n+1), true)); err != nil {
			return nil, err
		}
	}
	for n := range 3 {
		if err := c.subscribe(nc, names, names.States(), c.add(fmt.Sprintf("core subscriber %d of states", n+1), true)); err != nil {
			return nil, err
		}
	}
	c.follow(ctx, c.add("second log reader", false), false)
	c.add("late log reader", false)
	return c, nc.Flush()
}

func (c *crowd) add(name string, core bool) *watcher {
	w := &watcher{name: name, core: core, ends: map[string]int{}}
	c.watchers = append(c.watchers, w)
	return w
}

func (c *crowd) subscribe(nc *nats.Conn, names publish.Names, subject string, w *watcher) error {
	sub, err := nc.Subscribe(subject, func(m *nats.Msg) {
		if e, err := names.Decode(m.Subject, m.Header, m.Data); err == nil {
			w.saw(e.RequestID, publish.Terminal(e.Status))
		}
	})
	if err != nil {
		return err
	}
	return sub.SetPendingLimits(-1, -1)
}

// follow reads every log from its start. The first follower's count of ended requests drives the demo, and it shows
// the first few events.
func (c *crowd) follow(ctx context.Context, w *watcher, leading bool) {
	go func() {
		for e, err := range c.client.Watch(ctx, client.WatchOptions{All: true}) {
			if err != nil {
				return // only the end of ctx
			}
			w.saw(e.RequestID, e.Closing)
			if !leading {
				continue
			}
			if c.d.said.Add(1) <= 12 {
				c.d.say("%-46s %s %s", e.RequestID, e.Status, e.Reason)
			}
			if e.Closing {
				c.d.closed.Add(1)
			} else {
				c.d.transitions.Add(1)
			}
		}
	}()
}

func (c *crowd) attachLate(ctx context.Context) { c.follow(ctx, c.watchers[len(c.watchers)-1], false) }

// complete reports whether the watchers that miss nothing have seen as many requests end.
func (c *crowd) complete(n int) bool {
	for _, w := range c.watchers {
		w.mu.Lock()
		seen := len(w.ends)
		w.mu.Unlock()
		if seen < n && !w.core {
			return false
		}
	}
	return true
}

func (c *crowd) events() (n int64) {
	for _, w := range c.watchers {
		n += w.events.Load()
	}
	return n
}

// violations are requests that a watcher saw end more than once.
func (c *crowd) violations() (out []string) {
	for _, w := range c.watchers {
		w.mu.Lock()
		for id, n := range w.ends {
			if n > 1 {
				out = append(out, fmt.Sprintf("request %q: the %s saw it end %d times", id, w.name, n))
			}
		}
		w.mu.Unlock()
	}
	return out
}
