package main

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// maxFrame is how many bytes go into a frame by default.
const maxFrame = 16 << 10

// http2Line is one HTTP/2 connection, seen from the upstream. Faults write its frames themselves. It sends no more than
// the other side takes.
type http2Line struct {
	f    *faulty
	conn net.Conn

	mu     sync.Mutex // of all that follows, and of what is written
	mute   bool       // pings stay without an answer
	framer *http2.Framer
	header bytes.Buffer
	coder  *hpack.Encoder

	room   *sync.Cond      // there may be more
	window int             // bytes of all bodies that the other side takes
	first  int             // window of a new stream
	open   map[uint32]*int // window of each stream that has not ended
	ended  bool            // the connection
	polls  sync.WaitGroup
}

func serveHTTP2(f *faulty, conn net.Conn) {
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(conn, preface); err != nil {
		return
	}
	l := &http2Line{f: f, conn: conn, framer: http2.NewFramer(conn, conn), window: 1<<16 - 1, first: 1<<16 - 1, open: map[uint32]*int{}}
	l.room = sync.NewCond(&l.mu)
	l.coder = hpack.NewEncoder(&l.header)
	l.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	l.read()
	l.mu.Lock()
	l.ended = true
	l.room.Broadcast()
	l.mu.Unlock()
	conn.Close()
	l.polls.Wait()
}

// read takes what comes until the connection ends. Each poll is answered by itself.
func (l *http2Line) read() {
	type poll struct {
		request *http.Request
		body    []byte
	}
	polls := map[uint32]*poll{}
	written := l.write(func() error {
		return l.framer.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 250})
	})
	for written == nil {
		frame, err := l.framer.ReadFrame()
		if err != nil {
			return
		}
		ended := false
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if frame.IsAck() {
				continue
			}
			if v, ok := frame.Value(http2.SettingInitialWindowSize); ok {
				l.first = int(v)
			}
			written = l.write(l.framer.WriteSettingsAck)
		case *http2.PingFrame:
			written = l.write(func() error {
				if frame.IsAck() || l.mute {
					return nil
				}
				return l.framer.WritePing(true, frame.Data)
			})
		case *http2.WindowUpdateFrame:
			l.widen(frame.StreamID, int(frame.Increment))
		case *http2.RSTStreamFrame:
			l.end(frame.StreamID)
		case *http2.MetaHeadersFrame:
			r := &http.Request{Method: http.MethodPost, URL: &url.URL{Path: frame.PseudoValue("path")}, Header: http.Header{}}
			for _, field := range frame.RegularFields() {
				r.Header.Add(field.Name, field.Value)
			}
			polls[frame.StreamID] = &poll{request: r}
			ended = frame.StreamEnded()
		case *http2.DataFrame:
			if p := polls[frame.StreamID]; p != nil && len(frame.Data()) > 0 {
				p.body = append(p.body, frame.Data()...)
				written = l.write(func() error { return l.framer.WriteWindowUpdate(0, uint32(len(frame.Data()))) })
			}
			ended = frame.StreamEnded()
		}
		stream := frame.Header().StreamID
		if p := polls[stream]; ended && p != nil {
			delete(polls, stream)
			l.mu.Lock()
			window := l.first
			l.open[stream] = &window
			l.mu.Unlock()
			l.polls.Go(func() {
				if l.answer(stream, p.request, string(p.body)) != nil {
					l.conn.Close()
				}
			})
		}
	}
}

// answer fails where it is the connection that is to end.
func (l *http2Line) answer(stream uint32, r *http.Request, body string) error {
	switch fault, n := l.f.next(requestID([]byte(body))); {
	case fault == nil:
		res := l.f.answer(r, body)
		text, _ := io.ReadAll(res.Body)
		return l.tell(stream, &saying{status: strconv.Itoa(res.StatusCode), body: string(text)}, res.Header)
	case fault.says != nil:
		s := fault.says(n)
		return l.tell(stream, s, s.headers())
	default:
		return l.write(func() error { return fault.http2(l, stream) })
	}
}

func (s *saying) headers() http.Header {
	header, _ := textproto.NewReader(bufio.NewReader(strings.NewReader(s.header + "\r\n"))).ReadMIMEHeader()
	return http.Header(header)
}

// tell gives an answer, as fast as the other side takes it.
func (l *http2Line) tell(stream uint32, s *saying, header http.Header) error {
	status, _, _ := strings.Cut(s.status, " ")
	if err := l.write(func() error { return l.head(stream, status, header) }); err != nil {
		return err
	}
	for again := true; again; again = s.endless {
		for rest := s.body; len(rest) > 0; {
			n := l.take(stream, min(len(rest), maxFrame))
			if n == 0 {
				return nil
			}
			if err := l.write(func() error { return l.framer.WriteData(stream, false, []byte(rest[:n])) }); err != nil {
				return err
			}
			rest = rest[n:]
		}
	}
	if s.missing > 0 {
		return nil
	}
	l.end(stream)
	return l.write(func() error { return l.framer.WriteData(stream, true, nil) })
}

// head writes the headers of an answer.
func (l *http2Line) head(stream uint32, status string, header http.Header) error {
	l.header.Reset()
	_ = l.coder.WriteField(hpack.HeaderField{Name: ":status", Value: status})
	for name, values := range header {
		for _, v := range values {
			_ = l.coder.WriteField(hpack.HeaderField{Name: strings.ToLower(name), Value: v})
		}
	}
	return l.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: l.header.Bytes(), EndHeaders: true})
}

// large is a part of a block of headers, nearly as large as a frame may be.
func (l *http2Line) large() []byte {
	l.header.Reset()
	_ = l.coder.WriteField(hpack.HeaderField{Name: "x-large", Value: strings.Repeat("x", maxFrame), Sensitive: true})
	return l.header.Bytes()
}

func (l *http2Line) write(frames func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return frames()
}

// take waits until a stream may have some bytes more, of so many at most; 0: it has ended.
func (l *http2Line) take(stream uint32, most int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		window := l.open[stream]
		if window == nil || l.ended {
			return 0
		}
		if n := min(most, *window, l.window); n > 0 {
			*window -= n
			l.window -= n
			return n
		}
		l.room.Wait()
	}
}

func (l *http2Line) widen(stream uint32, bytes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if stream == 0 {
		l.window += bytes
	} else if window := l.open[stream]; window != nil {
		*window += bytes
	}
	l.room.Broadcast()
}

func (l *http2Line) end(stream uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, stream)
	l.room.Broadcast()
}
