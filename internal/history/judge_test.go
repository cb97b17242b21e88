package history

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/publish"
)

func TestAHistoryThatKeptEveryPromisePasses(t *testing.T) {
	report := history(5).judge()
	require.Empty(t, report.Violations)
	require.Equal(t, 5, report.Accepted)
	require.Equal(t, 5, report.Terminal)
	require.Equal(t, 20, report.Events)
	require.Equal(t, 20, report.Sighted)
	require.Equal(t, 15, report.Polls)
	require.Equal(t, map[string]int{"completed": 5}, report.Endings)
}

// rewrite changes the body of a record, and what a subscriber saw of it.
func rewrite[T any](k *kept, r *Record, change func(*T)) {
	var body T
	if err := json.Unmarshal(r.Data, &body); err != nil {
		panic(err)
	}
	change(&body)
	data, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	k.put(r, data)
}

func (k *kept) put(r *Record, data []byte) {
	r.Data = data
	for i, s := range k.run.Live {
		if s.Stream == r.Stream && s.Seq == r.Seq {
			k.run.Live[i] = sighting(s.Subscriber, *r)
		}
	}
}

// forget takes what subscribers saw out of the judgement.
func (k *kept) forget() { k.run.Live = nil }

// The requests of history(3): req-1 has the states 4, 5, the closing record 6 and the result 2.
func TestEachBrokenPromiseIsNamed(t *testing.T) {
	const id = "req-1"
	at := begin.Add(time.Second)
	stateAt := func(k *kept, i int) *Record { return &k.states[3+i] }
	closing := func(k *kept) *Record { return &k.states[5] }
	result := func(k *kept) *Record { return &k.results[1] }
	for _, c := range []struct {
		name   string
		rule   Rule
		id     string // "": the run as a whole
		breaks func(k *kept)
	}{
		{"a result that is dropped", OneResult, id, func(k *kept) { k.results = slices.Delete(k.results, 1, 2); k.hold(); k.forget() }},
		{"a closing record that is dropped", OneClosing, id, func(k *kept) { k.states = slices.Delete(k.states, 5, 6); k.hold(); k.forget() }},
		{"a state that is dropped", Chained, id, func(k *kept) { k.states = slices.Delete(k.states, 3, 4); k.hold(); k.forget() }},
		{"a whole request that is dropped", OneResult, id, func(k *kept) {
			k.states, k.results = slices.Delete(k.states, 3, 6), slices.Delete(k.results, 1, 2)
			k.hold()
			k.forget()
		}},
		{"a result twice", OneResult, id, func(k *kept) { k.result(id, at, "completed", result(k).Data, 5) }},
		{"a different result after the first", OneResult, id, func(k *kept) { k.result(id, at, "failed", []byte("{}"), 6) }},
		{"a closing record twice", OneClosing, id, func(k *kept) { k.states = append(k.states, *closing(k)) }},
		{"a state twice", NoRepeat, id, func(k *kept) {
			k.states = slices.Insert(k.states, 4, k.states[3])
			k.hold()
		}},
		{"two states that are swapped", Chained, id, func(k *kept) {
			k.states[3], k.states[4] = k.states[4], k.states[3]
		}},
		{"two equal states in a row, rightly chained", NoRepeat, id, func(k *kept) {
			rewrite(k, stateAt(k, 1), func(b *publish.StateBody) { b.QueueState, b.Reason = "active", "" })
			stateAt(k, 1).Status = "active"
		}},
		{"a state after the closing record", NothingAfter, id, func(k *kept) { k.state(id, at, "active", "paused_rate_limit", "", 6) }},
		{"a state and its closing record swapped", NothingAfter, id, func(k *kept) { k.states[4], k.states[5] = k.states[5], k.states[4] }},
		{"a state that the upstream never had", Order, id, func(k *kept) {
			rewrite(k, stateAt(k, 1), func(b *publish.StateBody) { b.QueueState = "paused_capacity" })
			stateAt(k, 1).Status = "paused_capacity"
		}},
		{"a reason that the upstream never gave", Order, id, func(k *kept) {
			rewrite(k, stateAt(k, 1), func(b *publish.StateBody) { b.Reason = "slow  down" })
		}},
		{"a state that names another before it", Chained, id, func(k *kept) {
			rewrite(k, stateAt(k, 1), func(b *publish.StateBody) { b.Previous = "paused_capacity" })
		}},
		{"a log that begins in the middle", Chained, id, func(k *kept) {
			rewrite(k, stateAt(k, 0), func(b *publish.StateBody) { b.Previous = "paused_capacity" })
		}},
		{"a state whose header says another", Headers, id, func(k *kept) { stateAt(k, 1).Status = "active" }},
		{"a state whose body is cut", Genuine, id, func(k *kept) { k.put(stateAt(k, 1), []byte(`{"queue_st`)) }},
		{"a closing record whose body is cut", Genuine, id, func(k *kept) { k.put(closing(k), []byte(`{"sta`)) }},
		{"an altered byte", Bytes, id, func(k *kept) {
			data := bytes.Clone(result(k).Data)
			data[2] ^= 1
			k.put(result(k), data)
		}},
		{"a result that was encoded anew", Bytes, id, func(k *kept) { k.put(result(k), []byte(`{"of": "req-1"}`)) }},
		{"another ending than the upstream's", Ending, id, func(k *kept) { result(k).Status = "failed" }},
		{"a closing record with another ending than the result", Agreement, id, func(k *kept) {
			rewrite(k, closing(k), func(b *publish.ClosingBody) { b.Status = "failed" })
		}},
		{"a closing record whose header has another ending", Agreement, id, func(k *kept) { closing(k).Status = "failed" }},
		{"a closing record that names another result", Agreement, id, func(k *kept) {
			rewrite(k, closing(k), func(b *publish.ClosingBody) { b.Result.Seq++ })
		}},
		{"a closing record that names another size", Agreement, id, func(k *kept) {
			rewrite(k, closing(k), func(b *publish.ClosingBody) { b.Result.Bytes++ })
		}},
		{"a closing record that counts other polls", Agreement, id, func(k *kept) {
			closing(k).Polls++
			rewrite(k, closing(k), func(b *publish.ClosingBody) { b.Polls++ })
		}},
		{"a header that is missing", Headers, id, func(k *kept) { stateAt(k, 0).Missing = "Nats-Msg-Id" }},
		{"a time of submission that is none", Headers, id, func(k *kept) { result(k).SubmittedAt = at.Add(time.Second) }},
		{"a message that no bridge wrote", Genuine, "", func(k *kept) {
			k.states = append(k.states, Record{Stream: "TINKER_STATES", Seq: 77, Err: errors.New("it has no Bridge-Request-Id header"), Event: publish.Event{Subject: "tinker.state.x"}})
		}},
		{"an event of a request that nobody submitted", Accepted, "req-9", func(k *kept) { k.state("req-9", at, "active", "", "", 1) }},
		{"a time-out before the deadline", Deadline, id, func(k *kept) {
			k.run.Upstream = nil
			result(k).Status, result(k).Time = "timed_out", at.Add(59*time.Second)
		}},
		{"an ending long after the deadline", Deadline, id, func(k *kept) { result(k).Time = at.Add(62 * time.Second) }},
		{"a result that was lost without need", NothingLost, id, func(k *kept) { result(k).Status = "lost" }},
		{"two bridges side by side", OneHolder, id, func(k *kept) {
			closing(k).Time = at.Add(time.Hour)
			for s := range 30 {
				k.run.Polls = append(k.run.Polls, poll(id, "bridge-1", at, float64(6+2*s)), poll(id, "bridge-2", at, float64(7+2*s)))
			}
		}},
		{"a poll after the end", Over, id, func(k *kept) { k.run.Polls = append(k.run.Polls, poll(id, "bridge-2", at, 400)) }},
		{"a live event that is not stored", Stored, id, func(k *kept) {
			s := sighting("watcher", *result(k))
			s.Seq = 900
			k.run.Live = append(k.run.Live, s)
		}},
		{"a live event without a sequence", Stored, id, func(k *kept) {
			k.run.Live = append(k.run.Live, Sighting{Subscriber: "watcher", RequestID: id, Subject: "tinker.state.req-1"})
		}},
		{"a live event with other content than is stored", Stored, id, func(k *kept) {
			changed := *result(k)
			changed.Data = []byte("forged")
			k.run.Live = append(k.run.Live, sighting("another", changed))
		}},
		{"a live event twice", Once, id, func(k *kept) { k.run.Live = append(k.run.Live, sighting("watcher", *result(k))) }},
		{"work that is left", WorkDone, "", func(k *kept) { k.run.Work.Messages = 1 }},
		{"work that is not acknowledged", WorkDone, "", func(k *kept) { k.run.Work.AckPending = 1 }},
		{"a stream that was read in part", Whole, "", func(k *kept) { k.run.Held["TINKER_RESULTS"]++ }},
		{"no fault", Shown, "", func(k *kept) { k.run.Faults = 0 }},
		{"nothing accepted", Shown, "", func(k *kept) { *k = kept{} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := history(3)
			c.breaks(k)
			report := k.judge()
			require.NotEmpty(t, report.Violations)
			require.NotZero(t, report.Broken[c.rule], "%v", report.Violations)
			want := string(c.rule) + ": "
			if c.id != "" {
				want = fmt.Sprintf("request %q: %s", c.id, want)
			}
			require.True(t, slices.ContainsFunc(report.Violations, func(v string) bool { return bytes.Contains([]byte(v), []byte(want)) }), "%v", report.Violations)
			for _, v := range report.Violations {
				require.NotContains(t, v, `"req-0"`, "the others are fine")
				require.NotContains(t, v, `"req-2"`, "the others are fine")
			}
		})
	}
}

func TestWhatLooksOddAndIsAllowedPasses(t *testing.T) {
	const id = "req-1"
	at := begin.Add(time.Second)
	for name, allow := range map[string]func(k *kept){
		"a repeated live message of a cluster": func(k *kept) {
			k.run.Cluster = true
			k.run.Live = append(k.run.Live, k.run.Live[0])
		},
		"a live message that two subscribers saw": func(k *kept) { k.run.Live = append(k.run.Live, sighting("another", k.results[1])) },
		"a live message that was missed":          func(k *kept) { k.run.Live = k.run.Live[1:] },
		"another bridge after the first has died": func(k *kept) {
			k.states[5].Time = at.Add(time.Hour)
			for s := range 30 {
				k.run.Polls = append(k.run.Polls, poll(id, "bridge-2", at, float64(36+2*s)))
			}
		},
		"a request that is handed to and fro": func(k *kept) {
			k.states[5].Time = at.Add(time.Hour)
			for s := range 30 {
				caller := []string{"bridge-1", "bridge-2", "bridge-1"}[s/10]
				k.run.Polls = append(k.run.Polls, poll(id, caller, at, float64(6+2*s)))
			}
		},
		"two holders of two submissions": func(k *kept) {
			k.run.Accepted = append(k.run.Accepted, k.run.Accepted[1])
			k.states[5].Time = at.Add(time.Hour)
			for s := range 30 {
				k.run.Polls = append(k.run.Polls, poll(id, "bridge-1", at, float64(6+2*s)), poll(id, "bridge-2", at, float64(7+2*s)))
			}
		},
		"a holder that has not looked yet": func(k *kept) { k.run.Polls = append(k.run.Polls, poll(id, "bridge-2", at, 300)) },
		"a time-out at its deadline": func(k *kept) {
			k.results[1].Status, k.results[1].Time = "timed_out", at.Add(time.Minute+time.Millisecond)
			k.states[5].Status = "timed_out"
			rewrite(k, &k.states[5], func(b *publish.ClosingBody) { b.Status = "timed_out" })
		},
		"a lost result where answers were cut": func(k *kept) {
			k.run.MayLose = func(string) bool { return true }
			k.results[1].Status, k.states[5].Status = "lost", "lost"
			rewrite(k, &k.states[5], func(b *publish.ClosingBody) { b.Status = "lost" })
		},
		"a state after the result": func(k *kept) { // in the instant before the closing record
			k.states = slices.Insert(k.states, 5, k.states[3])
			rewrite(k, &k.states[5], func(b *publish.StateBody) { b.Previous = "paused_rate_limit" })
			rewrite(k, &k.states[6], func(b *publish.ClosingBody) { b.Previous = "active" })
			k.forget()
		},
		"nothing known but the streams": func(k *kept) { k.run = Run{Accepted: k.run.Accepted} },
	} {
		t.Run(name, func(t *testing.T) {
			k := history(3)
			allow(k)
			require.Empty(t, k.judge().Violations)
		})
	}
}

func TestALogLongerThanTheStreamKeepsBeginsInTheMiddle(t *testing.T) {
	k := &kept{run: Run{Accepted: []Submission{{ID: "long"}}}}
	names := []string{"active", "paused_rate_limit"}
	for n := range 63 {
		k.state("long", begin, names[n%2], names[(n+1)%2], "", n+1)
	}
	k.result("long", begin, "completed", nil, 64)
	k.closing("long", begin, "completed", "active", 64)
	require.Empty(t, k.judge().Violations)
	k.states = k.states[1:]
	require.Equal(t, map[Rule]int{Chained: 1}, k.judge().Broken)
}

func TestAResultInTheObjectStoreIsReadAndCompared(t *testing.T) {
	large := func() *kept {
		k := history(1)
		k.forget()
		_, want := script{}.Expected("req-0")
		sum := sha256.Sum256(want)
		k.results[0].Data, k.results[0].Large = nil, &publish.LargeRef{Object: "req-0.x", Bytes: int64(len(want)), Digest: "SHA-256=" + base64.URLEncoding.EncodeToString(sum[:])}
		rewrite(k, &k.states[2], func(b *publish.ClosingBody) { b.Result.Object = "req-0.x" })
		k.run.Object = func(name string) ([]byte, error) {
			if name != "req-0.x" {
				return nil, errors.New("no such object")
			}
			return want, nil
		}
		return k
	}
	require.Empty(t, large().judge().Violations)
	for name, alter := range map[string]func(k *kept){
		"other bytes":           func(k *kept) { k.run.Object = func(string) ([]byte, error) { return []byte(`{"of":"req-1"}`), nil } },
		"no object":             func(k *kept) { k.run.Object = func(string) ([]byte, error) { return nil, errors.New("gone") } },
		"another size":          func(k *kept) { k.results[0].Large.Bytes++ },
		"another digest":        func(k *kept) { k.results[0].Large.Digest = "SHA-256=xyz" },
		"never read, and wrong": func(k *kept) { k.run.Object, k.results[0].Large.Digest = nil, "SHA-256=xyz" },
	} {
		t.Run(name, func(t *testing.T) {
			k := large()
			alter(k)
			report := k.judge()
			require.NotZero(t, report.Broken[Bytes], "%v", report.Violations)
			require.Contains(t, report.Violations[0], `request "req-0"`)
		})
	}
	k := large()
	rewrite(k, &k.states[2], func(b *publish.ClosingBody) { b.Result.Object = "req-0.y" })
	require.NotZero(t, k.judge().Broken[Agreement], "the closing record names the object")
}

func TestAFloodOfViolationsIsCountedAndCut(t *testing.T) {
	k := history(2000)
	k.results = nil
	report := k.judge()
	require.Equal(t, maxViolations, len(report.Violations))
	require.Equal(t, 2000, report.Broken[OneResult])
}
