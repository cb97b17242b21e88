package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/natscontext"

	"futurebridge/internal/publish"
)

// natsGroup is the group of the flags that every command which talks to NATS shares.
const natsGroup = "nats"

// natsFlags say which NATS, and which of several bridges on it.
type natsFlags struct {
	Nats        string `name:"nats" group:"nats" default:"nats://127.0.0.1:4222" placeholder:"URL[,URL…]" further:"NATS_URL" help:"NATS servers, all of one cluster."`
	NatsContext string `name:"nats-context" group:"nats" placeholder:"NAME" help:"A context of the nats CLI, instead of --nats."`
	NatsCreds   string `name:"nats-creds" group:"nats" placeholder:"FILE" help:"Credentials file of a NATS user."`
	NatsNkey    string `name:"nats-nkey" group:"nats" placeholder:"FILE" help:"File with the nkey seed of a NATS user (SU…)."`
	NatsCA      string `name:"nats-ca" group:"nats" placeholder:"FILE" help:"Certificates that NATS servers are checked with (PEM)."`
	NatsCert    string `name:"nats-cert" group:"nats" placeholder:"FILE" help:"Client certificate (PEM)."`
	NatsKey     string `name:"nats-key" group:"nats" placeholder:"FILE" help:"Key of the client certificate (PEM)."`
	NatsInbox   string `name:"nats-inbox-prefix" group:"nats" placeholder:"SUBJECT" help:"First tokens of the subjects on which answers come, where permissions allow only those: _INBOX.bridge."`
	Prefix      string `name:"prefix" group:"nats" default:"tinker" help:"First tokens of all subjects; streams are named after them."`

	given given // by which flags somebody asked for something
}

// setGiven is called once the command line has been parsed.
func (f *natsFlags) setGiven(g given) { f.given = g }

// names are the subjects and streams of --prefix, which validate has checked.
func (f *natsFlags) names() publish.Names {
	names, err := publish.NewNames(f.Prefix)
	if err != nil {
		panic(err)
	}
	return names
}

// contextWins says that a NATS context is used and not --nats. NATS_URL, which other programs read too, loses.
func (f *natsFlags) contextWins() bool {
	return f.NatsContext != "" && f.given.rank("nats-context") > f.given.rank("nats")
}

// validate returns one error a line.
func (f *natsFlags) validate() error {
	var errs []error
	bad := func(flag, format string, args ...any) { errs = append(errs, f.given.errorf(flag, format, args...)) }
	if f.NatsContext != "" && f.given.rank("nats") == f.given.rank("nats-context") {
		bad("nats-context", "contradicts %s; leave one of them out", f.given.label("nats"))
	}
	if strings.Contains(f.NatsContext, "://") { // with a password, perhaps
		bad("nats-context", "is a URL; give the name of a context, or the URL as --nats")
	}
	websockets := 0
	urls := strings.Split(f.Nats, ",")
	for _, text := range urls {
		u, err := parseNATSURL(text)
		switch { // the text may hold a password: it is not repeated
		case err != nil || u.Host == "" || u.Hostname() == "":
			bad("nats", "is not a list of URLs; give one such as nats://127.0.0.1:4222")
		case u.Scheme == "ws" || u.Scheme == "wss":
			websockets++
		case u.Scheme != "nats" && u.Scheme != "tls":
			bad("nats", "%s:// is not for NATS; use nats://, tls://, ws:// or wss://", u.Scheme)
		case u.User.Username() == mask:
			bad("nats", "the user is masked; put the real one in its place")
		}
	}
	if websockets > 0 && websockets < len(urls) {
		bad("nats", "mixes web sockets with other URLs; use one kind")
	}
	// A name of a file that cannot be read is not repeated either: by mistake it is what the file should hold.
	if f.NatsCreds != "" {
		if text, err := os.ReadFile(f.NatsCreds); err != nil {
			bad("nats-creds", "%v; name a file that can be read", pathless(err))
		} else if !bytes.Contains(text, []byte("-----BEGIN NATS USER JWT-----")) {
			bad("nats-creds", "%s is not a credentials file; name one as nsc writes them", f.NatsCreds)
		}
	}
	if f.NatsNkey != "" {
		if _, err := nats.NkeyOptionFromSeed(f.NatsNkey); errors.As(err, new(*fs.PathError)) {
			bad("nats-nkey", "%v; name a file that can be read", pathless(err))
		} else if err != nil { // what it holds is a secret
			bad("nats-nkey", "%s holds no nkey seed of a user; name a file with one that begins with SU, as nk -gen user prints it", f.NatsNkey)
		}
		if f.NatsCreds != "" {
			bad("nats-nkey", "contradicts %s; leave one of them out", f.given.label("nats-creds"))
		}
	}
	if f.NatsInbox != "" {
		if err := nats.CustomInboxPrefix(f.NatsInbox)(&nats.Options{}); err != nil || strings.ContainsAny(f.NatsInbox, " \t\r\n") {
			bad("nats-inbox-prefix", "%q is no beginning of a subject; give tokens joined by dots, such as _INBOX.bridge", f.NatsInbox)
		}
	}
	checkCA(bad, "nats-ca", f.NatsCA)
	if isPair(bad, "nats-cert", f.NatsCert, "nats-key", f.NatsKey) {
		if _, err := tls.LoadX509KeyPair(f.NatsCert, f.NatsKey); err != nil {
			bad("nats-cert", "certificate and key cannot be used: %v; name the PEM files of one pair", pathless(err))
		}
	}
	if _, err := publish.NewNames(f.Prefix); err != nil {
		bad("prefix", "%v", err)
	}
	return errors.Join(errs...)
}

// dialOptions of a connection. The zero value is for a command that a person waits for.
type dialOptions struct {
	name      string                     // what the server's lists of connections show
	log       *slog.Logger               // required: outages and refusals
	inProcess nats.InProcessConnProvider // the embedded server, instead of the network
	patient   bool                       // a server that is absent at start is told and waited for
	state     *readiness                 // takes what the connection says of itself; nil: the log alone has it
}

// dial connects. A lost connection is told and tried again for ever; what is published in between fails at once
// instead of being buffered: a buffered lease extension would arrive when the lease is no longer ours.
func (f *natsFlags) dial(o dialOptions, js ...jetstream.JetStreamOpt) (*nats.Conn, jetstream.JetStream, error) {
	opts := []nats.Option{
		nats.Name(o.name),
		nats.Timeout(3 * time.Second),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(time.Second),
		nats.ReconnectBufSize(-1),
		nats.PingInterval(5 * time.Second),
		nats.MaxPingsOutstanding(2),
	}
	if o.patient {
		opts = append(opts, nats.RetryOnFailedConnect(true), nats.IgnoreAuthErrorAbort())
	}
	opts = append(opts, f.handlers(o)...)
	remote := f.tlsAndCreds()
	if o.patient {
		remote = append(remote, gathering)
	}
	var (
		nc       *nats.Conn
		settings natscontext.Settings
		err      error
	)
	switch {
	case o.inProcess != nil:
		nc, err = nats.Connect(nats.DefaultURL, append(opts, nats.InProcessServer(o.inProcess))...)
	case f.contextWins():
		found := false
		opts = append(opts, remote...)
		opts = append(opts, func(*nats.Options) error { found = true; return nil })
		nc, settings, err = natscontext.Connect(f.NatsContext, opts...)
		if err != nil && !found {
			return nil, nil, &exitError{exitUsage, f.given.errorf("nats-context", "%v; `nats context ls` lists those there are", err)}
		}
	default:
		nc, err = nats.Connect(f.Nats, append(opts, remote...)...)
	}
	if err != nil {
		return nil, nil, f.mend(err)
	}
	jsc, err := newJetStream(nc, settings, js)
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return nc, jsc, nil
}

func newJetStream(nc *nats.Conn, settings natscontext.Settings, opts []jetstream.JetStreamOpt) (jetstream.JetStream, error) {
	switch {
	case settings.JSAPIPrefix != "":
		return jetstream.NewWithAPIPrefix(nc, settings.JSAPIPrefix, opts...)
	case settings.JSDomain != "":
		return jetstream.NewWithDomain(nc, settings.JSDomain, opts...)
	}
	return jetstream.New(nc, opts...)
}

func (f *natsFlags) tlsAndCreds() []nats.Option {
	var opts []nats.Option
	if f.NatsNkey != "" {
		opts = append(opts, func(o *nats.Options) error {
			nkey, err := nats.NkeyOptionFromSeed(f.NatsNkey)
			if err != nil {
				return err
			}
			return nkey(o)
		})
	}
	if f.NatsInbox != "" {
		opts = append(opts, nats.CustomInboxPrefix(f.NatsInbox))
	}
	if f.NatsCreds != "" {
		opts = append(opts, nats.UserCredentials(f.NatsCreds))
	}
	if f.NatsCA != "" {
		opts = append(opts, nats.RootCAs(f.NatsCA))
	}
	if f.NatsCert != "" {
		opts = append(opts, nats.ClientCert(f.NatsCert, f.NatsKey))
	}
	return opts
}

// handlers tell what happens to a connection. The same trouble is told once a minute, not at every attempt.
func (f *natsFlags) handlers(o dialOptions) []nats.Option {
	log, state := o.log, o.state
	if state == nil {
		state = &readiness{}
	}
	where := func(nc *nats.Conn) string {
		if o.inProcess != nil {
			return "in this process"
		}
		return maskURLs(nc.ConnectedUrl()) // nats.go's own redaction shows a token
	}
	var mu sync.Mutex
	var told time.Time
	return []nats.Option{
		nats.ConnectHandler(func(nc *nats.Conn) {
			log.Info("connected to NATS", "url", where(nc), "server", nc.ConnectedServerName())
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			mu.Lock()
			told = time.Time{}
			mu.Unlock()
			state.lameDuck.Store(false)
			log.Warn("connected to NATS again", "url", where(nc), "server", nc.ConnectedServerName())
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			state.denied.forget()
			if err != nil { // nil: closed by ourselves
				log.Warn("lost the connection to NATS; trying again", "err", err)
			}
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			mu.Lock()
			defer mu.Unlock()
			if time.Since(told) < time.Minute {
				return
			}
			told = time.Now()
			log.Warn("cannot connect to NATS; trying again", "err", f.mend(err))
		}),
		nats.LameDuckModeHandler(func(nc *nats.Conn) {
			if !state.lameDuck.Swap(true) {
				log.Warn("the NATS server is about to stop (lame duck mode): it stores nothing more itself and will close this connection; "+
					"going on at another server of its cluster, or waiting for it to come back", "url", where(nc), "server", nc.ConnectedServerName())
			}
		}),
		nats.ErrorHandler(func(nc *nats.Conn, sub *nats.Subscription, err error) {
			reconnect := func() {
				if o.patient {
					_ = nc.ForceReconnect() // an error: it is closed
				}
			}
			if state.denied.note(err, log, reconnect) {
				return
			}
			args := []any{"err", err}
			if sub != nil {
				args = append(args, "subject", sub.Subject)
			}
			log.Error("NATS reports an error", args...)
		}),
	}
}

// mend adds to a connection error what to do about it.
func (f *natsFlags) mend(err error) error {
	var unknownCA x509.UnknownAuthorityError
	var wrongHost x509.HostnameError
	var dns *net.DNSError
	var expired x509.CertificateInvalidError
	var op *net.OpError
	var unparsable *url.Error
	where := "NATS at " + maskURLs(f.Nats)
	if f.contextWins() {
		where = fmt.Sprintf("NATS (context %q)", f.NatsContext)
	}
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		return fmt.Errorf("%s refuses these credentials (%w): give --nats-creds, --nats-nkey, a --nats-context, or user and password in the URL", where, err)
	case errors.As(err, &unknownCA):
		return fmt.Errorf("%s shows a certificate of an unknown authority: name its CA with --nats-ca", where)
	case errors.As(err, &wrongHost):
		return fmt.Errorf("%s shows a certificate for other names (%w): use one of those in the URL", where, err)
	case errors.As(err, &expired) && expired.Reason == x509.Expired:
		return fmt.Errorf("%s shows a certificate that has expired or is not yet valid (%w): have it renewed, or set this machine's clock", where, err)
	case errors.As(err, &op) && op.Op == "remote error": // what crypto/tls calls an alert of the other side
		return fmt.Errorf("%s wants a client certificate: give --nats-cert and --nats-key, of an authority that it knows (%w)", where, err)
	case errors.Is(err, nats.ErrSecureConnRequired):
		return fmt.Errorf("%s wants TLS: use tls:// in the URL, with --nats-ca if its authority is your own", where)
	case errors.Is(err, nats.ErrSecureConnWanted):
		return fmt.Errorf("%s does not speak TLS: use nats:// in the URL, without --nats-ca and --nats-cert", where)
	case errors.As(err, &unparsable): // it repeats the URL, of a context here
		return fmt.Errorf("%s: its URL is not one: correct the context", where)
	case errors.As(err, &dns):
		return fmt.Errorf("%s: there is no host %s: correct --nats", where, dns.Name)
	case errors.Is(err, nats.ErrNoServers):
		return fmt.Errorf("%s does not answer: start it, or say with --nats where it is (bridge serve --embedded brings one)", where)
	}
	return fmt.Errorf("cannot connect to %s: %w", where, err)
}
