package publish

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
)

// cutter breaks connections when what the server sends has a given text, which is then lost.
type cutter struct {
	mu   sync.Mutex
	text string
	cuts int
}

// cut makes the next answer with this text the last of its connection. Connections made before keep whole.
func (g *rig) cut(text string) *cutter {
	c := &cutter{text: text}
	g.Wrap(func(conn net.Conn) net.Conn { return &cutConn{conn, c} })
	return c
}

func (c *cutter) hit(p []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.text == "" || !bytes.Contains(p, []byte(c.text)) {
		return false
	}
	c.text = ""
	c.cuts++
	return true
}

type cutConn struct {
	net.Conn
	cutter *cutter
}

func (c *cutConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.cutter.hit(p[:n]) {
		_ = c.Close()
		return 0, io.EOF
	}
	return n, err
}

// scripted is a publisher on a server without streams, where a test answers in its place.
func scripted(t *testing.T, test func(t *testing.T, g *rig)) {
	t.Helper()
	bubble(t, noStreams, test)
}

// answer replies to publishes and direct gets on a subject with each answer in turn, and the last for ever. An empty
// answer is none; one that begins with "NATS/1.0" has headers. It returns what was asked.
func (g *rig) answer(subject string, answers ...string) (asked func() []*nats.Msg) {
	g.t.Helper()
	nc := g.Connect()
	var mu sync.Mutex
	var got []*nats.Msg
	_, err := nc.Subscribe(subject, func(m *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		a := answers[min(len(got), len(answers)-1)]
		got = append(got, m)
		if a == "" {
			return
		}
		reply := &nats.Msg{Subject: m.Reply, Data: []byte(a)}
		if head, body, ok := strings.Cut(a, "\r\n\r\n"); ok {
			header, err := nats.DecodeHeadersMsg([]byte(head + "\r\n\r\n"))
			require.NoError(g.t, err)
			reply.Header, reply.Data = header, []byte(body)
		}
		_ = nc.PublishMsg(reply)
	})
	require.NoError(g.t, err)
	require.NoError(g.t, nc.Flush())
	return func() []*nats.Msg {
		mu.Lock()
		defer mu.Unlock()
		return got
	}
}

// direct is the answer to a direct get.
func directAnswer(subject string, seq uint64, header nats.Header, data string) string {
	var b strings.Builder
	b.WriteString("NATS/1.0\r\n")
	for name, values := range header {
		fmt.Fprintf(&b, "%s: %s\r\n", name, values[0])
	}
	fmt.Fprintf(&b, "Nats-Subject: %s\r\nNats-Sequence: %d\r\nNats-Time-Stamp: 2026-01-02T03:04:05Z\r\n\r\n%s", subject, seq, data)
	return b.String()
}
