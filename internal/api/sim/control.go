package sim

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
)

// redirectPath is where scripted redirects lead unless they name another place. Nobody should ever come here.
const redirectPath = "/sim/redirected"

const (
	maxMint     = 1_000_000 // jobs that one POST /sim/jobs makes
	maxMintBody = 256 << 20 // bytes of it: so many ids of some length
)

func (s *Sim) serveStats(w http.ResponseWriter, r *http.Request) {
	stats := s.Stats()
	if r.URL.Query().Get("ids") == "1" {
		stats.IDs = s.StatsByID()
	}
	writeJSON(w, http.StatusOK, stats)
}

// mintQuery is the body of POST /sim/jobs.
type mintQuery struct {
	Count    int      `json:"count"`
	Profile  string   `json:"profile"`
	IDFormat string   `json:"id_format"`
	IDs      []string `json:"ids"`
}

func (s *Sim) serveJobs(w http.ResponseWriter, r *http.Request) {
	ids, err := s.makeJobs(r.Body)
	if err != nil {
		writeJSON(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
		return
	}
	writeJSON(w, http.StatusOK, map[string][]string{"ids": ids})
}

func (s *Sim) makeJobs(body io.Reader) ([]string, error) {
	data, err := io.ReadAll(io.LimitReader(body, maxMintBody))
	if err != nil {
		return nil, err
	}
	var query mintQuery
	if err := (decoder{}).value("", data, reflect.ValueOf(&query).Elem()); err != nil {
		return nil, err
	}
	if query.Count < 0 || query.Count > maxMint {
		return nil, fmt.Errorf("count: %d is out of range: write 0 to %d", query.Count, maxMint)
	}
	if err := oneOf("id_format", query.IDFormat, idFormats); err != nil {
		return nil, err
	}
	ids := make([]string, 0, query.Count+len(query.IDs))
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range query.IDs {
		if err := s.add(id, query.Profile); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	for range query.Count {
		id, err := s.mint(query.Profile, cmp.Or(query.IDFormat, s.script.IDFormat))
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func (s *Sim) serveRedirected(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.counts.RedirectsFollowed++
	if sentKey(r) != "" {
		s.counts.RedirectsWithKey++
	}
	s.mu.Unlock()
	writeJSON(w, http.StatusOK, map[string]string{"status": "completed", "result": "redirected"})
}

func writeJSON(w http.ResponseWriter, code int, value any) {
	w.Header()["Content-Type"] = jsonType
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(value) // a client that has left is none of the server's business
}
