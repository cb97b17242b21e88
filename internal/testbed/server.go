package testbed

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
)

// T is what a server needs of a testing.TB. An example, which has none, brings its own.
type T interface {
	require.TestingT
	Helper()
	TempDir() string
	Cleanup(func())
}

// Server is a NATS server in this process that a test may stop and start again. Its store outlives that.
type Server struct {
	t       T
	options *server.Options
	dir     string

	mu      sync.Mutex
	running *server.Server
	wrap    func(net.Conn) net.Conn
}

// NewServer runs a server until the test ends; nil options are JetStream and nothing else. It listens on 127.0.0.1 if they
// name a port, which may be server.RANDOM_PORT.
func NewServer(t T, options *server.Options) *Server {
	t.Helper()
	if options == nil {
		options = &server.Options{JetStream: true}
	}
	s := &Server{t: t, options: options, dir: t.TempDir()}
	s.Start()
	t.Cleanup(s.Stop)
	return s
}

// Start runs a server that was stopped.
func (s *Server) Start() {
	s.t.Helper()
	options := s.complete(s.options)
	running, err := server.NewServer(options)
	require.NoError(s.t, err)
	running.Start()
	if !options.DontListen {
		require.True(s.t, running.ReadyForConnections(time.Minute))
	}
	require.Equal(s.t, options.JetStream, running.JetStreamEnabled())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = running
}

// complete leaves the options themselves alone: a server changes what it is given.
func (s *Server) complete(options *server.Options) *server.Options {
	o := options.Clone()
	o.StoreDir, o.NoSigs, o.NoLog = s.dir, true, true
	o.Host, o.DontListen = "127.0.0.1", o.Port == 0
	return o
}

// Stop returns when the server has ended; it is harmless when there is none.
func (s *Server) Stop() {
	running := s.Running()
	s.mu.Lock()
	s.running = nil
	s.mu.Unlock()
	if running != nil {
		running.Shutdown()
		running.WaitForShutdown()
	}
}

// Restart runs the server anew with other options.
func (s *Server) Restart(options *server.Options) {
	s.t.Helper()
	s.Stop()
	s.options = options
	s.Start()
}

// Reload gives the server other options while it runs, as far as it can take them then.
func (s *Server) Reload(options *server.Options) {
	s.t.Helper()
	options = s.complete(options)
	options.ConfigFile = s.options.ConfigFile
	require.NoError(s.t, s.Running().ReloadOptions(options))
}

// Running is the server itself; nil: it is stopped.
func (s *Server) Running() *server.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}

// Wrap puts something around each connection that is made from now on.
func (s *Server) Wrap(wrap func(net.Conn) net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrap = wrap
}

// InProcessConn is how nats.go connects, and connects again, to whatever server runs at the moment.
func (s *Server) InProcessConn() (net.Conn, error) {
	s.mu.Lock()
	running, wrap := s.running, s.wrap
	s.mu.Unlock()
	if running == nil {
		return nil, errors.New("the server is down")
	}
	conn, err := running.InProcessConn()
	if err == nil && wrap != nil {
		conn = wrap(conn)
	}
	return conn, err
}

// Connect makes a connection that waits for the server whenever it is down, until the test ends. Nothing that is published
// meanwhile is kept.
func (s *Server) Connect(options ...nats.Option) *nats.Conn {
	s.t.Helper()
	nc, err := nats.Connect("", append([]nats.Option{
		nats.InProcessServer(s), nats.MaxReconnects(-1), nats.ReconnectBufSize(-1),
		nats.ReconnectWait(100 * time.Millisecond), nats.ReconnectJitter(0, 0),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}, options...)...)
	require.NoError(s.t, err)
	s.t.Cleanup(nc.Close)
	return nc
}
