package sim

import (
	"fmt"
	"net/http"
	"sync"
	"time"
)

// Sim plays a script. It is safe for concurrent use and starts no goroutine and no timer beyond those of the polls in
// flight, so that 100,000 jobs cost their map entries.
type Sim struct {
	script       Script
	apiKey       []byte
	callerHeader string
	filler       filler
	profiles     []*profile
	fallback     *profile
	unknown      step
	refusals     refusals
	limited      step
	noise        []step
	outages      []outage // the windows of the script
	mux          *http.ServeMux
	start        time.Time

	mu            sync.Mutex
	jobs          map[string]*job
	minted        uint64
	restarts      int           // by Restart, each of which forgot
	downUntil     time.Duration // by Restart
	interrupt     chan struct{} // closed by each Restart, so that held polls notice
	interruptions int           // how many there were
	tokens        float64       // of the rate limit
	filled        time.Duration // when tokens was up to date
	counts        counts
	log           []Poll
	logging       bool
}

// Option changes a Sim beyond its script.
type Option func(*Sim)

// WithAPIKey makes the Sim answer 401 to whoever does not send this key as X-API-Key or as a bearer token.
func WithAPIKey(key string) Option { return func(s *Sim) { s.apiKey = []byte(key) } }

// SetAPIKey changes the key that WithAPIKey set, for the polls that arrive from now on.
func (s *Sim) SetAPIKey(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.apiKey = []byte(key)
}

// WithPollLog keeps a record of every poll for Polls: about 200 bytes each, for ever.
func WithPollLog() Option { return func(s *Sim) { s.logging = true } }

// WithCallerHeader names the header that identifies callers in the poll log; the default is User-Agent.
func WithCallerHeader(name string) Option { return func(s *Sim) { s.callerHeader = name } }

// New starts an upstream: outages and jobs count from now. It panics on a script that does not pass Check.
func New(script Script, options ...Option) *Sim {
	if err := script.Check(); err != nil {
		panic("sim: " + err.Error())
	}
	s := &Sim{
		script:       script,
		callerHeader: "User-Agent",
		filler:       newFiller(script.Seed),
		fallback:     compileProfile(defaultProfile, script.Style),
		unknown:      compileMissing(script.Unknown, "unknown", "unknown request_id", script.Style),
		refusals:     compileRefusals(script.Style),
		mux:          http.NewServeMux(),
		start:        time.Now(),
		jobs:         make(map[string]*job),
		interrupt:    make(chan struct{}),
		counts:       newCounts(),
	}
	for _, option := range options {
		option(s)
	}
	for _, p := range script.Profiles {
		s.profiles = append(s.profiles, compileProfile(p, script.Style))
	}
	limited := Step{Status: http.StatusTooManyRequests}
	if with := script.RateLimit.With; with != nil {
		limited = *with
	}
	s.limited = compileStep(limited, script.Style)
	s.tokens = script.RateLimit.burst()
	for _, n := range script.Noise {
		s.noise = append(s.noise, compileStep(*n.With, script.Style))
	}
	for _, o := range script.Outages {
		s.outages = append(s.outages, compileOutage(o, script.Style))
	}

	paths := []string{"/api/v1/retrieve_future", "/api/v1/future/retrieve", "/retrieve_future"}
	if script.Path != "" {
		paths = []string{script.Path}
	}
	for _, path := range paths {
		s.mux.HandleFunc("POST "+path, s.retrieve)
	}
	s.mux.HandleFunc("GET /sim/stats", s.serveStats)
	s.mux.HandleFunc("POST /sim/jobs", s.serveJobs)
	s.mux.HandleFunc(redirectPath, s.serveRedirected)
	s.sdkRoutes(s.mux)
	return s
}

// ServeHTTP implements http.Handler.
func (s *Sim) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// now is the time since New, by the monotonic clock.
func (s *Sim) now() time.Duration { return time.Since(s.start) }

// Mint makes a job with a fresh id and returns the id. The ids of one seed are always the same, in order. Profile ""
// picks by the script's rules; a profile that does not exist is a panic.
func (s *Sim) Mint(profile string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, err := s.mint(profile, s.script.IDFormat)
	if err != nil {
		panic("sim: " + err.Error())
	}
	return id
}

// mint makes a job with a fresh id. The caller holds s.mu.
func (s *Sim) mint(profileName, format string) (string, error) {
	for {
		n := s.minted
		s.minted++
		id := formatID(format, n, hash(s.script.Seed, format, n<<8|saltMintHigh), hash(s.script.Seed, format, n<<8|saltMintLow))
		if _, taken := s.jobs[id]; !taken {
			return id, s.add(id, profileName)
		}
	}
}

// Add makes, or makes anew, the job of an id. Profile "" picks by the script's rules; a profile that does not exist is
// a panic.
func (s *Sim) Add(id, profile string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.add(id, profile); err != nil {
		panic("sim: " + err.Error())
	}
}

// add makes a job. The caller holds s.mu.
func (s *Sim) add(id, profileName string) error {
	p := s.choose(id, profileName)
	if p == nil {
		return fmt.Errorf("profile: %q is not in the script: use the name of one that is, or none", profileName)
	}
	s.job(id).begin(p, s.now(), s.currentEpoch(s.now()))
	return nil
}

// play makes, or makes anew, the job of an id that goes through these steps.
func (s *Sim) play(id string, steps []Step) {
	p := compileProfile(Profile{Steps: steps}, s.script.Style)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.job(id).begin(p, s.now(), s.currentEpoch(s.now()))
}

// choose finds the profile for an id, nil when there is none of that name.
func (s *Sim) choose(id, name string) *profile {
	if name != "" {
		for _, p := range s.profiles {
			if p.name == name {
				return p
			}
		}
		if name == s.fallback.name {
			return s.fallback
		}
		return nil
	}
	var fitting, general []*profile
	for _, p := range s.profiles {
		switch {
		case p.namedOnly:
		case p.match == "":
			general = append(general, p)
		case glob(p.match, id):
			fitting = append(fitting, p)
		}
	}
	if fitting == nil {
		fitting = general
	}
	var total float64
	for _, p := range fitting {
		total += p.weight
	}
	pick := unit(hash(s.script.Seed, id, saltProfile)) * total
	for _, p := range fitting {
		if pick -= p.weight; pick < 0 {
			return p
		}
	}
	return s.fallback
}
