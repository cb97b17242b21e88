package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
	"futurebridge/internal/api/sim"
	"futurebridge/internal/history"
	"futurebridge/internal/poll"
	"futurebridge/internal/testbed"
)

// TestEachFaultOfTheUpstreamIsOutlived plays every row of the table: to a request that never gets anything else, to one
// that gets it once, and beside requests that have an upstream without faults.
func TestEachFaultOfTheUpstreamIsOutlived(t *testing.T) {
	t.Run("all at once", func(t *testing.T) { strike(t, "http/1.1", concurrent()) })
	t.Run("all at once over HTTP/2", func(t *testing.T) { strike(t, "h2", overHTTP2()) })
	for _, fault := range http2Faults() {
		t.Run(fault.name, func(t *testing.T) { strike(t, "h2", []upstreamFault{fault}) })
	}
	for _, fault := range outages() {
		t.Run(fault.name, func(t *testing.T) { strike(t, "http/1.1", []upstreamFault{fault}) })
	}
}

// concurrent are the faults that strike one poll and leave the others alone.
func concurrent() []upstreamFault {
	var all []upstreamFault
	for _, some := range [][]upstreamFault{connections(), bodies(), statuses(), waits()} {
		all = append(all, some...)
	}
	return all
}

// overHTTP2 are those of them that are no matter of the protocol below.
func overHTTP2() []upstreamFault {
	return slices.DeleteFunc(concurrent(), func(f upstreamFault) bool { return f.says == nil })
}

const (
	outage   = 3 * time.Minute        // how long a fault that strikes everybody lasts: longer than ten bad answers take
	patience = outage - 5*time.Second // how long a request waits that gets nothing else
)

func strike(t *testing.T, protocol string, faults []upstreamFault) {
	var seen evidence
	ends := map[string]history.Record{}
	testbed.Bubble(t, func(t *testing.T) {
		w := newWorld(t, sim.Script{Profiles: []sim.Profile{{Name: "job", Steps: []sim.Step{
			{State: "active", For: 10 * time.Second, Spread: 20 * time.Second}, {Answer: "completed", ResultBytes: 40_000},
		}}}})
		first := faults[0]
		begin := time.Now()
		f := &faulty{sim: w.sim, polls: map[string]int{}}
		f.fault = func(id string, n int) *upstreamFault {
			if first.everybody {
				if (first.says != nil || first.http1 != nil) && time.Since(begin) < outage {
					return &first
				}
				return nil
			}
			who, i := about(id)
			if who == "ever" || who == "once" && n == 0 {
				return &faults[i]
			}
			return nil
		}
		secure := first.tls != nil || protocol == "h2" || strings.Contains(first.name, "TLS")
		if secure {
			f.tls = func() *tls.Config {
				if first.tls != nil && time.Since(begin) < outage {
					return first.tls()
				}
				config := certified(upstreamHost, time.Hour)
				config.NextProtos = []string{protocol}
				return config
			}
		}
		if first.dial != nil {
			f.dial = func(ctx context.Context, f *faulty) (net.Conn, error) {
				if time.Since(begin) < outage {
					return first.dial(ctx, f)
				}
				return f.connect(), nil
			}
		}
		var log testbed.Log
		b := w.odd("bridge-1", seams{
			log: slog.New(slog.NewJSONHandler(&log, nil)), retriever: seen.of,
			upstream: func(c *api.Config) {
				transport := api.NewTransport(api.TransportConfig{TLS: &tls.Config{RootCAs: authorities()}})
				transport.DialContext = f.DialContext
				c.Key, c.Transport = faultsKey, transport
				if c.BaseURL = "http://" + upstreamHost; secure {
					c.BaseURL = "https://" + upstreamHost
				}
			},
		}, "--max-result=1MiB", "--result-memory=4MiB")
		for i, fault := range faults {
			w.submitFor(fmt.Sprintf("once-%d", i), 0)
			wait := patience
			if fault.wait > 0 {
				wait = 3 * api.MaxHint
			}
			w.submitFor(fmt.Sprintf("ever-%d", i), wait)
		}
		time.Sleep(time.Second) // while the key is refused there are fewer probes than requests: these first
		w.submit(ids("sound", 10)...)
		w.settled(time.Hour)
		b.stop()
		time.Sleep(2 * time.Minute) // connections that were given up are closed when they have been idle for a while
		synctest.Wait()

		require.Zero(t, f.open, "no connection is left")
		require.Empty(t, f.strange, "nothing goes where it should not")
		states, results := w.history()
		for _, r := range append(states, results...) {
			require.NotContains(t, fmt.Sprintf("%s %+v", r.Data, r.Event), faultsKey)
			ends[r.RequestID] = r
		}
		run := w.run
		run.Upstream = expecting{simUpstream{w.sim}, faults}
		run.Live, run.WantFaults, run.Faults = w.listener.Sightings(), true, len(faults)
		report, err := run.Judge(t.Context(), w.js, w.names)
		require.NoError(t, err)
		require.Empty(t, report.Violations)
		require.Equal(t, report.Accepted, report.Terminal)
		checkLog(t, jsonLines(t, &log), &seen)
		w.close()
	})
	for i, fault := range faults {
		t.Run(fault.name, func(t *testing.T) {
			id := fmt.Sprintf("ever-%d", i)
			fault.check(t, seen.polls[id], ends[id])
		})
	}
}

// about takes an id of a request apart.
func about(id string) (who string, fault int) {
	who, number, _ := strings.Cut(id, "-")
	_, _ = fmt.Sscan(number, &fault)
	return who, fault
}

// check holds what was seen of a request that got nothing but this fault to what the row says.
func (f *upstreamFault) check(t *testing.T, polls []seenPoll, end history.Record) {
	require.NotEmpty(t, polls)
	for i, p := range polls {
		o := p.outcome
		cut := o.Kind == api.NoAnswer || strings.Contains(causeOf(o), context.DeadlineExceeded.Error())
		if last := i == len(polls)-1; last && cut { // by its deadline
			continue
		}
		require.Contains(t, append(f.also, f.kind), o.Kind, "%+v", o.Failure)
		require.Equal(t, f.lost, o.BrokeOff, "%+v", o.Failure)
		require.Contains(t, causeOf(o), f.cause)
		require.Contains(t, o.Mend(), f.hint)
		require.Equal(t, f.odd, o.OddHint != "")
	}
	require.Equal(t, f.ends, end.Status)
	if last := polls[len(polls)-1].outcome; f.ends != "completed" && strings.Contains(causeOf(last), f.cause) { // else its deadline cut it
		var told api.Failure
		require.NoError(t, json.Unmarshal(end.Data, &told))
		require.Contains(t, told.Message, f.cause, "the event says what happened")
	}
	if f.polls > 0 {
		require.Len(t, polls, f.polls)
	}
	if f.wait > 0 {
		waited := polls[1].start.Sub(polls[0].end)
		require.GreaterOrEqual(t, waited, f.wait)
		require.LessOrEqual(t, waited, f.wait+f.wait/10+10*time.Second, "with so many faults at once the bridge polls slowly")
	}
}

// checkLog wants of each kind of fault one line, with a request, the cause and what mends it, and then one a minute at most.
func checkLog(t *testing.T, lines []map[string]any, seen *evidence) {
	told := map[string][]time.Time{}
	for _, line := range lines {
		if line["msg"] != "a fault of the upstream" {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, line["time"].(string))
		require.NoError(t, err)
		require.NotEmpty(t, line["request"])
		require.NotEmpty(t, line["cause"])
		require.NotEmpty(t, line["hint"])
		kind := line["outcome"].(string)
		if kind != "odd_hint" {
			kind += " " + tag(line["cause"].(string))
		}
		if before := told[kind]; before != nil {
			require.GreaterOrEqual(t, at.Sub(before[len(before)-1]), faultEvery, kind)
		}
		told[kind] = append(told[kind], at)
	}
	for _, polls := range seen.polls {
		for _, p := range polls {
			if mend := p.outcome.Mend(); mend != "" && p.outcome.Kind != api.Unauthorized {
				require.Contains(t, told, p.outcome.Kind.String()+" "+tag(causeOf(p.outcome)))
			}
		}
	}
}

func causeOf(o api.Outcome) string {
	if o.Failure == nil {
		return "no answer within the time for one poll"
	}
	return o.Failure.Message
}

// evidence is what polls of each request came to.
type evidence struct {
	poll.Retriever
	mu    sync.Mutex
	polls map[string][]seenPoll
}

type seenPoll struct {
	start, end time.Time
	outcome    api.Outcome
}

func (e *evidence) of(r poll.Retriever) poll.Retriever {
	e.Retriever, e.polls = r, map[string][]seenPoll{}
	return e
}

func (e *evidence) Retrieve(ctx context.Context, q api.Query) api.Outcome {
	p := seenPoll{start: time.Now()}
	p.outcome = e.Retriever.Retrieve(ctx, q)
	p.end = time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.polls[q.RequestID] = append(e.polls[q.RequestID], p)
	return p.outcome
}

// expecting is the simulator, but for the requests to which something is done.
type expecting struct {
	simUpstream
	faults []upstreamFault
}

func (e expecting) Expected(id string) (status string, body []byte) {
	who, i := about(id)
	if fault := &e.faults[i%len(e.faults)]; !fault.everybody && (who == "ever" || who == "once" && fault.polls == 1) {
		return fault.ends, []byte(fault.body)
	}
	return e.simUpstream.Expected(id)
}

func (e expecting) States(id string) [][2]string {
	if who, _ := about(id); who == "ever" {
		return [][2]string{{"active", ""}}
	}
	return e.simUpstream.States(id)
}

// signer signs certificates.
type signer struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

var (
	trustedCA = sync.OnceValue(newSigner)
	foreignCA = sync.OnceValue(newSigner)
)

func newSigner() signer {
	a := signer{}
	a.key, a.cert = issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "tests"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(100, 0, 0), // for bubbles at other times too
	}, nil)
	return a
}

func issue(template *x509.Certificate, by *signer) (*ecdsa.PrivateKey, *x509.Certificate) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template.SerialNumber = big.NewInt(1)
	if by == nil {
		by = &signer{key, template}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, &key.PublicKey, by.key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return key, cert
}

// serves is a server's configuration with a certificate for a host that is valid since an hour ago.
func (a signer) serves(host string, validFor time.Duration) *tls.Config {
	key, cert := issue(&x509.Certificate{
		DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(validFor),
	}, &a)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}
}

func certified(host string, validFor time.Duration) *tls.Config {
	return trustedCA().serves(host, validFor)
}

func foreign(host string) *tls.Config { return foreignCA().serves(host, time.Hour) }

func authorities() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(trustedCA().cert)
	return pool
}
