package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/publish"
	"futurebridge/internal/testbed"
)

// A server remembers of a delivery when its message was stored, and only an extension tells it better: after a restart it
// would give everything old that had just been taken to a second bridge at once, under the first one's eyes.
func TestAServerRestartRightAfterOldWorkWasTakenMakesNoSecondHolder(t *testing.T) {
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, endless())
		ackWait := 30 * time.Second
		_, err := publish.Ensure(t.Context(), w.js, w.names, publish.Options{AckWait: &ackWait})
		require.NoError(t, err)
		for _, id := range ids("req", 50) {
			w.submitFor(id, 10*time.Minute)
		}
		time.Sleep(3 * time.Minute)
		w.bridge("bridge-1", "--backoff-max=3s", "--max-requests=40")
		w.bridge("bridge-2", "--backoff-max=3s", "--max-requests=40")
		time.Sleep(2 * time.Second)
		w.restartServer(3 * time.Second)
		w.settled(20 * time.Minute)
		w.check()
		w.close()
	})
}
