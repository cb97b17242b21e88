package api

import (
	"bytes"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

var sink Outcome

// completed is an answer of about 20 KB, as sampling makes them.
func completed() []byte {
	b := []byte(`{"status":"completed","result":{"sequences":[{"stop_reason":"length","tokens":[`)
	for i := 0; len(b) < 8<<10; i++ {
		b = append(strconv.AppendInt(b, int64(i*7919%151_936), 10), ',')
	}
	b = append(b, `0],"logprobs":[`...)
	for i := 0; len(b) < 20<<10; i++ {
		b = append(strconv.AppendFloat(b, -float64(i%977)/331, 'g', -1, 64), ',')
	}
	return append(b, `0]}]}}`...)
}

func BenchmarkClassify(b *testing.B) {
	for _, c := range []struct {
		name   string
		status int
		body   []byte
	}{
		{"completed_20KB", 200, completed()},
		{"bare_20KB", 200, bytes.Replace(completed(), []byte(`"status"`), []byte(`"kind"`), 1)},
		{"try_again", 200, []byte(`{"type":"try_again","request_id":"f629aa6f-d12e-5ebc-b4e9-633b4ce5bc19:sample:0:0","queue_state":"active"}`)},
		{"408", 408, nil},
	} {
		b.Run(c.name, func(b *testing.B) {
			a := said(c.status, string(c.body), "Content-Type", "application/json")
			b.SetBytes(int64(len(c.body)))
			b.ReportAllocs()
			for b.Loop() {
				sink = classify(a)
			}
		})
	}
}

// BenchmarkRetrieve is one poll over loopback; the server's part is in it. Polls by net/http are beside it.
func BenchmarkRetrieve(b *testing.B) {
	for _, c := range []struct {
		name string
		body []byte
	}{
		{"completed_200B", []byte(`{"status":"completed","result":"` + strings.Repeat("x", 200) + `"}`)},
		{"completed_20KB", completed()},
		{"try_again", []byte(`{"type":"try_again","queue_state":"active"}`)},
	} {
		answer := func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(c.body)
		}
		b.Run(c.name, func(b *testing.B) { benchmarkRetrieve(b, Config{}, answer) })
		b.Run(c.name+"_by_net_http", func(b *testing.B) {
			transport := NewTransport(TransportConfig{})
			defer transport.CloseIdleConnections()
			benchmarkRetrieve(b, Config{Transport: roundTripper(transport.RoundTrip)}, answer)
		})
	}
}

func benchmarkRetrieve(b *testing.B, cfg Config, answer http.HandlerFunc) {
	cfg.Key = "k-12345678"
	c := upstream(b, cfg, answer)
	b.SetParallelism(64 / runtime.GOMAXPROCS(0)) // as many as BenchmarkFinish has under way, or a few less
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			o := c.Retrieve(b.Context(), Query{RequestID: "id"})
			if o.HTTPStatus != 200 {
				b.Error(o.Failure.Message)
			}
			o.Release()
		}
	})
}
