package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// loopStream holds the results of Loop, each on loopResults with its request's id.
var loopStream = jetstream.StreamConfig{Name: "LOOP", Subjects: []string{loopResults + "*"}, Duplicates: duplicates}

const loopResults = "loop.result."

// Loop is what one would write without the bridge, a goroutine for each request: take an id, poll until there is a
// result, publish it with a message id, ack. It is tuned (many polls in flight, connections kept, async publishes) and
// promises much less: no fence, no states, no closing record. It works until ctx ends, or something is not as it expects.
func Loop(ctx context.Context, natsURL, upstream string, maxPolls int) error {
	nc, err := nats.Connect(natsURL, nats.Name("bench loop"))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(4096))
	if err != nil {
		return err
	}
	consumer, err := js.Consumer(ctx, "TINKER_WORK", "bridge")
	if err != nil {
		return err
	}
	l := &loop{
		js: js, url: upstream + "/api/v1/retrieve_future", slots: make(chan struct{}, maxPolls), extend: consumer.CachedInfo().Config.AckWait / 3,
		web: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: maxPolls, MaxConnsPerHost: maxPolls}},
	}
	failed := make(chan error, 1)
	running, err := consumer.Consume(func(m jetstream.Msg) {
		l.slots <- struct{}{}
		go func() {
			defer func() { <-l.slots }()
			if err := l.handle(ctx, m); err != nil {
				select {
				case failed <- err:
				default:
				}
			}
		}()
	}, jetstream.PullMaxMessages(2000))
	if err != nil {
		return err
	}
	defer running.Stop()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

type loop struct {
	js     jetstream.JetStream
	web    *http.Client
	url    string
	slots  chan struct{} // polls in flight
	extend time.Duration // between two extensions of a lease
}

// handle is called with a slot, and returns with one.
func (l *loop) handle(ctx context.Context, m jetstream.Msg) error {
	id := string(m.Data())
	for {
		a, err := l.poll(id)
		if err != nil {
			return err
		}
		if a.Status == "completed" {
			return l.publish(m, id, a.Result)
		}
		<-l.slots
		err = l.wait(ctx, m, max(time.Second, time.Duration(a.RetryAfter*float64(time.Second))))
		l.slots <- struct{}{}
		if err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// answer is what the upstream says, of the two things that it says here.
type answer struct {
	Type       string          `json:"type"`
	RetryAfter float64         `json:"retry_after_s"`
	Status     string          `json:"status"`
	Result     json.RawMessage `json:"result"`
}

func (l *loop) poll(id string) (a answer, err error) {
	body, err := json.Marshal(map[string]any{"request_id": id, "allow_metadata_only": false})
	if err != nil {
		return a, err
	}
	res, err := l.web.Post(l.url, "application/json", bytes.NewReader(body))
	if err != nil {
		return a, err
	}
	data, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(data, &a); err != nil || a.Status != "completed" && a.Type != "try_again" {
		return a, fmt.Errorf("an answer that is neither a result nor a wait: %w: %.200s", err, data)
	}
	return a, nil
}

// wait extends the lease meanwhile.
func (l *loop) wait(ctx context.Context, m jetstream.Msg, d time.Duration) error {
	for until := time.Now().Add(d); ; {
		left := time.Until(until)
		select {
		case <-time.After(min(left, l.extend)):
			if left <= l.extend {
				return nil
			}
			if err := m.InProgress(); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (l *loop) publish(m jetstream.Msg, id string, result []byte) error {
	future, err := l.js.PublishMsgAsync(&nats.Msg{Subject: loopResults + id, Data: result}, jetstream.WithMsgID(id))
	if err != nil {
		return err
	}
	select {
	case <-future.Ok():
	case err := <-future.Err():
		return err
	}
	return m.Ack()
}
