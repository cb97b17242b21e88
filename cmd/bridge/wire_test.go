package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// wire lies between a bridge and its server. It can be cut, make the bridge deaf, and change what is published.
type wire struct {
	server nats.InProcessConnProvider
	// publish sees what the bridge publishes, and may change header and body. It returns false for what is to be dropped.
	publish func(subject string, header nats.Header, data *[]byte) bool

	mu    sync.Mutex
	conns []*wireConn
	cut   bool
	deaf  bool
}

// InProcessConn is how a bridge connects, and connects again.
func (w *wire) InProcessConn() (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	// nats.go holds its mutex while it connects: in a bubble no time would pass while it waits for the server's words.
	if w.cut || w.deaf {
		return nil, errors.New("the wire is cut")
	}
	conn, err := w.server.InProcessConn()
	if err != nil {
		return nil, err
	}
	c := &wireConn{Conn: conn, wire: w}
	w.conns = append(w.conns, c)
	return c, nil
}

// sever cuts the wire for a time: neither side hears of the other.
func (w *wire) sever(d time.Duration) {
	w.mu.Lock()
	w.cut = true
	conns := w.conns
	w.conns = nil
	w.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
	time.Sleep(d)
	w.mu.Lock()
	w.cut = false
	w.mu.Unlock()
}

// deafen lets the server hear the bridge, and the bridge nothing, for a time. The connections break off then, if the
// bridge has not given them up by itself.
func (w *wire) deafen(d time.Duration) {
	w.mu.Lock()
	w.deaf = true
	w.mu.Unlock()
	time.Sleep(d)
	w.mu.Lock()
	w.deaf = false
	conns := w.conns
	w.conns = nil
	w.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

type wireConn struct {
	net.Conn
	wire *wire
	out  bytes.Buffer // of a command that has not been written whole
}

func (c *wireConn) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		c.wire.mu.Lock()
		deaf := c.wire.deaf
		c.wire.mu.Unlock()
		if err != nil || !deaf {
			return n, err
		}
	}
}

func (c *wireConn) Write(p []byte) (int, error) {
	if c.wire.publish == nil {
		return c.Conn.Write(p)
	}
	c.out.Write(p)
	for {
		command, whole := c.next()
		if !whole {
			return len(p), nil
		}
		if _, err := c.Conn.Write(command); err != nil {
			return 0, err
		}
	}
}

// next takes one whole command of the client protocol: a line, and for a publish its payload.
func (c *wireConn) next() (command []byte, whole bool) {
	data := c.out.Bytes()
	end := bytes.Index(data, []byte("\r\n"))
	if end < 0 {
		return nil, false
	}
	fields := strings.Fields(string(data[:end]))
	size := end + 2
	if verb := fields[0]; verb == "PUB" || verb == "HPUB" {
		n, err := strconv.Atoi(fields[len(fields)-1])
		if err != nil {
			panic(err)
		}
		if size += n + 2; len(data) < size {
			return nil, false
		}
	}
	command = bytes.Clone(c.out.Next(size))
	if fields[0] == "HPUB" {
		command = c.rewritten(fields, command[end+2:size-2])
	}
	return command, true
}

func (c *wireConn) rewritten(fields []string, payload []byte) []byte {
	n, err := strconv.Atoi(fields[len(fields)-2])
	if err != nil {
		panic(err)
	}
	_, lines, _ := bytes.Cut(payload[:n], []byte("\r\n"))
	mime, err := textproto.NewReader(bufio.NewReader(bytes.NewReader(lines))).ReadMIMEHeader()
	if err != nil && !errors.Is(err, io.EOF) {
		panic(err)
	}
	header, data := nats.Header{}, payload[n:]
	for name, values := range mime {
		header[name] = values
	}
	// Names are case-sensitive, and two are not as MIME would have them.
	for _, name := range []string{"traceparent", "ce-id", "ce-type", "ce-source", "ce-time", "ce-subject", "ce-specversion"} {
		if v, ok := header[textproto.CanonicalMIMEHeaderKey(name)]; ok {
			delete(header, textproto.CanonicalMIMEHeaderKey(name))
			header[name] = v
		}
	}
	if !c.wire.publish(fields[1], header, &data) {
		return nil
	}
	var head bytes.Buffer
	head.WriteString("NATS/1.0\r\n")
	for name, values := range header {
		for _, v := range values {
			fmt.Fprintf(&head, "%s: %s\r\n", name, v)
		}
	}
	head.WriteString("\r\n")
	out := fmt.Appendf(nil, "%s %d %d\r\n", strings.Join(fields[:len(fields)-2], " "), head.Len(), head.Len()+len(data))
	out = append(append(out, head.Bytes()...), data...)
	return append(out, "\r\n"...)
}
