package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"futurebridge/internal/api"
)

// speak takes from the dialect what nobody gave.
func (c *serveConfig) speak() {
	c.dialect, _ = api.FindDialect(c.Dialect) // the flag's enum has been checked
	if !c.given.has("upstream-path") {
		c.UpstreamPath = c.dialect.Path
	}
	if !c.given.has("api-key-header") {
		c.APIKeyHeader = c.dialect.KeyHeader
	}
	if !c.given.has("poll-timeout") {
		c.PollTimeout = c.dialect.Timeout
	}
}

// ofHTTP are headers about the connection or the form of a message, which belong to net/http: with an Accept-Encoding of
// somebody else's it hands on answers compressed, and HTTP/2 fails every poll for an Upgrade.
var ofHTTP = []string{
	"Accept-Encoding", "Connection", "Content-Encoding", "Content-Length", "Content-Type", "Expect", "Host", "HTTP2-Settings", "Keep-Alive",
	"Proxy-Connection", "TE", "Trailer", "Transfer-Encoding", "Upgrade",
}

func (c *serveConfig) checkUpstream(bad complaint) {
	switch u, err := url.Parse(c.Upstream); {
	case c.Upstream == "":
		if !c.PrintConfig {
			bad("upstream", "is missing; give the base URL of the API, such as https://api.example.com (also BRIDGE_UPSTREAM or TINKER_BASE_URL)")
		}
	case err != nil: // the parser's error repeats the URL, which may hold a password
		bad("upstream", "is not a URL; give one such as https://api.example.com")
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		bad("upstream", "must begin with https:// (or http://) and a host, such as https://api.example.com")
	case u.User != nil:
		bad("upstream", "holds a user name or password, which would end up in logs; use --api-key-file, or --upstream-header Authorization=…")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		bad("upstream", "has a query or a fragment; give the base URL alone, and further things as --upstream-header")
	case u.Scheme == "http" && !isLoopback(u.Hostname()) && !c.InsecureUpstream:
		bad("upstream", "plain http to %s sends the API key in the clear; use https, or add --insecure-upstream", u.Hostname())
	}
	if !strings.HasPrefix(c.UpstreamPath, "/") || strings.ContainsAny(c.UpstreamPath, "?# \t\r\n") {
		bad("upstream-path", "is not a path; give one such as /api/v1/retrieve_future, without a query") // which may hold a key
	}
	c.checkUpstreamTLS(bad)
	c.checkProxy(bad)
	if !isToken(c.APIKeyHeader) {
		bad("api-key-header", "cannot be a header's name; give the name alone, such as X-API-Key") // the key may stand behind it
	}
	key, flag, err := c.readAPIKey()
	if err != nil {
		bad(flag, "%v", err)
	}
	c.apiKey = key
	for _, h := range c.UpstreamHeader {
		switch {
		case slices.ContainsFunc(ofHTTP, func(own string) bool { return strings.EqualFold(own, h.name) }):
			bad("upstream-header", "%s is set by HTTP itself; leave it out", h.name)
		case strings.EqualFold(h.name, "Proxy-Authorization"): // over TLS the upstream would get it, and not the proxy
			bad("upstream-header", "%s is not for the upstream; give user and password in --upstream-proxy", h.name)
		case h.value == mask:
			bad("upstream-header", "the value of %s is masked; put the real one in its place", h.name)
		case !isHeaderValue(h.value):
			bad("upstream-header", "the value of %s has a line break or another control character; give one line of text", h.name)
		case strings.EqualFold(h.name, c.APIKeyHeader) && key != "":
			bad("upstream-header", "%s already carries the API key; leave one of them out", h.name)
		}
	}
}

func (c *serveConfig) checkUpstreamTLS(bad complaint) {
	if strings.HasPrefix(strings.ToLower(c.Upstream), "http:") && c.UpstreamCA+c.UpstreamCert != "" {
		flag := "upstream-ca"
		if c.UpstreamCA == "" {
			flag = "upstream-cert"
		}
		bad(flag, "is of no use with plain http; give --upstream an https:// URL")
		return
	}
	checkCA(bad, "upstream-ca", c.UpstreamCA)
	if isPair(bad, "upstream-cert", c.UpstreamCert, "upstream-key", c.UpstreamKey) {
		if _, err := tls.LoadX509KeyPair(c.UpstreamCert, c.UpstreamKey); err != nil {
			bad("upstream-cert", "certificate and key cannot be used: %v; name the PEM files of one pair", pathless(err))
		}
	}
}

// checkProxy never repeats the URL, which may hold a password.
func (c *serveConfig) checkProxy(bad complaint) {
	if c.UpstreamProxy == "" {
		return
	}
	u, err := url.Parse(c.UpstreamProxy)
	switch {
	case err != nil:
		bad("upstream-proxy", "is not a URL; give one such as http://proxy.example.com:3128")
	case !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) || u.Hostname() == "":
		bad("upstream-proxy", "must begin with http://, https:// or socks5:// and a host, such as http://proxy.example.com:3128")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		bad("upstream-proxy", "has a path, a query or a fragment; give scheme, host and port alone")
	case u.User.Username() == mask:
		bad("upstream-proxy", "the user is masked; put the real one in its place")
	case strings.HasPrefix(strings.ToLower(c.Upstream), "http:") && !isLoopback(u.Hostname()) && !c.InsecureUpstream:
		bad("upstream-proxy", "polls of a plain http upstream carry the API key to %s in the clear; use https for --upstream, or add --insecure-upstream", u.Hostname())
	}
}

func isLoopback(host string) bool {
	if ip := net.ParseIP(host); ip != nil {
		return ip.IsLoopback()
	}
	return strings.EqualFold(host, "localhost")
}

// upstream makes the client of the API, and what keeps its key up to date; its errors are the user's to mend.
func (c *serveConfig) upstream(log *slog.Logger) (*api.Client, *keyFile, error) {
	asking, err := c.asking()
	if err != nil {
		return nil, nil, err
	}
	key := &keyFile{path: c.APIKeyFile, key: c.apiKey, log: log}
	asking.KeyRefused = key.refused
	client, err := api.New(asking)
	if err != nil {
		return nil, nil, err
	}
	key.use = client.SetKey
	return client, key, nil
}

// asking is how the upstream is asked. validate has checked what it can fail of.
func (c *serveConfig) asking() (asking api.Config, err error) {
	header := http.Header{}
	for _, h := range c.UpstreamHeader {
		header.Add(h.name, h.value)
	}
	for name, values := range c.dialect.Header {
		if header.Get(name) == "" {
			header[name] = values
		}
	}
	transport := api.TransportConfig{MaxConns: c.MaxPolls}
	if transport.TLS, err = c.upstreamTLS(); err != nil {
		return asking, err
	}
	var secrets []string
	if c.UpstreamProxy != "" {
		if transport.Proxy, err = url.Parse(c.UpstreamProxy); err != nil {
			return asking, err
		}
		secrets = proxySecrets(transport.Proxy.User)
	}
	return api.Config{
		BaseURL: c.Upstream, Path: c.UpstreamPath, Key: c.apiKey, KeyHeader: c.APIKeyHeader, Header: header, Secrets: secrets,
		MaxResult: int64(c.MaxResult), Memory: int64(c.ResultMemory), Timeout: c.PollTimeout, Transport: api.NewTransport(transport),
	}, nil
}

// proxySecrets are what a proxy may say of a user and a password, as they are and as they are sent.
func proxySecrets(user *url.Userinfo) []string {
	password, ok := user.Password()
	if !ok {
		return nil
	}
	pair := user.Username() + ":" + password
	return []string{password, url.QueryEscape(password), url.PathEscape(password), pair, base64.StdEncoding.EncodeToString([]byte(pair))}
}

// upstreamTLS is nil where no file is given. The client certificate is read at each handshake, so that it can be renewed
// while the bridge runs; while its files do not fit each other the last pair that did is shown.
func (c *serveConfig) upstreamTLS() (*tls.Config, error) {
	if c.UpstreamCA == "" && c.UpstreamCert == "" {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.UpstreamCA != "" {
		text, err := os.ReadFile(c.UpstreamCA)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		config.RootCAs.AppendCertsFromPEM(text)
	}
	if c.UpstreamCert != "" {
		pair, err := tls.LoadX509KeyPair(c.UpstreamCert, c.UpstreamKey)
		if err != nil {
			return nil, err
		}
		var last atomic.Pointer[tls.Certificate]
		last.Store(&pair)
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if pair, err := tls.LoadX509KeyPair(c.UpstreamCert, c.UpstreamKey); err == nil {
				last.Store(&pair)
			}
			return last.Load(), nil
		}
	}
	return config, nil
}

// reachUpstream waits until something listens where the upstream, or the proxy to it, should be: before that, polls would
// only fail.
func (c *serveConfig) reachUpstream(ctx context.Context, state *readiness, log *slog.Logger) error {
	address, what := c.upstreamAddress()
	for told := false; ; told = true {
		conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", address)
		if err == nil {
			return conn.Close()
		}
		if ctx.Err() != nil {
			return nil
		}
		state.set(fmt.Sprintf("%s cannot be reached: %v", what, err))
		if !told {
			log.Warn("the upstream cannot be reached; trying again, and taking no work meanwhile", "where", what, "error", err)
		}
		if !sleep(ctx, time.Second) {
			return nil
		}
	}
}

// upstreamAddress is the host and port that polls connect to, and what to call it.
func (c *serveConfig) upstreamAddress() (address, what string) {
	what, text := "the upstream", c.Upstream
	if c.UpstreamProxy != "" {
		what, text = "the proxy", c.UpstreamProxy
	}
	u, err := url.Parse(text)
	if err != nil {
		panic(err) // validate has looked at it
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port), what + " " + maskURLs(text)
}
