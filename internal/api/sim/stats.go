package sim

import (
	"maps"
	"slices"
	"time"
)

// Stats is what a Sim saw so far.
type Stats struct {
	Jobs              int                `json:"jobs"` // ids made or asked for
	Polls             int                `json:"polls"`
	PollsLastSecond   int                `json:"polls_last_second"`
	MaxPollsPerSecond int                `json:"max_polls_per_second"` // in any second, at a resolution of 100 ms
	PollsNow          int                `json:"polls_now"`            // in flight
	MaxPollsNow       int                `json:"max_polls_now"`
	EarlyPolls        int                `json:"early_polls"`     // came before the wait that their id's last answer asked for was over
	Deliveries        int                `json:"deliveries"`      // results and failures handed out, all ids
	LostDeliveries    int                `json:"lost_deliveries"` // those of them that the client cannot have got whole
	IDsDelivered      int                `json:"ids_delivered"`
	IDsDeliveredAgain int                `json:"ids_delivered_again"` // more than once
	MaxPollsOfAnID    int                `json:"max_polls_of_an_id"`
	MaxPollsNowOfAnID int                `json:"max_polls_now_of_an_id"` // above 1: pollers side by side
	RedirectsFollowed int                `json:"redirects_followed"`
	RedirectsWithKey  int                `json:"redirects_with_key"` // those of them that carried a key along
	Answers           map[string]int     `json:"answers"`            // by kind
	IDs               map[string]IDStats `json:"ids,omitempty"`      // only where asked for
}

// IDStats is what a Sim saw of one id.
type IDStats struct {
	Polls          int `json:"polls"`
	EarlyPolls     int `json:"early_polls"`
	Deliveries     int `json:"deliveries"`
	LostDeliveries int `json:"lost_deliveries"`
	PollsNow       int `json:"polls_now"`
	MaxPollsNow    int `json:"max_polls_now"`

	Done      time.Time `json:"done,omitzero"`      // when the job ended, once a poll has found that it did
	Delivered time.Time `json:"delivered,omitzero"` // when its result or failure first went out
}

// Poll is one finished poll of the log.
type Poll struct {
	Start        time.Time
	End          time.Time
	ID           string
	Iteration    int // X-Tinker-Request-Iteration, -1 without
	MetadataOnly bool
	Caller       string // see WithCallerHeader
	Conn         string // remote address
	Status       int    // HTTP status, 0 when the answer cannot have arrived whole
	Answer       string // as in Stats.Answers
	Early        bool
}

// counts are the sums behind Stats, kept up to date poll by poll so that Stats never walks the jobs.
type counts struct {
	Stats
	rate meter
}

func newCounts() counts { return counts{Stats: Stats{Answers: make(map[string]int)}} }

func (c *counts) answer(p *poll, name string) {
	p.record.Answer = name
	c.Answers[name]++
}

// rename corrects the kind of an answer that has been counted.
func (c *counts) rename(p *poll, name string) {
	c.Answers[p.record.Answer]--
	c.answer(p, name)
}

// meter counts events per second over a ring of slots.
type meter struct {
	slots [10]int
	slot  int64 // number of the current slot since the start
	sum   int
}

const meterSlot = 100 * time.Millisecond

func (m *meter) add(at time.Duration, n int) int {
	slot := int64(at / meterSlot)
	for range min(slot-m.slot, int64(len(m.slots))) {
		m.slot++
		i := m.slot % int64(len(m.slots))
		m.sum -= m.slots[i]
		m.slots[i] = 0
	}
	m.slot = slot
	m.slots[slot%int64(len(m.slots))] += n
	m.sum += n
	return m.sum
}

// job is the record of an id, made when there is none. The caller holds s.mu.
func (s *Sim) job(id string) *job {
	j, ok := s.jobs[id]
	if !ok {
		j = &job{id: id}
		s.jobs[id] = j
	}
	return j
}

func (s *Sim) arrive(p *poll) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.arrived = s.now()
	p.interruption = s.interruptions
	c := &s.counts
	c.Polls++
	c.PollsNow++
	c.MaxPollsNow = max(c.MaxPollsNow, c.PollsNow)
	c.MaxPollsPerSecond = max(c.MaxPollsPerSecond, c.rate.add(p.arrived, 1))
	if p.id == "" || p.refusal != nil {
		return
	}
	j := s.job(p.id)
	p.job = j
	j.polls++
	j.inFlight++
	j.maxInFlight = max(j.maxInFlight, j.inFlight)
	c.MaxPollsOfAnID = max(c.MaxPollsOfAnID, j.polls)
	c.MaxPollsNowOfAnID = max(c.MaxPollsNowOfAnID, j.maxInFlight)
	if p.arrived < j.hinted {
		p.record.Early = true
		j.early++
		c.EarlyPolls++
	}
	p.noise = s.pickNoise(j)
}

// pickNoise is the noise that an id's newest poll meets, if any.
func (s *Sim) pickNoise(j *job) *step {
	if len(s.noise) == 0 {
		return nil
	}
	dice := unit(hash(s.script.Seed, j.id, saltNoise+uint64(j.polls)))
	for i := range s.noise {
		if dice -= s.script.Noise[i].Rate; dice < 0 {
			return &s.noise[i]
		}
	}
	return nil
}

func (s *Sim) leave(p *poll) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.PollsNow--
	if p.job != nil {
		p.job.inFlight--
	}
	if s.logging {
		p.record.Start, p.record.End = s.start.Add(p.arrived), time.Now()
		s.log = append(s.log, p.record)
	}
}

// abandon counts a poll whose client left while it was held.
func (s *Sim) abandon(p *poll) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.answer(p, "abandoned")
}

// deliver counts a result that goes out. The caller holds s.mu.
func (s *Sim) deliver(j *job, at time.Duration, broken bool) {
	j.deliver(at, broken)
	c := &s.counts
	c.Deliveries++
	if broken {
		c.LostDeliveries++
	}
	switch j.deliveries {
	case 1:
		c.IDsDelivered++
	case 2:
		c.IDsDeliveredAgain++
	}
}

// Stats tells the counts of all ids together; IDs is nil.
func (s *Sim) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.counts.Stats
	stats.Jobs = len(s.jobs)
	stats.PollsLastSecond = s.counts.rate.add(s.now(), 0)
	stats.Answers = maps.Clone(stats.Answers)
	maps.DeleteFunc(stats.Answers, func(_ string, n int) bool { return n == 0 })
	return stats
}

// StatsOf tells the counts of one id, zeros when it was never seen.
func (s *Sim) StatsOf(id string) IDStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j, ok := s.jobs[id]; ok {
		return s.statsOf(j)
	}
	return IDStats{}
}

// StatsByID tells the counts of each id.
func (s *Sim) StatsByID() map[string]IDStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]IDStats, len(s.jobs))
	for id, j := range s.jobs {
		all[id] = s.statsOf(j)
	}
	return all
}

func (s *Sim) statsOf(j *job) IDStats {
	stats := IDStats{
		Polls: j.polls, EarlyPolls: j.early, Deliveries: j.deliveries, LostDeliveries: j.lost,
		PollsNow: j.inFlight, MaxPollsNow: j.maxInFlight,
	}
	if j.handedOut {
		stats.Delivered = s.start.Add(j.firstOut)
	}
	if j.profile != nil && j.current().ends() {
		stats.Done = s.start.Add(j.entered)
	}
	return stats
}

// Polls is the log of finished polls in the order of their ends; empty without WithPollLog.
func (s *Sim) Polls() []Poll {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}
