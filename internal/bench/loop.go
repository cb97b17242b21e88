package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// loopStream holds the results of Loop.
var loopStream = jetstream.StreamConfig{Name: "LOOP", Subjects: []string{"loop.result.*"}, Duplicates: duplicates}

// Loop is what one would write without the bridge: take an id, poll, publish with a message id, ack. It is tuned
// (many in flight, connections kept, async publishes) and promises much less: no fence, no states, no closing record,
// no second poll. It works until ctx ends, or something is not as it expects.
func Loop(ctx context.Context, natsURL, upstream string) error {
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
	l := &loop{js: js, url: upstream + "/api/v1/retrieve_future", web: &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 1024, MaxConnsPerHost: 1024},
	}}
	slots, failed := make(chan struct{}, 1024), make(chan error, 1)
	running, err := consumer.Consume(func(m jetstream.Msg) {
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			if err := l.handle(m); err != nil {
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
	js  jetstream.JetStream
	web *http.Client
	url string
}

func (l *loop) handle(m jetstream.Msg) error {
	id := string(m.Data())
	body, err := json.Marshal(map[string]any{"request_id": id, "allow_metadata_only": false})
	if err != nil {
		return err
	}
	res, err := l.web.Post(l.url, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	data, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil {
		return err
	}
	var answer struct {
		Status string          `json:"status"`
		Result json.RawMessage `json:"result"`
	}
	if err := json.Unmarshal(data, &answer); err != nil || answer.Status != "completed" {
		return fmt.Errorf("an answer that is no result: %w: %.200s", err, data)
	}
	future, err := l.js.PublishMsgAsync(&nats.Msg{Subject: "loop.result." + id, Data: answer.Result}, jetstream.WithMsgID(id))
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
