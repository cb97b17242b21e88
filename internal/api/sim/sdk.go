package sim

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
)

// sdk is the part of the Tinker API that starts work: what the official Python SDK (0.25 and later) calls to create a
// training client and a sampling client, to train and to sample. The model behind it is arithmetic, so that whoever
// sent a request can say what must come back:
//
//   - sample k of a prompt that ends in token t: the tokens t+1+k, t+2+k, … (max_tokens of them, 16 when not given);
//   - a token's log probability, in samples, prompts and targets: -(token mod 8 + 1) / 8, exact in a float32;
//   - forward_backward: logprobs of each target token, and the metric "loss:sum" = Σ -logprob·weight (weights of 1
//     when there are none);
//   - optim_step: the metrics "step" (the request's seq_id) and "learning_rate".
//
// An empty prompt, targets of another length than their input and an unknown loss function are failures of the job,
// category user. Samples and forward_backward results are protobuf, all others JSON, as at the hosted server. What is
// asked for twice (same session, same sequence number) is one job, and one id.
type sdk struct {
	sim *Sim

	mu       sync.Mutex
	models   map[string]sdkModel   // by model id
	samplers map[string]sdkSampler // by sampling session id
	started  map[string]bool       // request ids
}

const maxSDKBody = 64 << 20 // bytes of a request, and of a generated result

func (s *Sim) sdkRoutes(mux *http.ServeMux) {
	k := &sdk{
		sim: s, models: make(map[string]sdkModel), samplers: make(map[string]sdkSampler), started: make(map[string]bool),
	}
	handle := func(pattern string, answer func(r *http.Request) (any, error)) {
		method, path, _ := strings.Cut(pattern, " ")
		mux.HandleFunc(method+" /api/v1/"+path, func(w http.ResponseWriter, r *http.Request) { k.serve(w, r, answer) })
	}
	fixed := func(v any) func(*http.Request) (any, error) {
		return func(r *http.Request) (any, error) {
			_, err := io.Copy(io.Discard, r.Body)
			return v, err
		}
	}
	handle("GET healthz", fixed(object{"status": "ok"}))
	handle("GET get_server_capabilities", fixed(object{"supported_models": []object{{"model_name": "sim", "max_context_length": 32768}}}))
	handle("POST client/config", fixed(object{})) // all of the SDK's own defaults
	handle("POST client/dynamic_config", fixed(object{"refresh_interval_sec": 300}))
	handle("POST telemetry", fixed(object{"status": "accepted"}))
	handle("POST session_heartbeat", fixed(object{"type": "session_heartbeat"}))
	handle("POST sessions/{id}/finish", fixed(object{}))
	handle("POST create_session", k.createSession)
	handle("POST create_model", k.createModel)
	handle("POST get_info", k.getInfo)
	handle("POST forward_backward", k.forwardBackward)
	handle("POST optim_step", k.optimStep)
	handle("POST save_weights_for_sampler", k.saveWeightsForSampler)
	handle("POST create_sampling_session", k.createSamplingSession)
	handle("GET samplers/{id}", k.getSampler)
	handle("POST asample", k.sample)
}

type object = map[string]any

// refusal is an answer other than 200.
type refusal struct {
	code   int
	detail string
}

func (e *refusal) Error() string { return e.detail }

func refuse(code int, format string, args ...any) error {
	return &refusal{code, fmt.Sprintf(format, args...)}
}

func (k *sdk) serve(w http.ResponseWriter, r *http.Request, answer func(*http.Request) (any, error)) {
	code, body := http.StatusOK, any(nil)
	var err error
	if k.sim.authorized(r) {
		r.Body = http.MaxBytesReader(w, r.Body, maxSDKBody)
		body, err = answer(r)
	} else {
		err = refuse(http.StatusUnauthorized, "the API key is missing or wrong")
	}
	if err != nil {
		code, body = http.StatusBadRequest, object{"detail": err.Error()}
		if refused := new(refusal); errors.As(err, &refused) {
			code = refused.code
		}
	}
	writeJSON(w, code, body)
}

func decode[T any](r *http.Request) (T, error) {
	var v T
	if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
		return v, refuse(http.StatusUnprocessableEntity, "the body is not the JSON that this endpoint takes: %v", err)
	}
	return v, nil
}

func (k *sdk) createSession(r *http.Request) (any, error) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return nil, err
	}
	// Random, not from the script's seed: a simulator that was restarted must not hand out ids whose results a bridge
	// may still keep.
	var random [16]byte
	rand.Read(random[:])
	session := uuid(binary.BigEndian.Uint64(random[:8]), binary.BigEndian.Uint64(random[8:]))
	return object{"type": "create_session", "session_id": session}, nil
}

func logprob(token int64) float32 { return -float32(token&7+1) / 8 }

func userFailure(format string, args ...any) Step {
	return Step{Answer: "failed", Category: "user", Message: fmt.Sprintf(format, args...)}
}

func jsonResult(v any) Step {
	body, err := json.Marshal(v)
	if err != nil {
		panic("sim: " + err.Error()) // only values that marshal are given
	}
	return Step{Answer: "completed", Style: "bare", Result: JSON(body)}
}

func protoResult(body []byte) Step {
	return Step{Answer: "completed", Style: "bare", Result: JSON(body), ContentType: protobufType}
}

// future starts the job of a request id, unless it was started before, and gives the SDK's promise of it.
func (k *sdk) future(id, modelID string, steps func() []Step) object {
	k.mu.Lock()
	if !k.started[id] {
		k.started[id] = true
		k.sim.play(id, steps())
	}
	k.mu.Unlock()
	answer := object{"request_id": id}
	if modelID != "" {
		answer["model_id"] = modelID
	}
	return answer
}
