package api

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"syscall"
)

// Mend is what an operator can do about a fault of the upstream, in one sentence that is the same for all of its kind;
// empty for what is no fault.
func (o *Outcome) Mend() string {
	switch o.Kind {
	case Unreachable:
		return o.mend
	case NoAnswer:
		return "if the upstream holds polls for longer, raise --poll-timeout above that; else look why it is silent"
	case Expired, NotFound:
		return "check that --upstream is the one that the ids come from, and how long it keeps results"
	case Refused:
		if o.Failure.Type == Validation {
			return "raise --max-result, and --result-memory with it, if results are meant to be so large"
		}
		return "check what the upstream wants: --upstream-path, --upstream-header, and what was submitted"
	case BlankRefusal:
		return "look at proxies on the way to the upstream: they answer 400 without a word"
	case Unauthorized:
		return "check the API key, BRIDGE_API_KEY or --api-key-file, and the account"
	case Throttled:
		return "set --polls-per-second below the upstream's limit, or have the limit raised"
	case ServerFault:
		return "look at the upstream's own logs and at proxies on the way to it"
	case Malformed:
		return "check --upstream and --upstream-path: something answers there that does not speak the protocol, such as a proxy or a login page"
	}
	return ""
}

func mendConnection(err error) string {
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	var hostname x509.HostnameError
	var authority x509.UnknownAuthorityError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	switch {
	case errors.Is(err, errProxy):
		return "check user and password in --upstream-proxy"
	case errors.As(err, &dns):
		return "check the host's name in --upstream, and this machine's DNS"
	case errors.As(err, &certificate), errors.As(err, &hostname), errors.As(err, &authority):
		return "check the host's name in --upstream, and that this machine trusts who signed its certificate, or name that authority with --upstream-ca"
	case errors.As(err, &record), errors.As(err, &alert):
		return "check whether --upstream is https at all, and its TLS versions"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there: check that the upstream runs, and the port in --upstream"
	}
	return "look at the network and at proxies on the way to the upstream, and at its own logs"
}
