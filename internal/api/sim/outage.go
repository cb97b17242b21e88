package sim

import "time"

// outage is a window of the script, made ready. A nil with refuses connections.
type outage struct {
	Outage
	with *step
}

func compileOutage(o Outage, style Style) outage {
	c := outage{Outage: o}
	if o.With != nil {
		with := compileStep(*o.With, style)
		c.with = &with
	}
	return c
}

// begun is how many of an outage's windows have begun; begin is when the last of them did.
func (o *outage) begun(at time.Duration) (n int, begin time.Duration) {
	switch {
	case at < o.After:
		return 0, 0
	case o.Every == 0:
		return 1, o.After
	}
	n = int((at-o.After)/o.Every) + 1
	return n, o.After + time.Duration(n-1)*o.Every
}

// outage is what all polls get at this time; ok is false when the server is up. The caller holds s.mu.
func (s *Sim) outage(at time.Duration) (with *step, ok bool) {
	if at < s.downUntil {
		return &s.refusals.down, true
	}
	for i := range s.outages {
		o := &s.outages[i]
		if n, begin := o.begun(at); n > 0 && at < begin+o.For {
			if o.with == nil {
				return &s.refusals.down, true
			}
			return o.with, true
		}
	}
	return nil, false
}

// nextOutage is when the next window begins after at, if any: it cuts held polls short.
func (s *Sim) nextOutage(at time.Duration) (next time.Duration, ok bool) {
	for i := range s.outages {
		o := &s.outages[i]
		n, begin := o.begun(at)
		switch {
		case n == 0:
			begin = o.After
		case o.Every == 0:
			continue
		default:
			begin += o.Every
		}
		if !ok || begin < next {
			next, ok = begin, true
		}
	}
	return next, ok
}

// currentEpoch counts the restarts that forgot all jobs. The caller holds s.mu.
func (s *Sim) currentEpoch(at time.Duration) int {
	epoch := s.restarts
	for i := range s.outages {
		if o := &s.outages[i]; o.Forget {
			n, _ := o.begun(at)
			epoch += n
		}
	}
	return epoch
}

// Restart cuts all polls in flight, refuses connections for a time, and forgets all jobs if told to.
func (s *Sim) Restart(down time.Duration, forget bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.downUntil = s.now() + down
	if forget {
		s.restarts++
	}
	s.interruptions++
	close(s.interrupt)
	s.interrupt = make(chan struct{})
}

// Down says whether connections are refused now. Memory asks it at each dial.
func (s *Sim) Down() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	with, ok := s.outage(s.now())
	return ok && with == &s.refusals.down
}

func (l RateLimit) burst() float64 {
	if l.Burst > 0 {
		return l.Burst
	}
	return max(1, l.PerSecond)
}

// admit takes a token of the rate limit. The caller holds s.mu.
func (s *Sim) admit(at time.Duration) bool {
	limit := s.script.RateLimit
	if limit.PerSecond == 0 {
		return true
	}
	s.tokens = min(limit.burst(), s.tokens+limit.PerSecond*(at-s.filled).Seconds())
	s.filled = at
	if s.tokens < 1 {
		return false
	}
	s.tokens--
	return true
}
