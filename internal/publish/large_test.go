package publish

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/poll"
)

// objects are the bodies in the bucket by name; a deleted one is not among them.
func (g *rig) objects() map[string][]byte {
	g.t.Helper()
	bucket, err := g.js.ObjectStore(g.ctx, "TINKER_LARGE")
	require.NoError(g.t, err)
	out := map[string][]byte{}
	list, err := bucket.List(g.ctx)
	if err != nil {
		require.ErrorIs(g.t, err, jetstream.ErrNoObjectsFound)
	}
	for _, info := range list {
		out[info.Name], err = bucket.GetBytes(g.ctx, info.Name)
		require.NoError(g.t, err)
	}
	return out
}

// storedLarge asserts that a request ended with this body, in the object store.
func (g *rig) storedLarge(id string, body []byte) ClosingBody {
	g.t.Helper()
	result, closing := g.ended(id)
	require.NotNil(g.t, result.Large)
	require.Empty(g.t, result.Data)
	sum := sha256.Sum256(body)
	require.Equal(g.t, int64(len(body)), result.Large.Bytes)
	require.Equal(g.t, "SHA-256="+base64.URLEncoding.EncodeToString(sum[:]), result.Large.Digest)
	require.Equal(g.t, result.Large.Object, closing.Result.Object)
	require.True(g.t, strings.HasPrefix(result.Large.Object, Token(id)+"."), result.Large.Object)
	require.True(g.t, bytes.Equal(body, g.objects()[result.Large.Object]))
	bucket, err := g.js.ObjectStore(g.ctx, "TINKER_LARGE")
	require.NoError(g.t, err)
	info, err := bucket.GetInfo(g.ctx, result.Large.Object)
	require.NoError(g.t, err)
	require.Equal(g.t, uint64(len(body)), info.Size)
	require.Equal(g.t, (uint32(len(body))+info.Opts.ChunkSize-1)/info.Opts.ChunkSize, info.Chunks)
	return closing
}

func TestAResultLiesWhereItFits(t *testing.T) {
	small := server.Options{MaxPayload: 64 << 10, MaxPending: 1 << 20}
	for _, c := range []struct {
		name  string
		o     setup
		size  int
		large bool
	}{
		{"empty", setup{}, 0, false},
		{"as large as the flag allows", setup{maxInline: 1000}, 1000, false},
		{"one byte more", setup{maxInline: 1000}, 1001, true},
		{"several chunks", setup{}, 1<<20 + 1, true},
		{"the flag allows more than the connection carries, and it fits", setup{maxInline: 1 << 30, server: small}, 48 << 10, false},
		{"the flag allows more than the connection carries, and it does not fit", setup{maxInline: 1 << 30, server: small}, 48<<10 + 1, true},
		{"chunks larger than the connection carries", setup{server: small}, 300 << 10, true},
		{"a connection that hardly carries anything", setup{server: server.Options{MaxPayload: 4 << 10, MaxPending: 1 << 20}}, 10 << 10, true},
		{"the stream takes less", setup{streams: func(c *jetstream.StreamConfig) {
			if c.Name == "TINKER_RESULTS" {
				c.MaxMsgSize = 2000
			}
		}}, 3000, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, c.o, func(t *testing.T, g *rig) {
				result := sized(c.size)
				r := request("a.b")
				require.NoError(t, g.Finish(g.ctx, r, result))
				if c.large {
					g.storedLarge("a.b", result.Body)
				} else {
					event, closing := g.ended("a.b")
					require.True(t, bytes.Equal(result.Body, event.Data))
					require.Nil(t, event.Large)
					require.Empty(t, closing.Result.Object)
					require.Empty(t, g.objects())
				}
				require.Equal(t, 1.0, g.counts()["event result"])
				require.Equal(t, 1.0, g.counts()["event closing"])
				require.Empty(t, g.Trouble())
			})
		})
	}
}

func TestALargeFailureIsInTheObjectStoreAndInTheClosingRecord(t *testing.T) {
	bubble(t, setup{maxInline: 10}, func(t *testing.T, g *rig) {
		result := failing()
		require.NoError(t, g.Finish(g.ctx, request("a"), result))
		closing := g.storedLarge("a", resultBody(result))
		require.Equal(t, string(resultBody(result)), string(closing.Error))
	})
}

func TestTheLoserOfARaceDeletesItsOwnObject(t *testing.T) {
	bubble(t, setup{maxInline: 10}, func(t *testing.T, g *rig) {
		bodies := map[string]bool{}
		_, _ = g.race(6, func(i int, g *rig, r *poll.Request) error {
			result := completed(fmt.Sprint("a large result ", i))
			result.Polls = i
			return g.Finish(g.ctx, r, result)
		})
		for _, body := range g.objects() {
			bodies[string(body)] = true
		}
		require.Len(t, bodies, 1, "what lost is gone")
		for body := range bodies {
			g.storedLarge("contested", []byte(body))
		}
		require.NoError(t, g.Finish(g.ctx, request("contested"), completed("a large result that comes late")))
		require.Len(t, g.objects(), 1)
	})
}

func TestALargeResultThatLosesToAnInlineOneLeavesNothing(t *testing.T) {
	bubble(t, setup{maxInline: 10}, func(t *testing.T, g *rig) {
		require.NoError(t, g.Finish(g.ctx, request("a"), completed("1")))
		require.NoError(t, g.Finish(g.ctx, request("a"), completed("a large result")))
		event, closing := g.ended("a")
		require.Equal(t, "1", string(event.Data))
		require.Empty(t, closing.Result.Object)
		require.Empty(t, g.objects())
	})
}

func TestALargeResultThatSomebodyElseStoredIsNamedByTheClosingRecord(t *testing.T) {
	bubble(t, setup{maxInline: 10}, func(t *testing.T, g *rig) {
		theirs := completed("a large result")
		_, err := g.storeResult(g.ctx, request("a"), theirs)
		require.NoError(t, err)
		ended, err := g.Lookup(g.ctx, []*poll.Request{request("a")})
		require.NoError(t, err)
		require.Equal(t, []bool{true}, ended)
		g.storedLarge("a", theirs.Body)
	})
}

func TestALargeResultWhoseAckWasLostKeepsItsObject(t *testing.T) {
	for name, text := range map[string]string{
		"of the first chunk":  `"stream":"OBJ_TINKER_LARGE","seq":1`,
		"of the second chunk": `"stream":"OBJ_TINKER_LARGE","seq":2`,
		"of the object":       `"stream":"OBJ_TINKER_LARGE","seq":3`,
		"of the result":       `"stream":"TINKER_RESULTS"`,
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{}, func(t *testing.T, g *rig) {
				cut := g.cut(text)
				other := g.another()
				result := sized(maxChunk + 100)
				require.NoError(t, other.Finish(g.ctx, request("a"), result))
				require.Equal(t, 1, cut.cuts)
				g.storedLarge("a", result.Body)
				require.Len(t, g.objects(), 1)
				require.Equal(t, 1.0, other.counts()["event result"])
			})
		})
	}
}

func TestALargeResultWaitsForItsBucket(t *testing.T) {
	for name, breaks := range map[string]func(g *rig) (mend func()){
		"deleted": func(g *rig) func() {
			require.NoError(g.t, g.js.DeleteObjectStore(g.ctx, "TINKER_LARGE"))
			return func() {
				_, err := Ensure(g.ctx, g.js, tinker, Options{})
				require.NoError(g.t, err)
			}
		},
		"full": func(g *rig) func() {
			g.update("OBJ_TINKER_LARGE", func(c *jetstream.StreamConfig) { c.MaxBytes = 100 << 10 })
			return func() { g.update("OBJ_TINKER_LARGE", func(c *jetstream.StreamConfig) { c.MaxBytes = -1 }) }
		},
		"server down": func(g *rig) func() {
			g.Stop()
			return g.Start
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, setup{}, func(t *testing.T, g *rig) {
				mend := breaks(g)
				result, done := sized(1<<20), make(chan error, 1)
				go func() { done <- g.Finish(g.ctx, request("a"), result) }()
				in(2 * time.Minute)
				require.Empty(t, done)
				require.Contains(t, g.Trouble(), "$O.TINKER_LARGE.C cannot be stored")
				mend()
				require.NoError(t, <-done)
				g.storedLarge("a", result.Body)
				require.Empty(t, g.Trouble())
				bucket, err := g.js.Stream(g.ctx, "OBJ_TINKER_LARGE")
				require.NoError(t, err)
				info, err := bucket.Info(g.ctx, jetstream.WithSubjectFilter("$O.TINKER_LARGE.C.>"))
				require.NoError(t, err)
				require.Len(t, info.State.Subjects, 1)
				require.Len(t, g.objects(), 1, "failed attempts leave nothing behind")
			})
		})
	}
}

func TestAnObjectThatCannotBeDeletedIsLeftToItsAge(t *testing.T) {
	bubble(t, setup{maxInline: 10}, func(t *testing.T, g *rig) {
		require.NoError(t, g.Finish(g.ctx, request("a"), completed("1")))
		large, err := g.upload(g.ctx, "a", []byte("lost the race"))
		require.NoError(t, err)
		require.NoError(t, g.js.DeleteObjectStore(g.ctx, "TINKER_LARGE"))
		g.discard(g.ctx, large)
		require.Contains(t, g.log.String(), large.Object)
		require.Empty(t, g.Trouble())
	})
}

func TestChunksThatNobodyTookAtFirstAreStoredAsTheyAre(t *testing.T) {
	bubble(t, setup{}, func(t *testing.T, g *rig) {
		g.update("OBJ_TINKER_LARGE", func(c *jetstream.StreamConfig) { c.Subjects = []string{"$O.TINKER_LARGE.M.>"} })
		var body []byte
		for i := range 100_000 {
			body = fmt.Appendf(body, "%d,", i)
		}
		result, done := completed(string(body)), make(chan error, 1)
		go func() { done <- g.Finish(g.ctx, request("a"), result) }()
		in(100 * time.Millisecond)
		g.update("OBJ_TINKER_LARGE", func(c *jetstream.StreamConfig) {
			c.Subjects = []string{"$O.TINKER_LARGE.M.>", "$O.TINKER_LARGE.C.>"}
		})
		require.NoError(t, <-done)
		g.storedLarge("a", body)
	})
}
