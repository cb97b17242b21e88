package main

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// maxFrame is how many bytes go into a frame by default.
const maxFrame = 16 << 10

// http2Line is one HTTP/2 connection, seen from the upstream. Faults write its frames themselves.
type http2Line struct {
	f      *faulty
	conn   net.Conn
	framer *http2.Framer
	mute   bool // pings stay without an answer

	header bytes.Buffer
	coder  *hpack.Encoder
	stream uint32 // of the poll that came last
}

func serveHTTP2(f *faulty, conn net.Conn) {
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(conn, preface); err != nil {
		return
	}
	l := &http2Line{f: f, conn: conn, framer: http2.NewFramer(conn, conn)}
	l.coder = hpack.NewEncoder(&l.header)
	l.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	type poll struct {
		request *http.Request
		body    []byte
	}
	polls := map[uint32]*poll{}
	written := l.framer.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 250})
	for written == nil {
		frame, err := l.framer.ReadFrame()
		if err != nil {
			return
		}
		ended := false
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				written = l.framer.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !frame.IsAck() && !l.mute {
				written = l.framer.WritePing(true, frame.Data)
			}
		case *http2.MetaHeadersFrame:
			r := &http.Request{Method: http.MethodPost, URL: &url.URL{Path: frame.PseudoValue("path")}, Header: http.Header{}}
			for _, field := range frame.RegularFields() {
				r.Header.Add(field.Name, field.Value)
			}
			polls[frame.StreamID] = &poll{request: r}
			ended = frame.StreamEnded()
		case *http2.DataFrame:
			if p := polls[frame.StreamID]; p != nil {
				p.body = append(p.body, frame.Data()...)
				written = l.framer.WriteWindowUpdate(0, uint32(len(p.body)))
			}
			ended = frame.StreamEnded()
		}
		if p := polls[frame.Header().StreamID]; ended && p != nil {
			delete(polls, frame.Header().StreamID)
			l.stream = frame.Header().StreamID
			if fault, _ := f.next(requestID(p.body)); fault != nil {
				written = fault.http2(l)
				continue
			}
			res := f.answer(p.request, string(p.body))
			body, _ := io.ReadAll(res.Body)
			written = l.head(res.StatusCode, res.Header)
			for written == nil && len(body) > maxFrame {
				written = l.framer.WriteData(l.stream, false, body[:maxFrame])
				body = body[maxFrame:]
			}
			if written == nil {
				written = l.framer.WriteData(l.stream, true, body)
			}
		}
	}
}

// head writes the headers of an answer.
func (l *http2Line) head(status int, header http.Header) error {
	l.header.Reset()
	_ = l.coder.WriteField(hpack.HeaderField{Name: ":status", Value: strconv.Itoa(status)})
	if kind := header.Get("Content-Type"); kind != "" {
		_ = l.coder.WriteField(hpack.HeaderField{Name: "content-type", Value: kind})
	}
	return l.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: l.stream, BlockFragment: l.header.Bytes(), EndHeaders: true})
}

// large is a part of a block of headers, nearly as large as a frame may be.
func (l *http2Line) large() []byte {
	l.header.Reset()
	_ = l.coder.WriteField(hpack.HeaderField{Name: "x-large", Value: strings.Repeat("x", maxFrame), Sensitive: true})
	return l.header.Bytes()
}
