package chaos

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Direction is where a frame goes.
type Direction int

const (
	ToServer Direction = iota
	ToClient
)

// Frame is one protocol message between a client and a server.
type Frame struct {
	Direction Direction
	Verb      string // PUB, MSG, SUB, INFO, +OK …; HPUB and HMSG are PUB and MSG with a Header
	Subject   string // of a PUB or MSG
	Reply     string // of a PUB or MSG
	Header    []byte // the header block as it travels
	Payload   []byte
	// Answers is, of a MSG that goes to the reply subject of an earlier PUB of the same connection, that PUB. So the ack
	// of a publish is known for what it is.
	Answers *Frame

	wire []byte
}

// readFrame reads the next frame that goes in this direction.
func readFrame(r *bufio.Reader, direction Direction) (*Frame, error) {
	line, err := r.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	f := &Frame{Direction: direction, wire: line}
	verb, rest, _ := strings.Cut(strings.TrimRight(string(line), "\r\n"), " ")
	f.Verb = strings.ToUpper(verb)
	args := strings.Fields(rest)
	switch f.Verb {
	case "PUB", "MSG":
		err = f.read(r, args, 1)
	case "HPUB", "HMSG":
		f.Verb = f.Verb[1:]
		err = f.read(r, args, 2)
	case "INFO":
		f.wire, err = keepAddress(rest)
	}
	return f, err
}

// read reads what follows the line of a PUB or MSG: sizes is how many sizes stand at the line's end.
func (f *Frame) read(r *bufio.Reader, args []string, sizes int) error {
	names := len(args) - sizes
	if f.Verb == "MSG" && names > 1 { // the subscription's number stands between subject and reply
		args, names = append(args[:1:1], args[2:]...), names-1
	}
	if names < 1 || names > 2 {
		return fmt.Errorf("%q is no frame", f.wire)
	}
	f.Subject = args[0]
	if names == 2 {
		f.Reply = args[1]
	}
	total, err := strconv.Atoi(args[len(args)-1])
	if err != nil {
		return fmt.Errorf("%q is no frame: %w", f.wire, err)
	}
	header := 0
	if sizes == 2 {
		if header, err = strconv.Atoi(args[len(args)-2]); err != nil || header > total {
			return fmt.Errorf("%q is no frame", f.wire)
		}
	}
	at := len(f.wire)
	f.wire = append(f.wire, make([]byte, total+2)...)
	if _, err := io.ReadFull(r, f.wire[at:]); err != nil {
		return err
	}
	f.Header, f.Payload = f.wire[at:at+header], f.wire[at+header:at+total]
	return nil
}

// keepAddress takes out of a server's INFO what would lead the client around the proxy when it reconnects.
func keepAddress(info string) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal([]byte(info), &fields); err != nil {
		return nil, fmt.Errorf("INFO %q: %w", info, err)
	}
	delete(fields, "connect_urls")
	delete(fields, "ws_connect_urls")
	out, err := json.Marshal(fields)
	return append(append([]byte("INFO "), out...), '\r', '\n'), err
}

// Rule says what happens to some of the frames. A frame meets the first rule that it fits and whose occurrence it is.
type Rule struct {
	Direction Direction
	Verb      string // "" is any
	// Answer turns the rule around: it is about the answers to the frames that the other fields describe.
	Answer  bool
	Subject string            // glob, * is any characters; "" is any
	Header  string            // a part of the header block
	Payload string            // what the payload begins with
	Where   func(*Frame) bool // asked last; calls are in order

	Nth   int // the first occurrence that is acted on, from 1; 0 is 1
	Times int // how many are acted on; 0 is 1, negative is all that follow

	Before func(*Frame) // runs when the frame has come, before it goes anywhere
	Fate   Fate
	// After runs when the frame has arrived. To a client it has when the client has read it, which the proxy asks for
	// by a PING behind it.
	After func()
}

// Fate is what becomes of a frame.
type Fate int

const (
	Forward Fate = iota
	Drop         // this frame never arrives
	Cut          // nor does it, and the connection ends behind what came before it
	Vanish       // from this frame on nothing arrives in either direction, and no end is told
)

func (r *Rule) fits(f *Frame) bool {
	if r.Answer {
		if f.Direction != ToClient || f.Answers == nil {
			return false
		}
		f = f.Answers
	} else if f.Direction != r.Direction {
		return false
	}
	return (r.Verb == "" || r.Verb == f.Verb) && (r.Subject == "" || glob(r.Subject, f.Subject)) &&
		bytes.Contains(f.Header, []byte(r.Header)) && bytes.HasPrefix(f.Payload, []byte(r.Payload)) &&
		(r.Where == nil || r.Where(f))
}

// glob reports whether a pattern, in which * is any characters, covers the text.
func glob(pattern, text string) bool {
	first, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == text
	}
	if !strings.HasPrefix(text, first) {
		return false
	}
	text = text[len(first):]
	for {
		if glob(rest, text) {
			return true
		}
		if text == "" {
			return false
		}
		text = text[1:]
	}
}
