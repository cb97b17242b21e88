package poll_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"futurebridge/internal/api"
	"futurebridge/internal/poll"
)

// A training client starts a step, gets a future, and awaits its result.
func ExampleAwait_training() {
	answers := []string{
		`{"type":"try_again","queue_state":"paused_capacity","queue_state_reason":"waiting for a trainer","retry_after_ms":10}`,
		`{"type":"try_again","queue_state":"active","retry_after_ms":10}`,
		`{"metrics":{"loss:mean":0.25},"loss_fn_output_type":"cross_entropy"}`,
	}
	upstream, client := serve(answers)
	defer upstream.Close()

	var future poll.Future // what forward_backward returned
	_ = json.Unmarshal([]byte(`{"request_id":"3f2a:train:0:7","request_type":"ForwardBackward"}`), &future)

	result, err := poll.Await(context.Background(), future, poll.AwaitConfig{
		Retriever: client,
		Policy:    poll.DefaultPolicy(),
		Timeout:   time.Minute,
		Observer:  func(queueState, reason string) { fmt.Printf("%s %q\n", queueState, reason) },
	})
	fmt.Println(result.Polls, string(result.Body), err)
	// Output:
	// paused_capacity "waiting for a trainer"
	// active ""
	// 3 {"metrics":{"loss:mean":0.25},"loss_fn_output_type":"cross_entropy"} <nil>
}

// A sampling client has a plain id, and learns from the error whose fault a failure was.
func ExampleAwait_sampling() {
	upstream, client := serve([]string{`{"status":"failed","error":{"message":"the prompt is too long","category":"user"}}`})
	defer upstream.Close()

	_, err := poll.Await(context.Background(), poll.ID("3f2a:sample:0:1"), poll.AwaitConfig{Retriever: client})
	var ended *poll.ResultError
	if errors.As(err, &ended) {
		fmt.Println(ended.Result.Status, ended.Result.Failure.Category, ended.Result.Failure.Message)
	}
	// Output: failed user the prompt is too long
}

// serve is an upstream that gives these answers in order.
func serve(answers []string) (*httptest.Server, *api.Client) {
	n := 0
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, answers[n])
		n++
	}))
	client, err := api.New(api.Config{BaseURL: upstream.URL, Transport: upstream.Client().Transport})
	if err != nil {
		panic(err)
	}
	return upstream, client
}
