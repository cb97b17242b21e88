package publish

import (
	"encoding/base64"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
)

func TestTokenCarriesAnyID(t *testing.T) {
	long := strings.Repeat("é", 192) // 384 bytes
	for _, c := range []struct{ name, id, token string }{
		{"plain", "req_1:2-A", "req_1:2-A"},
		{"leading minus", "-rf", "-rf"},
		{"longest plain", strings.Repeat("a", 128), strings.Repeat("a", 128)},
		{"too long to be plain", strings.Repeat("a", 129), "=" + strings.Repeat("YWFh", 43)},
		{"dot", "a.b", "=YS5i"},
		{"wildcards", "*>", "=Kj4"},
		{"space", "a b", "=YSBi"},
		{"slash", "/", "=Lw"},
		{"unicode", "ü", "=w7w"},
		{"leading equals sign", "=YS5i", "=PVlTNWk"},
		{"leading tilde", "~x", "=fng"},
		{"longest reversible", long, "=" + strings.Repeat("w6nDqcOp", 64)},
		{"one byte more", long + "x", "~ubwnMST1Md9t8H9qgjtNd8jAXqZunTKMPi2ywfD91lw"},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.token, Token(c.id))
			id, ok := ID(c.token)
			require.Equal(t, !strings.HasPrefix(c.token, "~"), ok)
			if ok {
				require.Equal(t, c.id, id)
			}
		})
	}
}

func TestIDRefusesWhatTokenNeverMakes(t *testing.T) {
	for _, c := range []struct{ name, token string }{
		{"empty", ""},
		{"hashed", Token(strings.Repeat("é", 200))},
		{"several tokens", "a.b"},
		{"a plain id in disguise", "=" + base64.RawURLEncoding.EncodeToString([]byte("abc"))},
		{"no base64", "=!!"},
		{"padded", "=Lg=="},
		{"bits that do not count", "=Lh"}, // decodes to ".", whose token is "=Lg"
		{"an id that would be hashed", "=" + base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat(".", 385)))},
		{"too long to be plain", strings.Repeat("a", 129)},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, ok := ID(c.token)
			require.False(t, ok)
		})
	}
}

func TestCheckIDSaysWhatIsWrong(t *testing.T) {
	for _, c := range []struct{ name, id, want string }{
		{"empty", "", "empty"},
		{"longest", strings.Repeat("é", 512), ""},
		{"too long", strings.Repeat("x", 1025), "1025 bytes; at most 1024"},
		{"no UTF-8", "a\xffb", "UTF-8"},
		{"leading blank", " a", "white space"},
		{"trailing no-break space", "a\u00a0", "white space"},
		{"line break", "a\nb", "control character U+000A"},
		{"nul", "a\x00b", "control character U+0000"},
		{"delete", "a\x7fb", "control character U+007F"},
		{"c1", "a\u0085b", "control character U+0085"},
		{"inner blank", "a b", ""},
		{"everything a subject cannot have", "a.*.>/é=~", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := CheckID(c.id); c.want == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.want)
			}
		})
	}
}

func FuzzToken(f *testing.F) {
	for _, id := range []string{"", "a", "=YQ", "a.b", "*", ">", "~x", " a", "a\x00", "\xff", strings.Repeat("a", 129), strings.Repeat(".", 384), strings.Repeat("ü", 400)} {
		f.Add(id, "a.b")
		f.Add(id, id+"a")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		token := Token(a)
		require.Equal(t, a == b, token == Token(b), "two ids must not share a token, and one id has one")
		require.NotEmpty(t, token)
		require.LessOrEqual(t, len(token), 600)
		require.False(t, strings.ContainsFunc(token, func(r rune) bool {
			return r <= ' ' || r > '~' || r == '.' || r == '*' || r == '>'
		}), "one legal token: %q", token)
		if id, ok := ID(token); ok {
			require.Equal(t, a, id)
		} else {
			require.True(t, strings.HasPrefix(token, "~"), "only a hash has no inverse")
			require.Greater(t, len(a), 384)
		}
		if id, ok := ID(a); ok {
			require.Equal(t, a, Token(id), "a token that has an id is that id's")
		}
		if CheckID(a) == nil {
			header, err := nats.DecodeHeadersMsg([]byte("NATS/1.0\r\nId: " + a + "\r\n\r\n"))
			require.NoError(t, err)
			require.Equal(t, a, header.Get("Id"), "an id that is allowed survives a header")
			require.Equal(t, strings.TrimSpace(a), a)
			require.True(t, utf8.ValidString(a) && a != "" && len(a) <= maxIDBytes)
		}
	})
}

func TestNamesBelongToTheirPrefix(t *testing.T) {
	n, err := NewNames("acme.Tinker-1")
	require.NoError(t, err)
	require.Equal(t, "acme.Tinker-1", n.Prefix())
	require.Equal(t, "acme.Tinker-1.submit", n.Submit())
	require.Equal(t, "", n.Submitter("acme.Tinker-1.submit"))
	require.Equal(t, "alice", n.Submitter("acme.Tinker-1.submit.alice"))
	require.Equal(t, "alice", n.Submitter("acme.Tinker-1.submit.alice.run.7"))
	require.Equal(t, "acme.Tinker-1.state.=YS5i", n.State("a.b"))
	require.Equal(t, "acme.Tinker-1.result.a", n.Result("a"))
	require.Equal(t, "acme.Tinker-1.state.*", n.States())
	require.Equal(t, "acme.Tinker-1.result.*", n.Results())
	require.Equal(t, "acme.Tinker-1.rejected.18446744073709551615", n.Rejected(1<<64-1))
	require.Equal(t, "ACME_TINKER-1_WORK", n.WorkStream())
	require.Equal(t, "ACME_TINKER-1_STATES", n.StatesStream())
	require.Equal(t, "ACME_TINKER-1_RESULTS", n.ResultsStream())
	require.Equal(t, "ACME_TINKER-1_REJECTED", n.RejectedStream())
	require.Equal(t, "ACME_TINKER-1_LARGE", n.LargeBucket())
	require.Equal(t, "ACME_TINKER-1_BRIDGES", n.BridgesBucket())
	require.Equal(t, "bridge", n.Consumer())
}

func TestAPrefixThatIsNoneIsRefused(t *testing.T) {
	for _, prefix := range []string{"", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "a:b", "ü", "$SYS", "ingest", "ingest.a", strings.Repeat("a", 129)} {
		_, err := NewNames(prefix)
		require.Error(t, err, "%q", prefix)
	}
	for _, prefix := range []string{"a", "a.b.c", "a.ingest", "ingests", "A_b-9"} {
		_, err := NewNames(prefix)
		require.NoError(t, err, "%q", prefix)
	}
}
