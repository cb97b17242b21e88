package sim

import (
	"bytes"
	"compress/gzip"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// buffers hold bodies while they are sent. Large ones are left to the garbage collector.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

const (
	maxPooled  = 1 << 20
	dripPieces = 20
)

var compressors = sync.Pool{New: func() any { return gzip.NewWriter(nil) }}

// send writes an answer on the wire that it deserves.
func (s *Sim) send(w http.ResponseWriter, r *http.Request, p *poll, a reply) {
	wire := a.wire
	switch wire.Wire {
	case "dead":
		panic(http.ErrAbortHandler)
	case "reset":
		reset(w)
	}
	buffer := buffers.Get().(*[]byte)
	body := s.appendBody((*buffer)[:0], r, p, a)
	defer func() {
		if cap(body) <= maxPooled {
			*buffer = body
			buffers.Put(buffer)
		}
	}()
	payload := body
	header := w.Header()
	header["Content-Type"] = a.step.ctype
	if p.gzip && len(body) > 0 && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		payload = compress(body)
		header.Set("Content-Encoding", "gzip")
	}
	header["Content-Length"] = []string{strconv.Itoa(len(payload))}
	for key, value := range a.step.header {
		header[key] = value
	}
	if d := a.step.RetryAfterDate; d > 0 {
		header.Set("Retry-After", time.Now().Add(d).UTC().Format(http.TimeFormat))
	}
	if wire.broken() && len(payload) == 0 {
		panic(http.ErrAbortHandler) // there is nothing to cut in half
	}
	w.WriteHeader(a.step.code)
	if wire.broken() {
		payload = payload[:len(payload)/2]
	}
	if wire.Drip == 0 {
		_, _ = w.Write(payload) // a client that has left is none of the server's business
	} else if !drip(w, r, payload, wire.Drip) {
		return
	}
	switch wire.Wire {
	case "truncated":
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case "stall":
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}

func (s *Sim) appendBody(dst []byte, r *http.Request, p *poll, a reply) []byte {
	if a.metadata {
		dst = append(dst, `{"status":"complete_metadata","response_payload_size":`...)
		dst = strconv.AppendInt(dst, int64(a.step.size()), 10)
		return append(dst, '}')
	}
	dst = append(dst, a.step.head...)
	switch a.step.insert {
	case insertID:
		dst = appendString(dst, p.id)
	case insertResult:
		dst = s.filler.appendResult(dst, p.id, a.step)
	case insertKey:
		dst = append(dst, sentKey(r)...)
	}
	return append(dst, a.step.tail...)
}

func compress(body []byte) []byte {
	var out bytes.Buffer
	z := compressors.Get().(*gzip.Writer)
	defer compressors.Put(z)
	z.Reset(&out)
	_, _ = z.Write(body) // to memory
	_ = z.Close()
	return out.Bytes()
}

// drip spreads a body over a time; false when the client left before its end.
func drip(w http.ResponseWriter, r *http.Request, body []byte, over time.Duration) bool {
	control := http.NewResponseController(w)
	ticker := time.NewTicker(max(1, over/dripPieces))
	defer ticker.Stop()
	for i := range dripPieces {
		select {
		case <-ticker.C:
		case <-r.Context().Done():
			return false
		}
		_, _ = w.Write(body[i*len(body)/dripPieces : (i+1)*len(body)/dripPieces])
		_ = control.Flush()
	}
	return true
}

// reset ends a connection so that its client reads "connection reset by peer".
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil { // HTTP/2, where aborting resets the stream
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
	panic(http.ErrAbortHandler)
}
