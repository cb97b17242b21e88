package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/procfs"
	"github.com/stretchr/testify/require"

	"futurebridge/client"
	"futurebridge/internal/history"
)

// TestAProcessStaysWithinItsMemory lets a thousand polls get their answers at the same moment: every fault of the table,
// and many bodies that are large. The resident memory of the bridge, as it is shipped, stays within what its settings say.
func TestAProcessStaysWithinItsMemory(t *testing.T) {
	t.Parallel() // it mostly waits
	program := filepath.Join(t.TempDir(), "bridge")
	out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	for protocol, faults := range map[string][]upstreamFault{"http/1.1": concurrent(), "h2": overHTTP2()} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			answeredTogether(t, program, protocol, faults)
		})
	}
}

func answeredTogether(t *testing.T, program, protocol string, faults []upstreamFault) {
	const (
		polls   = 1000
		most    = 1100 // may be in flight: over HTTP/2 a few may have to wait for a stream
		memory  = 16 << 20
		timeout = 30 * time.Second
	)
	for range len(faults) {
		faults = append(faults, aLargeBodyThatStalls)
	}
	s := newSite(t, quickJobs())
	cert, key := certify(t, "upstream")
	pair, err := tls.X509KeyPair(cert, key)
	require.NoError(t, err)
	var came atomic.Int32
	all := make(chan struct{})
	f := &faulty{
		sim: s.upstream, polls: map[string]int{},
		tls: func() *tls.Config {
			return &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{protocol}}
		},
		wait: func(_ string, n int) {
			if n == 0 {
				came.Add(1)
			}
			<-all
		},
		fault: func(id string, _ int) *upstreamFault {
			if who, i := about(id); who == "ever" {
				return &faults[i%len(faults)]
			}
			return nil
		},
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	go f.serve(listener)

	p := &process{t: t, cmd: exec.Command(program, "serve", "--nats", s.nats.ClientURL(), "--http", "127.0.0.1:0",
		"--upstream", "https://"+listener.Addr().String(), "--upstream-ca", write(t, "ca.pem", string(cert)),
		"--max-result=1MiB", fmt.Sprint("--result-memory=", memory), fmt.Sprint("--max-polls=", most))}
	p.cmd.Stderr = &p.stderr
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { _ = p.end(syscall.SIGKILL) })
	p.value("submit_to")
	peak := func() uint64 { // of resident memory
		proc, err := procfs.NewProc(p.cmd.Process.Pid)
		require.NoError(t, err)
		status, err := proc.NewStatus()
		require.NoError(t, err)
		return status.VmHWM
	}
	before := peak()
	run := history.Run{Upstream: expecting{simUpstream{s.upstream}, faults}, WantFaults: true, Faults: len(faults)}
	requests := func(yield func(client.Request) bool) {
		for i := range most {
			id, within := fmt.Sprint("ever-", i), timeout
			if i%20 == 0 {
				id, within = fmt.Sprint("sound-", i), 10*time.Minute
			}
			run.Accepted = append(run.Accepted, history.Submission{ID: id, Timeout: within, Sent: time.Now()})
			if !yield(client.Request{ID: id, Timeout: within}) {
				return
			}
		}
	}
	for _, err := range s.client.SubmitAll(t.Context(), requests) {
		require.NoError(t, err)
	}
	for i := range run.Accepted {
		run.Accepted[i].Acked = time.Now()
	}
	s.await("a thousand wait for their answer", func() bool { return came.Load() >= polls })
	_, metrics := get(t, p.value("url")+"/metrics")
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "bridge_polls_total{") {
			require.Contains(t, line, "} 0", "all of them are in flight")
		}
	}
	close(all)
	// Longer than usual: after so many faults at once the bridge polls slowly for a while.
	require.Eventually(t, func() bool { return s.stored(s.names.WorkStream()) == 0 }, 5*time.Minute, 20*time.Millisecond, "all have ended")
	after := peak()
	require.NoError(t, p.end(syscall.SIGTERM))
	report, err := run.Judge(t.Context(), s.js, s.names)
	require.NoError(t, err)
	require.Empty(t, report.Violations)
	require.Equal(t, most, report.Terminal)
	s.await("no connection is left", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.open == 0
	})
	bound := uint64(memory + most*perPoll + garbageLeast)
	t.Logf("%d MiB before, %d MiB at most: %d MiB more, with a bound of %d MiB", before>>20, after>>20, (after-before)>>20, bound>>20)
	require.LessOrEqual(t, after-before, bound+bound/5)
}
