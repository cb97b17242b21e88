package client_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"futurebridge/client"
)

func Example() {
	nc, stop := client.BridgeForExamples() // yours: nats.Connect("nats://127.0.0.1:4222")
	defer stop()
	c, err := client.New(nc)
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	if err := c.Submit(ctx, client.Request{ID: "req-1", Type: "sample", Timeout: time.Hour}); err != nil {
		fmt.Println(err)
		return
	}
	result, err := c.Wait(ctx, "req-1")
	if err != nil {
		fmt.Println(err)
		return
	}
	data, err := result.Bytes(ctx)
	fmt.Println(string(data), err)
	// Output: {"loss":0.25} <nil>
}

func ExampleClient_Result() {
	nc, stop := client.BridgeForExamples()
	defer stop()
	c, err := client.New(nc)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, id := range []string{"req-1", "req-2", "req-3"} {
		result, err := c.Result(context.Background(), id)
		var ended *client.RequestError
		switch {
		case err == nil:
			fmt.Println(id, "completed with", result.Size, "bytes")
		case errors.As(err, &ended):
			fmt.Println(id, ended.Status, "-", ended.Message)
		case errors.Is(err, client.ErrNotYet):
			fmt.Println(id, "is not there yet")
		default:
			fmt.Println(err)
		}
	}
	// Output:
	// req-1 completed with 13 bytes
	// req-2 failed - bad prompt
	// req-3 is not there yet
}

func ExampleClient_Watch() {
	nc, stop := client.BridgeForExamples()
	defer stop()
	c, err := client.New(nc)
	if err != nil {
		fmt.Println(err)
		return
	}
	for event, err := range c.Watch(context.Background(), client.WatchOptions{IDs: []string{"req-1"}}) {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(event.RequestID, event.Status, event.Closing)
	}
	// Output:
	// req-1 queued false
	// req-1 running false
	// req-1 completed true
}

func ExampleClient_SubmitAll() {
	nc, stop := client.BridgeForExamples()
	defer stop()
	c, err := client.New(nc)
	if err != nil {
		fmt.Println(err)
		return
	}
	requests := slices.Values([]client.Request{{ID: "a"}, {ID: ""}, {ID: "b"}})
	for request, err := range c.SubmitAll(context.Background(), requests) {
		fmt.Printf("%q %v\n", request.ID, err)
	}
	// Output:
	// "a" <nil>
	// "" the request id is empty
	// "b" <nil>
}
