package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
)

// certify makes a certificate that vouches for itself, and its key, as PEM.
func certify(t *testing.T, name string) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	require.NoError(t, err)
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded})
}

func TestTheUpstreamsAuthorityAndTheBridgesOwnCertificateAreFiles(t *testing.T) {
	clearEnv(t)
	serverCert, serverKey := certify(t, "server")
	pair, err := tls.X509KeyPair(serverCert, serverKey)
	require.NoError(t, err)
	shown := make(chan string, 10)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown <- r.TLS.PeerCertificates[0].Subject.CommonName
		_, _ = io.WriteString(w, `{"a":1}`)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAnyClientCert}
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()

	firstCert, firstKey := certify(t, "first")
	secondCert, secondKey := certify(t, "second")
	cert, key := write(t, "cert.pem", string(firstCert)), write(t, "key.pem", string(firstKey))
	args := []string{"--upstream=" + server.URL, "--upstream-ca=" + write(t, "ca.pem", string(serverCert))}
	poll := func(client *api.Client) api.Kind {
		return client.Retrieve(t.Context(), api.Query{RequestID: "id", Fresh: true}).Kind // a handshake each time
	}
	client := func(args ...string) *api.Client {
		c, err := parseServe(t, args...)
		require.NoError(t, err)
		client, _, err := c.upstream(silent())
		require.NoError(t, err)
		return client
	}
	require.Equal(t, api.Unreachable, poll(client(args...)), "without a certificate of its own")
	require.Equal(t, api.Unreachable, poll(client(args[0], "--upstream-cert="+cert, "--upstream-key="+key)), "the system does not know the authority")

	renewed := client(append(args, "--upstream-cert="+cert, "--upstream-key="+key)...)
	require.Equal(t, api.Completed, poll(renewed))
	require.Equal(t, "first", <-shown)
	require.NoError(t, os.WriteFile(cert, secondCert, 0o600))
	require.Equal(t, api.Completed, poll(renewed), "half renewed")
	require.Equal(t, "first", <-shown)
	require.NoError(t, os.WriteFile(key, secondKey, 0o600))
	require.Equal(t, api.Completed, poll(renewed))
	require.Equal(t, "second", <-shown)
}

func TestANameWithoutItsOwnPortIsReachedAtThatOfItsScheme(t *testing.T) {
	for upstream, want := range map[string]string{
		"--upstream=http://127.0.0.2": "127.0.0.2:80", "--upstream=https://127.0.0.2": "127.0.0.2:443",
		"--upstream-proxy=socks5://127.0.0.2": "127.0.0.2:1080",
	} {
		clearEnv(t)
		c, err := parseServe(t, up, upstream)
		require.NoError(t, err)
		address, _ := c.upstreamAddress()
		require.Equal(t, want, address)
	}
}

func TestWhatIsNotReachedIsToldWithoutSecrets(t *testing.T) {
	clearEnv(t)
	c, err := parseServe(t, up, "--upstream-proxy=http://u:topsecret@127.0.0.1:1")
	require.NoError(t, err)
	address, text := c.upstreamAddress()
	require.Equal(t, "127.0.0.1:1", address)
	require.Equal(t, "the proxy http://"+mask+"@127.0.0.1:1", text)
	var out bytes.Buffer
	require.NoError(t, c.print(&out))
	require.NotContains(t, out.String(), "topsecret")
}

func TestOnlyTheFlagNamesAProxy(t *testing.T) {
	clearEnv(t)
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"} {
		t.Setenv(name, "http://127.0.0.1:1")
	}
	t.Setenv("NO_PROXY", "*")
	through := func(args ...string) func(*http.Request) (*url.URL, error) {
		c, err := parseServe(t, args...)
		require.NoError(t, err)
		asking, err := c.asking()
		require.NoError(t, err)
		return asking.Transport.(*http.Transport).Proxy
	}
	require.Nil(t, through("--upstream=https://api.example.com"), "net/http asks nobody then")
	proxy, err := through(up, "--upstream-proxy=http://127.0.0.1:2")(&http.Request{URL: &url.URL{Scheme: "http", Host: "127.0.0.1:8900"}})
	require.NoError(t, err)
	require.Equal(t, "http://127.0.0.1:2", proxy.String(), "for loopback too, and whatever NO_PROXY says")
}
