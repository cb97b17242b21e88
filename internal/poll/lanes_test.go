package poll

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
)

func TestSubmittersTakeTurnsAndEachHasItsOwnInOrder(t *testing.T) {
	s := newLanes()
	due := func(submitter string, at int64) {
		s.push(entry{at, &row{id: fmt.Sprint(submitter, at), lane: s.of(submitter)}})
	}
	for at := range int64(5) {
		due("a", at)
	}
	due("b", 5)
	due("b", 6)
	due("", 7)
	var order []string
	for s.length > 3 {
		first := s.first(false)
		require.Equal(t, first, s.pop(false))
		order = append(order, first.row.id)
	}
	due("b", 8)
	s.remove(func(e entry) bool { return e.row.id == "a3" })
	for s.length > 0 {
		order = append(order, s.pop(false).row.id)
	}
	require.Equal(t, "a0 b5 7 a1 b6 a2 b8 a4", strings.Join(order, " "))
}

func TestHoweverManySubmittersThereAreTheyShareABoundedNumberOfLanes(t *testing.T) {
	s := newLanes()
	first := s.of("first")
	for i := range 10 * maxLanes {
		s.of(fmt.Sprint("submitter-", i))
	}
	require.Len(t, s.all, maxLanes)
	require.Len(t, s.named, maxLanes)
	require.Same(t, first, s.of("first"))
	require.Same(t, s.of("one of those beyond"), s.of("one of those beyond"))
}

func TestANameThatIsGoneLeavesItsLaneToOthers(t *testing.T) {
	s := newLanes()
	gone := make([]*lane, maxLanes)
	for i := range gone {
		gone[i] = s.of(fmt.Sprint("gone-", i))
	}
	beyond := s.of("beyond")
	require.Contains(t, gone, beyond, "it shares one")
	for _, l := range gone {
		s.leave(l)
	}
	require.Equal(t, []*lane{beyond}, s.all, "a row of another one holds it")
	require.Len(t, s.named, 1)
	fresh := s.of("fresh")
	require.NotContains(t, gone, fresh)
	require.Same(t, fresh, s.of("fresh"))
	s.leave(beyond)
	s.leave(fresh)
	require.Same(t, fresh, s.of("fresh"), "a row of it is held still")
	require.Equal(t, []*lane{fresh}, s.all)

	for i := range 100_000 {
		s.leave(s.of(fmt.Sprint("passing-", i)))
	}
	require.Equal(t, []*lane{fresh}, s.all)
	require.Len(t, s.named, 1)
	require.LessOrEqual(t, cap(s.all), 2*maxLanes)
}

// Whoever comes and goes: who is here has one lane, alone while there is room, and no lane stays for nobody.
func TestLanesAreThoseOfWhoeverIsHere(t *testing.T) {
	s, random := newLanes(), rand.New(rand.NewPCG(1, 2))
	var held []*lane
	for range 200_000 {
		if n := len(held); n > 0 && random.IntN(8*maxLanes) < n {
			i := random.IntN(n)
			s.leave(held[i])
			held[i], held = held[n-1], held[:n-1]
			continue
		}
		held = append(held, s.of(fmt.Sprint("submitter-", random.IntN(3*maxLanes))))
	}
	rows := map[*lane]int{}
	for _, l := range held {
		rows[l]++
	}
	require.Greater(t, len(held), 3*maxLanes, "some share")
	require.Len(t, s.all, len(rows))
	require.Len(t, s.named, len(rows))
	for i, l := range s.all {
		require.Equal(t, i, l.at)
		require.Equal(t, rows[l], l.rows)
		require.Same(t, l, s.named[l.name])
	}
}

func TestAnEngineThatHasEndedItsRequestsKeepsNoLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		polled := map[string]bool{}
		upstream := retrieverFunc(func(_ context.Context, q api.Query) api.Outcome {
			if !polled[q.RequestID] { // it waits for its time once
				polled[q.RequestID] = true
				return state("active", "", time.Second)
			}
			return completed("{}")
		})
		e, stop := engine(t, upstream, &fakeSink{}, func(c *Config) { c.MaxPolls = 1 })
		for i := range 3 * maxLanes {
			r := request(fmt.Sprint("req-", i), &fakeLease{})
			r.Submitter = fmt.Sprint(i)
			again := r // one more submission, of the same row
			again.Lease = &fakeLease{}
			e.Add([]Request{r, again})
		}
		pass(time.Hour)
		require.Zero(t, e.Held())
		require.Empty(t, e.due.all)
		require.Empty(t, e.due.named)
		for i := range 10 { // what a drain hands back, due and waiting
			r := request(fmt.Sprint("more-", i), &fakeLease{})
			r.Submitter = fmt.Sprint(i % 5)
			e.Add([]Request{r})
		}
		stop()
		require.Empty(t, e.due.all)
	})
}

func TestAQueueKeepsItsOrderAndNoRoomThatItDoesNotNeed(t *testing.T) {
	var q fifo[int]
	next, want := 0, 0
	for range 10_000 {
		for range 3 {
			q.push(next)
			next++
		}
		for range 3 {
			require.Equal(t, want, q.first())
			require.Equal(t, want, q.pop())
			want++
		}
		if next%100 == 0 {
			q.push(next)
			next++
		}
	}
	require.Equal(t, next-want, q.length())
	require.Less(t, cap(q.items), 4*q.length()+16)
}

// When a limit binds, whichever it is, one submitter with very many requests does not starve another with few.
func TestASubmitterWithManyRequestsDoesNotStarveOneWithFew(t *testing.T) {
	for name, limit := range map[string]func(*Config){
		"polls in flight":  func(c *Config) { c.MaxPolls = 10 },
		"polls per second": func(c *Config) { c.PollsPerSecond = 100 },
		"result memory":    func(c *Config) { c.ResultMemory = 1000 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				upstream := retrieverFunc(func(context.Context, api.Query) api.Outcome {
					time.Sleep(100 * ms)
					return completed(string(make([]byte, 100)))
				})
				sink := &fakeSink{finish: func(context.Context, *Request, Result) error {
					time.Sleep(10 * ms) // its result is in memory meanwhile
					return nil
				}}
				e, stop := engine(t, upstream, sink, limit)
				add := func(submitter string, n int) {
					batch := make([]Request, n)
					for i := range batch {
						batch[i] = request(fmt.Sprint(submitter, "-", i), &fakeLease{})
						batch[i].Submitter = submitter
					}
					e.Add(batch)
				}
				add("many", 50_000)
				pass(10 * time.Second)
				add("few", 10)
				pass(2 * time.Second)
				for i := range 10 {
					sink.mu.Lock()
					results := sink.results[fmt.Sprint("few-", i)]
					sink.mu.Unlock()
					require.Len(t, results, 1, "few-%d", i)
				}
				require.Greater(t, e.Held(), 30_000, "and many still waits")
				stop()
			})
		})
	}
}

func TestWhereALimitBindsNobodyWaitsTwiceAsLongAsTheOthers(t *testing.T) {
	for _, submitters := range []int{1, 7, 1000, 5000} {
		t.Run(fmt.Sprint(submitters, " submitters"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// 5,000 requests that want a poll each 2 s, and 100 polls a second.
				last, waits := map[string]time.Time{}, map[string]time.Duration{}
				u := &limited{rate: 1e6, start: time.Now()}
				u.answer = func(q api.Query, _ time.Duration) api.Outcome {
					now := time.Now()
					if before, ok := last[q.RequestID]; ok {
						waits[q.RequestID] = max(waits[q.RequestID], now.Sub(before))
					}
					last[q.RequestID] = now
					return state("paused_capacity", "", 2*time.Second)
				}
				e, stop := engine(t, u, &fakeSink{}, func(c *Config) { c.PollsPerSecond = 100 })
				for i := range 5000 {
					r := request(fmt.Sprint("req-", i), &fakeLease{})
					r.Submitter = fmt.Sprint(i % submitters)
					e.Add([]Request{r})
				}
				pass(10 * time.Minute)
				require.Equal(t, 5000, len(waits))
				most := 100 * time.Second // they wait for 50 s each
				if submitters > maxLanes {
					most = 300 * time.Second // those that share a lane have fewer turns
				}
				for id, wait := range waits {
					require.Less(t, wait, most, id)
				}
				stop()
			})
		})
	}
}
