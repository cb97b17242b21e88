package poll

import (
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
)

func TestARowForgetsNothingOfItsRequest(t *testing.T) {
	at := func(seconds int64) time.Time { return time.Unix(seconds, 5) }
	full := Request{
		ID: "req-1", About: &About{Type: "Sample"}, LogSeq: 7, Lease: &fakeLease{}, looked: 8, reserved: 9,
		State: State{
			Submitted: at(1), Deadline: at(2), Redelivered: true, QueueState: "paused_capacity", Reason: "full", Polls: 3,
			Full: true, Fresh: true, brokeOff: true, pendings: 4, faults: 5, serverFailures: 6, streak: 7, streakKey: 8,
			httpStatus: 408, notFoundSince: started.Add(9 * time.Second), failure: &api.Failure{}, cause: "EOF",
		},
	}
	for _, v := range []any{full, full.State} {
		for i := range reflect.TypeOf(v).NumField() {
			name := reflect.TypeOf(v).Field(i).Name
			if name != "Submitter" { // it has become the row's lane
				require.False(t, reflect.ValueOf(v).Field(i).IsZero(), "this test does not set %s", name)
			}
		}
	}
	for name, q := range map[string]Request{"everything": full, "next to nothing": {ID: "req-1", Lease: &fakeLease{}, State: State{Submitted: at(1)}}} {
		r := row{id: q.ID, about: q.About, submitted: q.State.Submitted.UnixNano()}
		r.pack(&q)
		require.Equal(t, q, r.unpack(), name)
	}
}
