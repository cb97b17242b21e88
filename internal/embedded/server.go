// Package embedded runs a NATS server with JetStream inside this process, for people who have none.
//
// It promises what the bridge promises: a publish that was acked is on the disk (SyncAlways; a server's own default
// acks before it syncs, every two minutes). One process owns a store directory at a time.
package embedded

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Options of a server.
type Options struct {
	StoreDir string       // made when it is not there; required
	Listen   string       // host:port, port 0 for any free one; empty: connections from this process only
	Log      *slog.Logger // nil: silent

	// SyncLater acknowledges before the disk has it, as a NATS server does by its own default. For measuring.
	SyncLater bool
}

// Server is a running server.
type Server struct {
	nats *server.Server
	lock *os.File
	once sync.Once
}

// Start returns a server that takes connections. Its errors say what to change: the port is taken, or the store
// directory cannot be used.
func Start(o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	opts := &server.Options{
		ServerName:             "future-bridge",
		JetStream:              true,
		StoreDir:               o.StoreDir,
		SyncAlways:             !o.SyncLater,
		NoSigs:                 true,
		DontListen:             o.Listen == "",
		DisableJetStreamBanner: true,
	}
	if o.Listen != "" {
		if err := listenOn(o.Listen, opts, o.Log); err != nil {
			return nil, err
		}
	}
	lock, err := openStore(o.StoreDir)
	if err != nil {
		return nil, err
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("embedded NATS server: %w", err)
	}
	log := &logger{log: o.Log.With("component", "nats-server")}
	ns.SetLogger(log, false, false)
	s := &Server{nats: ns, lock: lock}
	ns.Start()
	if fatal := log.fatal(); fatal != "" {
		s.Shutdown()
		return nil, fmt.Errorf("embedded NATS server: %s", fatal)
	}
	return s, nil
}

// ClientURL is where other processes connect, or empty when the server does not listen.
func (s *Server) ClientURL() string {
	if s.nats.Addr() == nil {
		return ""
	}
	return s.nats.ClientURL()
}

// InProcess is for nats.InProcessServer: connections that need no network.
func (s *Server) InProcess() nats.InProcessConnProvider { return s.nats }

// Shutdown stops the server, waits until its files are closed and gives up the store directory.
func (s *Server) Shutdown() {
	s.once.Do(func() {
		s.nats.Shutdown()
		s.nats.WaitForShutdown()
		_ = s.lock.Close()
	})
}

// listenOn binds the address once before anything else happens, for an error that says what is wrong with it.
func listenOn(addr string, opts *server.Options, log *slog.Logger) error {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("listen address %q: want host:port, such as 127.0.0.1:4222", addr)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return fmt.Errorf("listen address %q: the port is no number from 0 to 65535", addr)
	}
	probe, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s is taken by another program: stop it, connect to it instead if it is a NATS server, or listen on another port", addr)
	case err != nil:
		return fmt.Errorf("cannot listen on %s: %w", addr, err)
	}
	if ip := probe.Addr().(*net.TCPAddr).IP; !ip.IsLoopback() {
		log.Warn("the embedded NATS server has no authentication and can be reached from other machines: "+
			"whoever reaches it can submit, read and delete everything", "listen", addr)
	}
	if err := probe.Close(); err != nil {
		return err
	}
	if host == "" {
		host = "0.0.0.0"
	}
	opts.Host, opts.Port = host, int(port)
	if port == 0 {
		opts.Port = server.RANDOM_PORT
	}
	return nil
}

// openStore makes the directory and locks it: two servers in one directory would overwrite each other's files.
func openStore(dir string) (*os.File, error) {
	if dir == "" {
		return nil, errors.New("the embedded NATS server needs a store directory")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("store directory %s cannot be made: %w; choose one that this user may write to", dir, err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "future-bridge.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store directory %s cannot be written: %w; choose one that this user may write to", dir, err)
	}
	if err := lockFile(lock); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("store directory %s is in use by another process: stop that one, connect to it, or choose another directory", dir)
	}
	return lock, nil
}

// logger passes the server's lines to slog. Its notices are about starting and stopping, so they are debug lines here.
type logger struct {
	log       *slog.Logger
	mu        sync.Mutex
	firstFail string
}

func (l *logger) Noticef(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l *logger) Debugf(format string, v ...any)  { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l *logger) Tracef(format string, v ...any)  { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l *logger) Warnf(format string, v ...any)   { l.log.Warn(fmt.Sprintf(format, v...)) }
func (l *logger) Errorf(format string, v ...any)  { l.log.Error(fmt.Sprintf(format, v...)) }

// Fatalf is where a server that owns its process would exit; Start returns the first such line as its error.
func (l *logger) Fatalf(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := fmt.Sprintf(format, v...)
	if l.firstFail == "" {
		l.firstFail = text
	}
	l.log.Error(text)
}

func (l *logger) fatal() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.firstFail
}
