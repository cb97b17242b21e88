package poll

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// idlers counts the pollers that nothing needs at present.
func idlers(e *Engine) int {
	synctest.Wait()
	n := len(e.idle)
	e.Oldest() // a word to its goroutine, which owns them
	return n
}

func TestPollersThatNothingNeedsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busy := &script{answers: []answer{{state("active", "", 20*time.Second), time.Second}}}
		e, stop := engine(t, busy, &fakeSink{}, nil)
		var requests []Request
		for i := range 50 {
			requests = append(requests, request(fmt.Sprint(i), &fakeLease{}))
		}
		e.Add(requests)
		pass(2 * time.Second)
		require.Equal(t, 50, idlers(e))
		pass(10 * time.Minute) // polls have drifted apart
		few := idlers(e)
		require.Positive(t, few)
		require.Less(t, few, 25)
		require.Greater(t, busy.calls(), 50*25)
		stop()
	})
	synctest.Test(t, func(t *testing.T) {
		e, stop := engine(t, scripted(completed("{}")), &fakeSink{}, nil)
		e.Add([]Request{request("a", &fakeLease{}), request("b", &fakeLease{})})
		pass(2 * time.Minute)
		require.Zero(t, e.Held())
		require.Zero(t, idlers(e), "even if nothing happens any more")
		stop()
	})
}
