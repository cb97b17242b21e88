package poll

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTheLogGoesOnFromWhatItSaysWhenAStateCouldNotBeLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e *Engine
		first, second := &fakeLease{}, &fakeLease{}
		var logged []Transition
		sink := &fakeSink{transition: func(_ context.Context, _ *Request, tr Transition) (bool, error) {
			if !first.untrusted.Swap(true) { // the lease ran out, and the next delivery came to this very bridge
				e.Add([]Request{request("a", second)})
				return false, ErrLeaseLost
			}
			logged = append(logged, tr)
			return false, nil
		}}
		e, stop := engine(t, scripted(state("paused_capacity", "busy", 0), state("active", "", 0), completed("x")), sink, nil)
		e.Add([]Request{request("a", first)})
		pass(time.Minute)
		stop()
		require.Len(t, logged, 1)
		require.Equal(t, "active", logged[0].QueueState)
		require.Empty(t, logged[0].Previous, "the state before it is in no log")
		require.EqualValues(t, 1, first.drops.Load())
		require.EqualValues(t, 1, second.acks.Load())
	})
}
