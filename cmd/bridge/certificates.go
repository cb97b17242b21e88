package main

import (
	"crypto/x509"
	"os"
)

// checkCA looks at a file of certificates; empty: there is none.
func checkCA(bad complaint, flag, file string) {
	if file == "" {
		return
	}
	if text, err := os.ReadFile(file); err != nil {
		bad(flag, "%v; name a file that can be read", err)
	} else if !x509.NewCertPool().AppendCertsFromPEM(text) {
		bad(flag, "%s holds no certificate; name a PEM file", file)
	}
}

// isPair reports whether certificate and key are given, and complains of one without the other.
func isPair(bad complaint, certFlag, cert, keyFlag, key string) bool {
	switch {
	case cert != "" && key == "":
		bad(certFlag, "is of no use alone; give --%s too", keyFlag)
	case cert == "" && key != "":
		bad(keyFlag, "is of no use alone; give --%s too", certFlag)
	}
	return cert != "" && key != ""
}
