package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/testbed"
)

// authority is a CA with the files of a server and of a client.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.issue("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	a.issue("server", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	a.issue("client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return a
}

// issue writes name.pem and name.key.
func (a *authority) issue(name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	template.SerialNumber, template.Subject = big.NewInt(1), pkix.Name{CommonName: name}
	template.NotBefore = time.Now().Add(-time.Hour)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	require.NoError(a.t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(a.t, err)
	for file, block := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: private}} {
		require.NoError(a.t, os.WriteFile(a.file(file), pem.EncodeToMemory(block), 0o600))
	}
	cert, err := x509.ParseCertificate(der)
	require.NoError(a.t, err)
	return cert, key
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// serverTLS wants a client certificate if verify says so.
func (a *authority) serverTLS(server string, verify bool) *tls.Config {
	pair, err := tls.LoadX509KeyPair(a.file(server+".pem"), a.file(server+".key"))
	require.NoError(a.t, err)
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	config := &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool}
	if verify {
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return config
}

// guarded is a server that wants what o says; it returns its address.
func guarded(t *testing.T, o *server.Options) string {
	t.Helper()
	testbed.ForgetTimers()
	o.Port = server.RANDOM_PORT
	return testbed.NewServer(t, o).Running().Addr().String()
}

// connects runs a command's way to the server with these flags.
func connects(t *testing.T, args ...string) error {
	t.Helper()
	var grammar struct {
		Result resultCmd `cmd:""`
	}
	if _, err := parse(&grammar, append([]string{"result", "id"}, args...), os.Stderr, os.Stderr); err != nil {
		return err
	}
	nc, _, err := grammar.Result.dial(dialOptions{log: silent()})
	if err == nil {
		nc.Close()
	}
	return err
}

// natsContext writes a context of the nats command line.
func natsContext(t *testing.T, settings map[string]any) string {
	t.Helper()
	config := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", config)
	dir := filepath.Join(config, "nats", "context")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	text, err := json.Marshal(settings)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "home.json"), text, 0o600))
	return "--nats-context=home"
}

func TestTLS(t *testing.T) {
	clearEnv(t)
	a := newAuthority(t)
	a.issue("stale", &x509.Certificate{NotAfter: time.Now().Add(-time.Minute), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	a.issue("elsewhere", &x509.Certificate{DNSNames: []string{"nats.example.com"}})
	ca, pair := "--nats-ca="+a.file("ca.pem"), []string{"--nats-cert=" + a.file("client.pem"), "--nats-key=" + a.file("client.key")}
	tlsOnly := guarded(t, &server.Options{TLSConfig: a.serverTLS("server", false), TLSTimeout: 30})
	mutual := guarded(t, &server.Options{TLSConfig: a.serverTLS("server", true), TLSVerify: true, TLSTimeout: 30})
	first := guarded(t, &server.Options{TLSConfig: a.serverTLS("server", false), TLSTimeout: 30, TLSHandshakeFirst: true})
	stale := guarded(t, &server.Options{TLSConfig: a.serverTLS("stale", false), TLSTimeout: 30})
	elsewhere := guarded(t, &server.Options{TLSConfig: a.serverTLS("elsewhere", false), TLSTimeout: 30})
	plain := guarded(t, &server.Options{})

	for _, scheme := range []string{"nats://", "tls://"} {
		require.NoError(t, connects(t, "--nats="+scheme+tlsOnly, ca))
		require.NoError(t, connects(t, append(pair, "--nats="+scheme+mutual, ca)...))
	}
	require.NoError(t, connects(t, natsContext(t, map[string]any{
		"url": mutual, "ca": a.file("ca.pem"), "cert": a.file("client.pem"), "key": a.file("client.key"),
	})))
	require.NoError(t, connects(t, natsContext(t, map[string]any{"url": first, "ca": a.file("ca.pem"), "tls_first": true})))

	for _, c := range []struct {
		what string
		args []string
		want string
	}{
		{"unknown authority", []string{"--nats=tls://" + tlsOnly}, "shows a certificate of an unknown authority: name its CA with --nats-ca"},
		{"no client certificate", []string{"--nats=tls://" + mutual, ca}, "wants a client certificate: give --nats-cert and --nats-key"},
		{"expired", []string{"--nats=tls://" + stale, ca}, "has expired or is not yet valid"},
		{"other name", []string{"--nats=tls://" + elsewhere, ca}, "shows a certificate for other names"},
		{"no TLS there", []string{"--nats=tls://" + plain, ca}, "does not speak TLS: use nats:// in the URL"},
	} {
		// A server that hangs up right after an alert may have the network drop the alert.
		var err error
		require.Eventually(t, func() bool {
			err = connects(t, c.args...)
			return err != nil && strings.Contains(err.Error(), c.want)
		}, 30*time.Second, 10*time.Millisecond, c.what)
	}
}

func TestNkeys(t *testing.T) {
	clearEnv(t)
	user, stranger := newNkey(t, nkeys.CreateUser), newNkey(t, nkeys.CreateUser)
	addr := guarded(t, &server.Options{Nkeys: []*server.NkeyUser{{Nkey: user.public}}})
	require.NoError(t, connects(t, "--nats="+addr, "--nats-nkey="+user.file))
	require.NoError(t, connects(t, natsContext(t, map[string]any{"url": addr, "nkey": user.file})))
	require.ErrorContains(t, connects(t, "--nats="+addr, "--nats-nkey="+stranger.file), "refuses these credentials")
	require.ErrorContains(t, connects(t, "--nats="+addr), "give --nats-creds, --nats-nkey, a --nats-context")

	account := newNkey(t, nkeys.CreateAccount)
	err := connects(t, "--nats="+addr, "--nats-nkey="+account.file)
	require.ErrorContains(t, err, "--nats-nkey: "+account.file+" holds no nkey seed of a user")
	require.NotContains(t, err.Error(), account.seed)
	require.ErrorContains(t, connects(t, "--nats-nkey="+filepath.Join(t.TempDir(), "absent")), "name a file that can be read")
	require.ErrorContains(t, connects(t, "--nats-nkey="+user.file, "--nats-creds="+user.file), "contradicts --nats-creds")
}

type nkey struct{ public, seed, file string }

func newNkey(t *testing.T, create func() (nkeys.KeyPair, error)) nkey {
	t.Helper()
	pair, err := create()
	require.NoError(t, err)
	public, err := pair.PublicKey()
	require.NoError(t, err)
	seed, err := pair.Seed()
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "user.nk")
	require.NoError(t, os.WriteFile(file, append(seed, '\n'), 0o600))
	return nkey{public, string(seed), file}
}

// In operator mode a user's JWT says what it may do, and the account's signature that it may.
func TestCredentialsFiles(t *testing.T) {
	clearEnv(t)
	operator, err := nkeys.CreateOperator()
	require.NoError(t, err)
	account, err := nkeys.CreateAccount()
	require.NoError(t, err)
	operatorKey, err := operator.PublicKey()
	require.NoError(t, err)
	accountKey, err := account.PublicKey()
	require.NoError(t, err)
	accountJWT, err := jwt.NewAccountClaims(accountKey).Encode(operator)
	require.NoError(t, err)
	resolver := &server.MemAccResolver{}
	require.NoError(t, resolver.Store(accountKey, accountJWT))
	trusted := jwt.NewOperatorClaims(operatorKey)
	addr := guarded(t, &server.Options{TrustedOperators: []*jwt.OperatorClaims{trusted}, AccountResolver: resolver})

	creds := func(by nkeys.KeyPair, expires time.Time) string {
		user := newNkey(t, nkeys.CreateUser)
		claims := jwt.NewUserClaims(user.public)
		if !expires.IsZero() {
			claims.Expires = expires.Unix()
		}
		token, err := claims.Encode(by)
		require.NoError(t, err)
		text, err := jwt.FormatUserConfig(token, []byte(user.seed))
		require.NoError(t, err)
		file := filepath.Join(t.TempDir(), "user.creds")
		require.NoError(t, os.WriteFile(file, text, 0o600))
		return file
	}
	good := creds(account, time.Time{})
	require.NoError(t, connects(t, "--nats="+addr, "--nats-creds="+good))
	require.NoError(t, connects(t, natsContext(t, map[string]any{"url": addr, "creds": good})))
	require.ErrorContains(t, connects(t, "--nats="+addr), "refuses these credentials")
	require.ErrorContains(t, connects(t, "--nats="+addr, "--nats-creds="+creds(account, time.Now().Add(-time.Hour))), "refuses these credentials")
	stranger, err := nkeys.CreateAccount()
	require.NoError(t, err)
	require.ErrorContains(t, connects(t, "--nats="+addr, "--nats-creds="+creds(stranger, time.Time{})), "refuses these credentials")
}

func TestTheInboxPrefixIsUsed(t *testing.T) {
	clearEnv(t)
	addr := guarded(t, &server.Options{})
	for _, f := range []natsFlags{
		{Nats: addr, NatsInbox: "_INBOX.bridge"},
		{NatsContext: "home", given: given{natsContext(t, map[string]any{"url": addr, "inbox_prefix": "_INBOX.bridge"})[2:14]: {byFlag, ""}}},
	} {
		nc, _, err := f.dial(dialOptions{log: silent()})
		require.NoError(t, err)
		require.Regexp(t, `^_INBOX\.bridge\.`, nc.NewRespInbox())
		nc.Close()
	}
	for _, bad := range []string{"a.*", "a.>", "a.", "a b"} {
		require.ErrorContains(t, connects(t, "--nats-inbox-prefix="+bad), "is no beginning of a subject")
	}
}
