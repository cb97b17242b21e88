package sim

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// got is an answer as a client reads it.
type got struct {
	code   int
	header http.Header
	body   string
}

// ask polls a handler without a network; answers that end the connection are not for it.
func ask(s *Sim, id string, headers ...string) got {
	return askFor(s, id, true, headers...)
}

func askFor(s *Sim, id string, metadataOnly bool, headers ...string) got {
	r := httptest.NewRequest("POST", "/api/v1/retrieve_future", strings.NewReader(queryFor(id, metadataOnly)))
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return got{w.Code, w.Header(), w.Body.String()}
}

func queryFor(id string, metadataOnly bool) string {
	return fmt.Sprintf(`{"request_id":%s,"allow_metadata_only":%t}`, quote(id), metadataOnly)
}

// steps is a script whose every id takes these steps.
func steps(steps ...Step) Script {
	return Script{Profiles: []Profile{{Name: "p", Steps: steps}}}
}

// fetch polls over a transport and reads the whole answer.
func fetch(ctx context.Context, t *testing.T, transport http.RoundTripper, id string) (code int, body string, err error) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, "POST", "http://upstream/api/v1/retrieve_future", strings.NewReader(queryFor(id, false)))
	require.NoError(t, err)
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}
