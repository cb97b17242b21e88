//go:build unix

package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/testbed"
)

// Every secret has the word canary in it, so that a part of one is found too.
const (
	firstKey    = `sk-canary/1&"first"`
	secondKey   = `sk-canary/2&"second"`
	teamToken   = "team-canary-token"
	proxySecret = "pw-canary-proxy"
	natsSecret  = "pw-canary-nats"
	natsToken   = "token-canary-nats"
)

// tattler is an upstream, and an HTTP proxy to itself, that tells everybody what it was sent.
type tattler struct {
	key     atomic.Pointer[string] // another one is refused
	refusal atomic.Int32           // refusals by the proxy
}

func (a *tattler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if proxied := r.Header.Get("Proxy-Authorization"); proxied != "" && a.refusal.Add(1) <= 2 {
		w.WriteHeader(http.StatusProxyAuthRequired)
		fmt.Fprintln(w, "refused:", proxied, proxySecret)
		return
	}
	var query struct {
		ID string `json:"request_id"`
	}
	_ = json.NewDecoder(r.Body).Decode(&query)
	key := r.Header.Get("Authorization")
	told, _ := json.Marshal(key + " " + r.Header.Get("X-Team") + " " + r.Header.Get("Proxy-Authorization"))
	say := func(status int, format string, args ...any) {
		w.WriteHeader(status)
		fmt.Fprintf(w, format, args...)
	}
	if key != "Bearer "+*a.key.Load() {
		say(401, `{"detail":%s}`, told)
		return
	}
	first := r.Header.Get("X-Tinker-Request-Iteration") == "0"
	kind, _, _ := strings.Cut(query.ID, "-")
	switch {
	case kind == "plain":
		w.Header().Set("Retry-After", key)
		say(403, `plainly %s`, key+r.Header.Get("X-Team"))
	case kind == "json":
		say(422, `{"detail":%s,"category":%s}`, told, told)
	case kind == "escaped":
		var all strings.Builder
		for _, c := range key {
			fmt.Fprintf(&all, `\u%04x`, c)
		}
		say(400, `{"detail":"%s"}`, all.String())
	case kind == "encoded":
		say(403, `{"detail":"%s %x"}`, base64.StdEncoding.EncodeToString([]byte("told: "+key)), key)
	case kind == "typed":
		w.Header().Set("Content-Type", "application/json; key="+key)
		say(200, `{"a":1}`)
	case kind == "broken":
		say(200, `{"result": %s`, key)
	case kind == "moved":
		w.Header().Set("Location", "http://127.0.0.1:1/?key="+url.QueryEscape(key))
		say(307, `<a href=%q>`, url.QueryEscape(key))
	case kind == "paused" && first:
		say(200, `{"type":"try_again","queue_state":"paused_capacity","queue_state_reason":%s,"progress":%s}`, told, told)
	case kind == "garbled" && first:
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 "+key+"\r\n\r\n")
		_ = conn.Close()
	case kind == "cut" && first:
		panic(http.ErrAbortHandler)
	default:
		say(200, `{"status":"completed","result":{}}`)
	}
}

// behindAPassword is a NATS server that wants one.
func behindAPassword(t *testing.T) (url string, js jetstream.JetStream) {
	t.Helper()
	url = "nats://bridge:" + natsSecret + "@" + guarded(t, &server.Options{Username: "bridge", Password: natsSecret, JetStream: true})
	flags := natsFlags{Nats: url, Prefix: "tinker"}
	nc, js, err := flags.dial(dialOptions{name: "tester", log: silent()})
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	return url, js
}

// behindAToken is a NATS server that wants one; renew has it end in lame duck mode and come back.
func behindAToken(t *testing.T) (url string, renew func()) {
	t.Helper()
	options := &server.Options{
		Authorization: natsToken, JetStream: true, Port: server.RANDOM_PORT,
		LameDuckDuration: time.Second, LameDuckGracePeriod: 100 * time.Millisecond,
	}
	s := testbed.NewServer(t, options)
	addr := s.Running().Addr().(*net.TCPAddr)
	options.Port = addr.Port
	return "nats://" + natsToken + "@" + addr.String(), func() {
		s.Running().LameDuckShutdown()
		s.Restart(options)
	}
}

// clean fails when a secret, or a part of one, is in what somebody can read.
func clean(t *testing.T, where, text string) {
	t.Helper()
	require.NotEmpty(t, text, where)
	pair := base64.StdEncoding.EncodeToString([]byte("user:" + proxySecret))
	for _, form := range []string{"canary", `u0063`, pair, hex.EncodeToString([]byte("canary")), "Y2FuYXJ5", "NhbmFye", "jYW5hcn"} { // base64 has three forms of it
		for line := range strings.Lines(text) {
			require.NotContains(t, strings.ToLower(line), strings.ToLower(form), where)
		}
	}
}

// everything is all that is stored, with its headers.
func everything(t *testing.T, js jetstream.JetStream) string {
	t.Helper()
	var all strings.Builder
	names := js.StreamNames(t.Context())
	for name := range names.Name() {
		stream, err := js.Stream(t.Context(), name)
		require.NoError(t, err)
		state := stream.CachedInfo().State
		for seq := state.FirstSeq; seq <= state.LastSeq; seq++ {
			if m, err := stream.GetMsg(t.Context(), seq); err == nil {
				fmt.Fprintf(&all, "%s %v %s\n", m.Subject, m.Header, m.Data)
			}
		}
	}
	require.NoError(t, names.Err())
	return all.String()
}

func TestNoSecretIsInAnythingThatCanBeRead(t *testing.T) {
	clearEnv(t)
	upstream := &tattler{}
	use := func(key string) { upstream.key.Store(&key) }
	use(firstKey)
	upstreamURL, stop, err := serveUpstream(upstream)
	require.NoError(t, err)
	t.Cleanup(stop)
	natsURL, js := behindAPassword(t)
	keyFile := write(t, "key", firstKey)
	t.Setenv("BRIDGE_UPSTREAM_HEADER", "X-Team="+teamToken)
	args := []string{
		"serve", "--nats", natsURL, "--upstream", upstreamURL, "--dialect", "bearer", "--api-key-file", keyFile, "--http", "127.0.0.1:0",
		"--log-level", "debug", "--backoff-initial", "20ms", "--backoff-max", "50ms", "--not-found-grace", "0s",
	}
	eventually := func(what string, condition func() bool) {
		t.Helper()
		require.Eventually(t, condition, 2*time.Minute, 20*time.Millisecond, what)
	}
	kinds := []string{"ok", "plain", "json", "escaped", "encoded", "typed", "broken", "moved", "paused", "garbled", "cut"}
	ended := 0
	play := func(round string) {
		t.Helper()
		for _, kind := range kinds {
			_, err := js.Publish(t.Context(), "tinker.submit", []byte(kind+"-"+round))
			require.NoError(t, err)
		}
		ended += len(kinds)
		eventually("all have ended", func() bool {
			stream, err := js.Stream(t.Context(), "TINKER_RESULTS")
			return err == nil && int(stream.CachedInfo().State.Msgs) == ended
		})
	}

	// By itself, with a key that changes.
	p := start(t, args...)
	p.value("submit_to")
	play("direct")
	use(secondKey)
	_, err = js.Publish(t.Context(), "tinker.submit", []byte("ok-refused"))
	require.NoError(t, err)
	readyz := func() string { _, body := get(t, p.value("url")+"/readyz"); return body }
	eventually("the key is refused", func() bool { return strings.Contains(readyz(), "refuses the API key") })
	clean(t, "readyz", readyz())
	require.NoError(t, os.WriteFile(keyFile, []byte(secondKey+"\n"+firstKey), 0o600))
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGHUP))
	eventually("the file is bad", func() bool { return strings.Contains(p.log(), "has more than one line") })
	require.NoError(t, os.WriteFile(keyFile, []byte(secondKey), 0o600))
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGHUP))
	ended++
	play("rotated")
	require.Contains(t, p.log(), "the API key has changed")
	_, metrics := get(t, p.value("url")+"/metrics")
	clean(t, "metrics", metrics)
	require.Error(t, p.end(syscall.SIGQUIT))
	require.Contains(t, p.log(), "goroutine ", "what a panic would say too")
	clean(t, "log", p.log())

	// Through a proxy that refuses at first.
	proxied := append(args, "--ack-wait", "2m", "--upstream-proxy", strings.Replace(upstreamURL, "://", "://user:"+proxySecret+"@", 1))
	p = start(t, proxied...)
	p.value("submit_to")
	play("proxied")
	require.Greater(t, upstream.refusal.Load(), int32(2))
	require.NoError(t, p.end(syscall.SIGTERM))
	clean(t, "log by proxy", p.log())

	// Where nobody answers, and where NATS refuses.
	p = start(t, append(proxied, "--upstream-proxy", "http://user:"+proxySecret+"@127.0.0.1:1")...)
	eventually("there is no proxy", func() bool { return strings.Contains(p.log(), "the upstream cannot be reached") })
	clean(t, "readyz without a proxy", readyz())
	require.NoError(t, p.end(syscall.SIGTERM))
	clean(t, "log without a proxy", p.log())
	p = start(t, append(args, "--nats", strings.Replace(natsURL, natsSecret, "wrong-canary", 1))...)
	eventually("NATS refuses", func() bool { return strings.Contains(p.log(), "refuses these credentials") })
	clean(t, "readyz without NATS", readyz())
	require.NoError(t, p.end(syscall.SIGTERM))
	clean(t, "log without NATS", p.log())

	// A user name alone is a token.
	tokenURL, renew := behindAToken(t)
	p = start(t, append(args, "--nats", tokenURL)...)
	p.value("submit_to")
	renew()
	eventually("NATS is back", func() bool { return strings.Contains(p.log(), "connected to NATS again") })
	require.Contains(t, p.log(), "lame duck")
	require.NoError(t, p.end(syscall.SIGTERM))
	clean(t, "log with a token", p.log())

	stored := everything(t, js)
	require.Equal(t, ended, strings.Count("\n"+stored, "\ntinker.result."))
	require.Contains(t, stored, "[redacted]", "the upstream did tell")
	clean(t, "streams", stored)

	var config bytes.Buffer
	require.NoError(t, run(t.Context(), append(proxied, "--print-config"), nil, &config, io.Discard))
	require.Contains(t, config.String(), mask)
	clean(t, "print-config", config.String())
	for _, wrong := range []string{
		"--api-key=canary", "--upstream=http://u:canary@127.0.0.1:x", "--upstream=http://u:canary@127.0.0.1", "--upstream=http://127.0.0.1?canary",
		"--upstream-proxy=canary", "--upstream-proxy=http://u:canary@:x", "--upstream-header=canary", "--upstream-header=A=canary\x01",
		"--nats=nats://u:canary@:x", "--nats=http://u:canary@h", "--nats-context=nats://u:canary@h",
		"--nats-nkey=SUACANARY", "--nats-nkey=" + strings.Repeat("canary", 1000), "--nats-creds=-----BEGIN NATS USER JWT-----\ncanary",
		"--api-key-header=X-API-Key: canary", "--upstream-path=/x?api_key=canary", "--upstream-path=canary",
	} {
		clean(t, wrong[:8], run(t.Context(), append(proxied, wrong), nil, io.Discard, io.Discard).Error())
	}
}
