package sim

import "time"

// job is what the upstream knows of one request id. Times are since the Sim's start.
type job struct {
	id      string
	profile *profile // nil: nobody made a job of this id, it has only been asked for
	epoch   int
	step    int           // index of the step it is in
	entered time.Duration // when that step began
	polled  int           // answers given in that step

	handedOut bool          // the result has gone out at least once, on whatever wire
	firstOut  time.Duration // when it did
	firstLost bool          // and that this first time was on a broken wire
	hinted    time.Duration // polls before this are early

	polls, early, deliveries, lost int
	inFlight, maxInFlight          int
}

func (j *job) begin(p *profile, at time.Duration, epoch int) {
	j.profile, j.epoch = p, epoch
	j.step, j.entered, j.polled = 0, at, 0
	j.handedOut, j.firstLost = false, false
}

func (j *job) current() *step { return &j.profile.steps[j.step] }

// length is how long a timed step lasts for this job; ok is false for steps that end by polls, or never.
func (j *job) length(seed uint64, index int) (d time.Duration, ok bool) {
	s := &j.profile.steps[index]
	if s.For == 0 || index == len(j.profile.steps)-1 {
		return 0, false
	}
	d = s.For
	if s.Spread > 0 {
		d += time.Duration(unit(hash(seed, j.id, saltSpread+uint64(index))) * float64(s.Spread))
	}
	return d, true
}

// advance moves the job through the timed steps that are over.
func (j *job) advance(seed uint64, at time.Duration) {
	for {
		d, ok := j.length(seed, j.step)
		if !ok || at < j.entered+d {
			return
		}
		j.step++
		j.entered += d
		j.polled = 0
	}
}

// answered counts an answer of the current step and ends the step when that was its last.
func (j *job) answered(at time.Duration) {
	j.polled++
	if s := j.current(); s.Polls > 0 && j.polled >= s.Polls && j.step < len(j.profile.steps)-1 {
		j.step++
		j.entered = at
		j.polled = 0
	}
}

// nextNews is when a held poll has something else to say than pending; ok is false when time alone does not lead there.
func (j *job) nextNews(seed uint64) (at time.Duration, ok bool) {
	at = j.entered
	for index := j.step; ; index++ {
		if j.profile.steps[index].kind != "pending" {
			return at, true
		}
		d, timed := j.length(seed, index)
		if !timed {
			return 0, false
		}
		at += d
	}
}

// gone says whether retention has taken the result away.
func (j *job) gone(at time.Duration) bool {
	switch style := &j.profile.style; style.Retention {
	case "once":
		return j.handedOut
	case "delivered":
		return j.handedOut && at >= j.firstOut+style.RetentionTTL
	case "ended":
		return j.current().ends() && at >= j.entered+style.RetentionTTL
	}
	return false
}

// deliver records that the result went out, on a whole or a broken wire.
func (j *job) deliver(at time.Duration, broken bool) {
	if !j.handedOut {
		j.handedOut, j.firstOut, j.firstLost = true, at, broken
	}
	j.deliveries++
	if broken {
		j.lost++
	}
}
