package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/http2"

	"futurebridge/internal/api"
)

// upstreamFault is one way in which an upstream can fail, and what becomes of it. The tests hold the bridge to it, and
// docs/upstream-faults.md is made of it.
type upstreamFault struct {
	name string

	// Of these one is set: the answer to a request's n-th poll, from 0, which both protocols have; what is done to a poll
	// by one of them; or what is done to a connection before there is any poll.
	says  func(n int) *saying
	http1 func(*line)
	http2 func(l *http2Line, stream uint32) error
	dial  func(ctx context.Context, f *faulty) (net.Conn, error)
	tls   func() *tls.Config

	everybody bool // it strikes all polls for a while, not those of one request

	kind  api.Kind   // what each such poll counts as
	also  []api.Kind // or as
	lost  bool       // the upstream may have handed out a result to it
	cause string     // part of the error in log and event
	hint  string     // part of what the log says to do; empty: what it says to all of the kind
	wait  time.Duration
	odd   bool // it asks for a wait that cannot be granted

	// How a request ends that is never answered otherwise, after how many polls (0: at its deadline), and with which
	// bytes where it is completed.
	ends  string
	polls int
	body  string
}

const (
	canaryURL = "http://canary/collect"
	faultsKey = "sk-faults-0123456789"

	headOnly  = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	completed = `{"status":"completed","result":[1,2,3]}`
	pending   = `{"type":"try_again","queue_state":"active"}`
)

// says is a fault that is a whole answer.
func says(status, header, body string) func(int) *saying {
	return saying{status: status, header: header, body: body}.always
}

// cut is a fault that says something and hangs up.
func cut(text string) func(*line) {
	return func(l *line) {
		l.say(text)
		l.hangUp()
	}
}

func reset(text string) func(*line) {
	return func(l *line) {
		l.say(text)
		l.breakOff()
	}
}

// zipped is a text compressed, some number of times one after the other.
func zipped(text string, times int) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write([]byte(text))
	_ = z.Close()
	return strings.Repeat(b.String(), times)
}

// flood repeats a text until the other side has left.
func flood(head, text string) func(*line) {
	return func(l *line) {
		for ok := l.say(head); ok; {
			ok = l.say(text)
		}
		l.hangUp()
	}
}

func connections() []upstreamFault {
	lost := func(name string, does func(*line), cause string) upstreamFault {
		return upstreamFault{name: name, http1: does, kind: api.Unreachable, lost: true, cause: cause, hint: "look at the network", ends: "timed_out"}
	}
	body := headOnly + "Content-Length: 39\r\n\r\n" + completed[:20]
	chunked := headOnly + "Transfer-Encoding: chunked\r\n\r\n"
	stalls := lost("a body that stalls", nil, "context deadline exceeded")
	stalls.says = saying{status: "200 OK", body: completed[:20], missing: 19}.always
	return []upstreamFault{
		lost("reset before the answer", reset(""), "connection reset by peer"),
		lost("reset within the headers", reset("HTTP/1.1 200 OK\r\nContent-"), "malformed MIME header"),
		lost("reset within the body", reset(body), "connection reset by peer"),
		lost("closed before the answer", cut(""), "EOF"),
		{
			name: "silence after the poll", http1: (*line).listen, kind: api.NoAnswer, lost: true,
			cause: "no answer within the time for one poll", ends: "timed_out",
		},
		{
			name: "headers, a byte a second", kind: api.NoAnswer, lost: true, cause: "no answer within the time for one poll", ends: "timed_out",
			http1: func(l *line) { l.say(headOnly + "X-Slow: "); l.drip() },
		},
		lost("a body, a byte a second for ever", func(l *line) { l.say(headOnly + "Content-Length: 1000000\r\n\r\n"); l.drip() }, "context deadline exceeded"),
		stalls,
		lost("a body shorter than its Content-Length", cut(body), "unexpected EOF"),
		{
			name: "a body without Content-Length, cut", http1: cut(headOnly + "\r\n" + completed[:20]),
			kind: api.Malformed, lost: true, cause: "the body is not JSON", ends: "failed", polls: 10,
		},
		{
			name: "protobuf without Content-Length, cut", http1: cut("HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\n\r\n\x0a\x05he"),
			kind: api.Malformed, lost: true, cause: "nothing tells whether it is whole", ends: "failed", polls: 10,
		},
		lost("chunks without the last one", cut(chunked+"14\r\n"+completed[:20]+"\r\n"), "unexpected EOF"),
		lost("a chunk whose length is none", cut(chunked+"zz\r\n"+completed[:20]+"\r\n"), "invalid byte in chunk length"),
		lost("a chunk of more bytes than can be counted", cut(chunked+"fffffffffffffffff\r\n"), "http chunk length too large"),
		lost("two lengths that differ", cut(headOnly+"Content-Length: 39\r\nContent-Length: 40\r\n\r\n"+completed), "Content-Length"),
		lost("no HTTP", cut("SSH-2.0-OpenSSH_9.6\r\n\r\n"), "malformed HTTP"),
		lost("a line break within a header", cut(headOnly+"X: a\rBridge-Status: failed\r\n\r\n"+completed), "malformed MIME header"),
		lost("headers of 1 MiB", cut(headOnly+"X: "+strings.Repeat("x", 1<<20)+"\r\n\r\n"), "exceeded"),
		lost("interim answers without end", flood("", "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"), "exceeded"),
	}
}

func bodies() []upstreamFault {
	answer := func(name, header, body string, kind api.Kind, cause string) upstreamFault {
		f := upstreamFault{name: name, says: says("200 OK", header, body), kind: kind, cause: cause, ends: "failed"}
		switch kind {
		case api.Malformed:
			f.polls = 10
		case api.Refused:
			f.polls = 1
		case api.Unreachable:
			f.ends, f.lost, f.hint = "timed_out", true, "look at the network"
		}
		return f
	}
	taken := func(name, header, body, result string) upstreamFault {
		return upstreamFault{name: name, says: says("200 OK", header, body), kind: api.Completed, ends: "completed", polls: 1, body: result}
	}
	const limit = "the limit for results of this bridge"
	const packed = "Content-Encoding: gzip\r\n"
	digits := strings.Repeat("1234567890", 40)
	good := zipped(completed, 1)
	return []upstreamFault{
		answer("gzip in name only", packed, completed, api.Unreachable, "gzip: invalid header"),
		answer("gzip with a wrong checksum", packed, good[:len(good)-8]+"\x00\x00\x00\x00"+good[len(good)-4:], api.Unreachable, "gzip: invalid checksum"),
		answer("an encoding that nobody asked for", "Content-Encoding: deflate\r\nContent-Type: application/x-protobuf\r\n", "x", api.Malformed, "nobody asked for the encoding deflate"),
		answer("1 GiB in 1 MiB of gzip", packed, zipped(strings.Repeat(" ", 1<<20), 1<<10), api.Refused, limit),
		answer("a body over the limit", "", strings.Repeat(" ", 2<<20), api.Refused, limit),
		{
			name: "a body without an end", says: saying{status: "200 OK", body: strings.Repeat(" ", 4<<10), endless: true}.always,
			kind: api.Refused, cause: limit, ends: "failed", polls: 1,
		},
		answer("an announced size beyond all integers", "", `{"status":"complete_metadata","response_payload_size":`+digits+`}`, api.Refused, limit),
		taken("JSON under a wrong content type", "Content-Type: text/html\r\n", completed, "[1,2,3]"),
		taken("a content type that repeats the API key", "Content-Type: application/x-protobuf; "+faultsKey+"\r\n", completed, completed),
		answer("a login page with status 200", "Content-Type: text/html\r\n", "<html>Sign in</html>", api.Malformed, "the body is not JSON: <html>Sign in</html>"),
		answer("an empty body with status 200", "", "", api.Malformed, "the body is empty"),
		answer("null", "", "null", api.Malformed, "the body is null"),
		answer("JSON 100,000 levels deep", "", strings.Repeat("[", 100_000)+strings.Repeat("]", 100_000), api.Malformed, "nested too deeply"),
		answer("two JSON documents", "", completed+completed, api.Malformed, "the body is not JSON"),
		answer("JSON behind a byte order mark", "", "\ufeff"+completed, api.Malformed, "the body is not JSON"),
		taken("the same keys twice", "", `{"status":"pending","result":1,"status":"completed","result":2}`, "2"),
		taken("invalid UTF-8 within a string", "", "{\"status\":\"completed\",\"result\":\"\xff\"}", "\"\xff\""),
		taken("numbers of 400 digits", "", `{"status":"completed","result":`+digits+`}`, digits),
		taken("the result of another request", "", `{"status":"completed","request_id":"another","result":7}`, "7"),
		{
			name: "a queue state of another request", says: says("200 OK", "", `{"type":"try_again","request_id":"another","queue_state":"active"}`),
			kind: api.Pending, ends: "timed_out",
		},
		{
			name: "another answer to each poll", kind: api.Pending, also: []api.Kind{api.NotFound, api.Failed, api.ServerFault}, ends: "failed", polls: 15,
			says: func(n int) *saying {
				return []func(int) *saying{
					says("200 OK", "", pending), says("404 Not Found", "", `{"detail":"unknown"}`),
					says("200 OK", "", `{"status":"failed","error":"no GPU","category":"server"}`), says("500 Oops", "", "x"),
				}[n%4](n)
			},
		},
	}
}

func statuses() []upstreamFault {
	refused := func(name, status, header string) upstreamFault {
		return upstreamFault{name: name, says: says(status, header, ""), kind: api.Malformed, cause: "", ends: "failed", polls: 10}
	}
	all := []upstreamFault{
		{name: "an error page of a proxy", says: says("502 Bad Gateway", "Content-Type: text/html\r\n", "<html>502</html>"), kind: api.ServerFault, cause: "Bad Gateway: <html>502</html>", ends: "timed_out"},
		{name: "the same status 500 for ever", says: says("500 Oops", "", "trace"), kind: api.ServerFault, cause: "Internal Server Error: trace", ends: "failed", polls: 10},
		{
			name: "a refusal that repeats the API key", says: says("403 Forbidden", "", `{"detail":"no `+faultsKey+`"}`),
			kind: api.Refused, cause: "no [redacted]", ends: "failed", polls: 1,
		},
	}
	for _, status := range []string{"301 Moved Permanently", "302 Found", "303 See Other", "305 Use Proxy", "306 HTTP status 306", "307 Temporary Redirect", "308 Permanent Redirect"} {
		f := refused("a redirect to another host, "+status[:3], status, "Location: "+canaryURL+"\r\n")
		f.cause = status[4:]
		all = append(all, f)
	}
	named := func(f upstreamFault, cause string) upstreamFault {
		f.cause = cause
		return f
	}
	return append(
		all,
		named(refused("a redirect to a file", "302 Found", "Location: file:///etc/passwd\r\n"), "Found"),
		named(refused("a redirect to itself", "307 Temporary Redirect", "Location: /api/v1/retrieve_future\r\n"), "Temporary Redirect"),
		upstreamFault{
			name: "another protocol, 101", http1: func(l *line) {
				l.say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
				l.listen()
			},
			kind: api.Malformed, cause: "Switching Protocols", ends: "failed", polls: 10,
		},
		named(refused("no content, 204", "204 No Content", ""), "the body is empty"),
		upstreamFault{
			name: "part of a result, 206", says: says("206 Partial Content", "Content-Type: application/x-protobuf\r\nContent-Range: bytes 0-3/9\r\n", "half"),
			kind: api.Malformed, cause: "it is a part only", ends: "failed", polls: 10,
		},
		named(refused("not modified, 304", "304 Not Modified", ""), "Not Modified"),
		named(refused("a status that is none, 999", "999 Request denied", ""), "HTTP status 999"),
		upstreamFault{
			name: "cookies", says: says("200 OK", "Set-Cookie: session=1; Path=/\r\n", pending),
			kind: api.Pending, ends: "timed_out",
		},
	)
}

func waits() []upstreamFault {
	asks := func(name string, wait time.Duration, values ...string) upstreamFault {
		var header string
		for _, v := range values {
			header += "Retry-After: " + v + "\r\n"
		}
		return upstreamFault{
			name: "Retry-After: " + name, says: says("503 Busy", header, ""), kind: api.ServerFault, cause: "Service Unavailable",
			ends: "timed_out", wait: wait, odd: true,
		}
	}
	const first = 500 * time.Millisecond // as if nothing had been said
	return []upstreamFault{
		asks("a year", api.MaxHint, "31536000"),
		asks("400 digits", api.MaxHint, strings.Repeat("9", 400)),
		asks("infinite", api.MaxHint, "1e999"),
		asks("negative", first, "-5"),
		asks("NaN", first, "NaN"),
		asks("words", first, "soon"),
		asks("a date in the past", first, "Fri, 31 Dec 1999 23:59:59 GMT"),
		asks("a date in a thousand years", api.MaxHint, "Wed, 31 Dec 3025 23:59:59 GMT"),
		asks("two, 3 and 20", 20*time.Second, "3", "20"),
		asks("two in one line, 3 and 20", 20*time.Second, "3, 20"),
		asks("hexadecimal", first, "0x1p4"),
		asks("a number and words", 7*time.Second, "7", "soon"),
	}
}

// http2Faults happen on a connection that polls of other requests share.
func http2Faults() []upstreamFault {
	broken := func(name string, does func(*http2Line, uint32) error, cause string) upstreamFault {
		return upstreamFault{name: name, http2: does, kind: api.Unreachable, lost: true, cause: cause, hint: "look at the network", ends: "timed_out"}
	}
	ok := http.Header{"Content-Type": {"application/json"}}
	return []upstreamFault{
		broken("HTTP/2: RST_STREAM before the answer", func(l *http2Line, stream uint32) error {
			return l.framer.WriteRSTStream(stream, http2.ErrCodeInternal)
		}, "INTERNAL_ERROR"),
		broken("HTTP/2: RST_STREAM within the body", func(l *http2Line, stream uint32) error {
			if err := l.head(stream, "200", ok); err != nil {
				return err
			}
			if err := l.framer.WriteData(stream, false, []byte(completed[:20])); err != nil {
				return err
			}
			return l.framer.WriteRSTStream(stream, http2.ErrCodeCancel)
		}, "CANCEL"),
		broken("HTTP/2: GOAWAY for the poll in flight", func(l *http2Line, stream uint32) error {
			if err := l.framer.WriteGoAway(stream, http2.ErrCodeInternal, nil); err != nil {
				return err
			}
			return net.ErrClosed
		}, "http2: "),
		broken("HTTP/2: a connection that is dead, its pings without answer", func(l *http2Line, stream uint32) error {
			l.mute = true
			return nil
		}, "client connection lost"),
		broken("HTTP/2: more window than there can be", func(l *http2Line, stream uint32) error {
			return l.framer.WriteWindowUpdate(0, 1<<31-1)
		}, "FLOW_CONTROL_ERROR"),
		{
			name: "HTTP/2: a connection that takes no further polls", kind: api.Pending, also: []api.Kind{api.Unreachable}, ends: "timed_out",
			http2: func(l *http2Line, stream uint32) error {
				if err := l.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}); err != nil {
					return err
				}
				if err := l.head(stream, "200", ok); err != nil {
					return err
				}
				return l.framer.WriteData(stream, true, []byte(pending))
			},
		},
		broken("HTTP/2: a thousand interim answers", func(l *http2Line, stream uint32) error {
			for range 1000 {
				if err := l.head(stream, "103", http.Header{"Link": {strings.Repeat("x", 1000)}}); err != nil {
					return err
				}
			}
			return nil
		}, "header list too large"),
		broken("HTTP/2: headers without end", func(l *http2Line, stream uint32) error {
			err := l.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: l.large()})
			for err == nil {
				err = l.framer.WriteContinuation(stream, false, l.large())
			}
			return err
		}, "PROTOCOL_ERROR"),
	}
}

// outages strike every poll.
func outages() []upstreamFault {
	down := func(name, cause, hint string, dial func(context.Context, *faulty) (net.Conn, error)) upstreamFault {
		return upstreamFault{name: name, everybody: true, dial: dial, kind: api.Unreachable, cause: cause, hint: hint, ends: "timed_out"}
	}
	refusing := func(err error) func(context.Context, *faulty) (net.Conn, error) {
		return func(context.Context, *faulty) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
		}
	}
	secured := func(name, cause string, config func() *tls.Config) upstreamFault {
		return upstreamFault{name: name, everybody: true, tls: config, kind: api.Unreachable, cause: cause, hint: "that this machine trusts who signed", ends: "timed_out"}
	}
	answered := func(name, status, body string, kind api.Kind, cause, hint string) upstreamFault {
		return upstreamFault{name: name, everybody: true, says: says(status, "", body), kind: kind, cause: cause, hint: hint, ends: "timed_out"}
	}
	return []upstreamFault{
		down("connection refused", "connection refused", "nothing listens there", refusing(os.NewSyscallError("connect", syscall.ECONNREFUSED))),
		down("a name that DNS does not know", "no such host", "this machine's DNS", refusing(&net.DNSError{Err: "no such host", Name: upstreamHost, IsNotFound: true})),
		down("a black hole", "i/o timeout", "look at the network", func(ctx context.Context, _ *faulty) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second) // as NewTransport's dialer does
			defer cancel()
			<-ctx.Done()
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
		}),
		down("no TLS where it should be", "first record does not look like a TLS handshake", "https at all", func(_ context.Context, f *faulty) (net.Conn, error) {
			return f.talk(func(l *line) { l.say("HTTP/1.0 400 Bad Request\r\n\r\n"); l.hangUp() }), nil
		}),
		down("a TLS handshake that is never answered", "TLS handshake timeout", "look at the network", func(_ context.Context, f *faulty) (net.Conn, error) {
			return f.talk((*line).listen), nil
		}),
		secured("a certificate of another host", "certificate is valid for other, not upstream", func() *tls.Config { return certified("other", time.Hour) }),
		secured("a certificate that has expired", "certificate has expired", func() *tls.Config { return certified(upstreamHost, -time.Minute) }),
		secured("a certificate that nobody trusts signed", "certificate signed by unknown authority", func() *tls.Config { return foreign(upstreamHost) }),
		answered("the key is refused, 401", "401 Unauthorized", `{"detail":"bad key"}`, api.Unauthorized, "bad key", "check the API key"),
		answered("the key is refused, 403", "403 Forbidden", `{"detail":"Invalid API key"}`, api.Unauthorized, "Invalid API key", "check the API key"),
		answered("the bill is not paid, 402", "402 Payment Required", "", api.Unauthorized, "Payment Required", "and the account"),
		answered("too many polls, 429", "429 Too Many Requests", "", api.Throttled, "Too Many Requests", "below the upstream's limit"),
		answered("the upstream is overloaded, 503", "503 Service Unavailable", "", api.ServerFault, "Service Unavailable", "the upstream's own logs"),
	}
}
