//go:build unix

package chaos

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/api/sim"
)

// configured runs a server with a configuration of its own, which may change before it starts again.
func configured(t *testing.T, config string) *node {
	t.Helper()
	port := fmt.Sprint(freePorts(t, 1)[0])
	n := &node{t: t, name: "alone", url: "nats://127.0.0.1:" + port, args: []string{
		"--addr", "127.0.0.1", "--port", port, "--config", filepath.Join(t.TempDir(), "nats.conf"),
	}}
	n.configure(config)
	n.start()
	n.said("Server is ready")
	return n
}

func (n *node) configure(config string) {
	n.t.Helper()
	require.NoError(n.t, os.WriteFile(n.args[len(n.args)-1], []byte(config), 0o600))
}

// smallDisk is a directory on a file system of its own, and what gives it more room; an error where none may be mounted.
func smallDisk(t *testing.T, mib int) (dir string, grow func(mib int), err error) {
	t.Helper()
	dir = t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", mib), "tmpfs", dir).CombinedOutput(); err != nil {
		return "", nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	t.Cleanup(func() { require.NoError(t, exec.Command("umount", dir).Run()) })
	return dir, func(mib int) {
		t.Helper()
		require.NoError(t, exec.Command("mount", "-o", fmt.Sprintf("remount,size=%dm", mib), dir).Run())
	}, nil
}

// noSpace lets a server run out of room under two bridges at work: of its own limit, and of its disk. Then there is more.
func noSpace(t *testing.T, row *Row) {
	config := func(dir string, mib int) string {
		return fmt.Sprintf("jetstream { store_dir: %q, max_file_store: %dM }", dir, mib)
	}
	t.Run("limit", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		server := configured(t, config(dir, 68)) // rejected submissions are promised 64 MiB of it, so something else has to fill it
		js, err := jetstream.New(connect(t, server.url))
		require.NoError(t, err)
		_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "BALLAST", Subjects: []string{"ballast"}})
		require.NoError(t, err)
		for range 63 {
			_, err := js.Publish(t.Context(), "ballast", make([]byte, 1_000_000))
			require.NoError(t, err)
		}
		runOut(t, row, server, func() {
			server.configure(config(dir, 500))
			server.restart()
		})
	})
	t.Run("disk", func(t *testing.T) {
		t.Parallel()
		dir, grow, err := smallDisk(t, 4)
		if err != nil { // not root, or not on Linux
			fmt.Printf("chaos: no small disk can be mounted (%v): only a server's own limit shows what happens without space\n", err)
			return
		}
		server := configured(t, config(dir, 500))
		runOut(t, row, server, func() {
			grow(100)
			server.restart()
		})
	})
}

// runOut has bridges poll results until the server has no room for more, and then lets relieve give it some. The upstream
// hands each result out once.
func runOut(t *testing.T, row *Row, server *node, relieve func()) {
	const requests, held, polls, budget, resultBytes = 500, 60, 10, 10, 20_000
	s := newSite(t, connect(t, server.url), server.url, "tinker", sim.Script{
		Style: sim.Style{Retention: "once"},
		Profiles: []sim.Profile{{Name: "job", Steps: []sim.Step{
			{State: "active", For: time.Second, Spread: time.Second}, {Answer: "completed", ResultBytes: resultBytes},
		}}},
	}, 10*time.Second, 1) // a tenth of it is how late a poll may arrive that begins when trust ends
	s.submit(requests)
	for _, name := range []string{"1", "2"} {
		s.bridge(name, server.url, "--http", "127.0.0.1:0", "--max-requests", fmt.Sprint(held), "--max-polls", fmt.Sprint(polls),
			"--result-memory", fmt.Sprint(budget*resultBytes), "--max-result", fmt.Sprint(budget*resultBytes), "--max-inline-result", fmt.Sprint(budget*resultBytes))
	}
	for _, p := range s.bridges {
		p.notReady("cannot be stored")
	}
	var jobs int
	var since time.Time
	await(t, "no work is taken", time.Minute, func() bool {
		if n := s.upstream.Stats().Jobs; n != jobs {
			jobs, since = n, time.Now()
		}
		return time.Since(since) > 3*time.Second
	})
	require.Less(t, jobs, requests)
	inHand := s.upstream.Stats().Deliveries - s.stored(s.names.ResultsStream())
	require.Positive(t, inHand)
	require.LessOrEqual(t, inHand, 2*(budget+polls), "more than the budget, and what was under way when it was full")
	relieve()
	s.settle(time.Minute)
	require.Equal(t, map[string]int{"completed": requests}, s.judge(row, 1).Endings)
}

// restart stops a server in its own way and starts it again.
func (n *node) restart() {
	n.t.Helper()
	n.stop()
	n.start()
	n.said("Server is ready")
}

// notReady waits until /readyz gives this reason.
func (p *process) notReady(why string) {
	p.t.Helper()
	url := p.said(`msg="metrics and readiness" url=`) + "/readyz"
	await(p.t, p.name+" is not ready: "+why, time.Minute, func() bool {
		request, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, url, nil)
		require.NoError(p.t, err)
		request.Close = true
		response, err := http.DefaultClient.Do(request)
		require.NoError(p.t, err)
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		require.NoError(p.t, err)
		return response.StatusCode == http.StatusServiceUnavailable && strings.Contains(string(text), why)
	})
}
