// Package chaos breaks what surrounds a bridge, and bridges themselves, and looks whether the promises hold: exactly
// one result and one closing record for each accepted request, in order, whatever is killed, stopped or cut off.
//
// Everything is done from outside: bridges and NATS servers are the real programs, run as processes, and know nothing of
// it. A Proxy between a bridge and its server understands the protocol, so that a test can kill the bridge at the moment
// at which it sends a certain message, or has it stored, or is told so. Package history judges what is left.
package chaos

import (
	"bufio"
	"net"
	"slices"
	"strings"
	"sync"
)

// Proxy stands between clients and one NATS server, on a port of its own. It is safe for concurrent use.
type Proxy struct {
	server   string
	listener net.Listener
	running  sync.WaitGroup

	mu       sync.Mutex
	rules    []*Trigger
	links    map[*link]struct{}
	accepted int
	closed   bool
}

// Trigger is a rule at work.
type Trigger struct {
	rule    Rule
	seen    int // frames that fit
	acted   int
	reached chan struct{}
}

// Reached is closed when the rule acts for the first time, before it does.
func (t *Trigger) Reached() <-chan struct{} { return t.reached }

// NewProxy listens on loopback for clients of the server at an address (host:port).
func NewProxy(server string) (*Proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{server: server, listener: listener, links: make(map[*link]struct{})}
	p.running.Go(p.accept)
	return p, nil
}

// URL is where clients connect.
func (p *Proxy) URL() string { return "nats://" + p.listener.Addr().String() }

// Accepted is the number of connections so far.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// On adds a rule, for all connections.
func (p *Proxy) On(rule Rule) *Trigger {
	t := &Trigger{rule: rule, reached: make(chan struct{})}
	t.rule.Nth = max(1, rule.Nth)
	if rule.Times == 0 {
		t.rule.Times = 1
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = append(p.rules, t)
	return t
}

// Off takes a rule away.
func (p *Proxy) Off(t *Trigger) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = slices.DeleteFunc(p.rules, func(other *Trigger) bool { return other == t })
}

// Acted is how often a rule has acted.
func (p *Proxy) Acted(t *Trigger) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return t.acted
}

// Cut ends all connections that there are; clients may connect anew.
func (p *Proxy) Cut() {
	for _, l := range p.current() {
		l.cut()
	}
}

// Vanish makes all connections that there are swallow everything in both directions, and their ends too. Clients may
// connect anew.
func (p *Proxy) Vanish() {
	for _, l := range p.current() {
		l.vanish()
	}
}

// Close ends everything and returns when nothing runs any more.
func (p *Proxy) Close() {
	_ = p.listener.Close()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	for _, l := range p.current() {
		_ = l.client.Close()
		_ = l.server.Close()
	}
	p.running.Wait()
}

func (p *Proxy) current() []*link {
	p.mu.Lock()
	defer p.mu.Unlock()
	links := make([]*link, 0, len(p.links))
	for l := range p.links {
		links = append(links, l)
	}
	return links
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.server)
		if err != nil { // as a client sees a server that is down
			_ = client.Close()
			continue
		}
		l := &link{
			proxy: p, client: client.(*net.TCPConn), server: server.(*net.TCPConn),
			asked: make(map[string]*Frame), gone: make(chan struct{}),
		}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			_ = client.Close()
			_ = server.Close()
			return
		}
		p.links[l] = struct{}{}
		p.accepted++
		p.mu.Unlock()
		p.running.Go(l.run)
	}
}

// meet finds the rule that acts on a frame, nil without one.
func (p *Proxy) meet(f *Frame) *Trigger {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.rules {
		if !t.rule.fits(f) {
			continue
		}
		t.seen++
		if t.seen < t.rule.Nth || t.rule.Times > 0 && t.acted >= t.rule.Times {
			continue
		}
		if t.acted++; t.acted == 1 {
			close(t.reached)
		}
		return t
	}
	return nil
}

// link is one client's connection.
type link struct {
	proxy          *Proxy
	client, server *net.TCPConn

	mu     sync.Mutex
	asked  map[string]*Frame // publishes by their reply subject
	pings  []chan struct{}   // PONGs that the client owes: nil to the server, else to this proxy
	silent bool              // everything is swallowed
	ended  bool              // nothing more is forwarded
	gone   chan struct{}     // closed when the client's side has ended
}

func (l *link) run() {
	var other sync.WaitGroup
	other.Go(func() {
		l.pump(l.client, l.server, ToServer)
		close(l.gone)
	})
	l.pump(l.server, l.client, ToClient)
	other.Wait()
	_ = l.client.Close()
	_ = l.server.Close()
	l.proxy.mu.Lock()
	delete(l.proxy.links, l)
	l.proxy.mu.Unlock()
}

// pump forwards frames until their source ends, and then tells that end on. What cannot be written any more is still
// read: a close with unread data would be a reset, which may overtake what was forwarded before.
func (l *link) pump(from, to *net.TCPConn, direction Direction) {
	r := bufio.NewReaderSize(from, 64<<10)
	for {
		f, err := readFrame(r, direction)
		if err != nil {
			break
		}
		l.handle(f, to)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.silent {
		_ = to.CloseWrite()
	}
}

func (l *link) handle(f *Frame, to *net.TCPConn) {
	if !l.note(f) {
		return
	}
	t := l.proxy.meet(f)
	if t == nil {
		l.write(to, f.wire)
		return
	}
	if t.rule.Before != nil {
		t.rule.Before(f)
	}
	switch t.rule.Fate {
	case Forward:
		l.write(to, f.wire)
		if f.Direction == ToClient && t.rule.After != nil {
			l.ping(to)
		}
	case Cut:
		l.cut()
	case Vanish:
		l.vanish()
	}
	if t.rule.After != nil {
		t.rule.After()
	}
}

// note keeps what later frames refer to. It reports whether the frame goes on.
func (l *link) note(f *Frame) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch f.Verb {
	case "PUB":
		if f.Reply != "" {
			l.asked[f.Reply] = &Frame{Direction: f.Direction, Verb: f.Verb, Subject: f.Subject, Reply: f.Reply, Header: f.Header, Payload: f.Payload}
		}
	case "MSG":
		f.Answers = l.asked[f.Subject]
		// Requests to the API may have several answers; of others nothing is left to be told apart.
		if f.Answers != nil && !strings.HasPrefix(f.Answers.Subject, "$JS.API.") {
			delete(l.asked, f.Subject)
		}
	case "PING":
		if f.Direction == ToClient {
			l.pings = append(l.pings, nil)
		}
	case "PONG":
		if f.Direction == ToServer && len(l.pings) > 0 {
			mine := l.pings[0]
			if l.pings = l.pings[1:]; mine != nil {
				close(mine)
				return false
			}
		}
	}
	return true
}

func (l *link) write(to *net.TCPConn, wire []byte) {
	l.mu.Lock()
	swallow := l.silent || l.ended
	l.mu.Unlock()
	if !swallow {
		_, _ = to.Write(wire) // who is gone is noticed by the pump of the other direction
	}
}

// ping returns when the client has read all that was written to it, or is gone.
func (l *link) ping(client *net.TCPConn) {
	pong := make(chan struct{})
	l.mu.Lock()
	if l.silent || l.ended {
		l.mu.Unlock()
		return
	}
	l.pings = append(l.pings, pong)
	l.mu.Unlock()
	_, _ = client.Write([]byte("PING\r\n"))
	select {
	case <-pong:
	case <-l.gone:
	}
}

func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended, l.silent = true, false
	_ = l.server.CloseWrite()
	_ = l.client.Close()
}

func (l *link) vanish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.silent = true
}
