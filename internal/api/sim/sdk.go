package sim

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
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

type sdkModel struct {
	base string
	rank int
}

type sdkSampler struct{ base, path string }

const (
	maxSDKBody    = 64 << 20 // bytes of a request, and of a generated result
	defaultTokens = 16
)

var lossFns = map[string]bool{"cross_entropy": true, "importance_sampling": true, "ppo": true, "cispo": true, "dro": true}

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
	w.Header().Set("Content-Type", jsonType[0])
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // a client that has left needs no answer
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

func (k *sdk) createModel(r *http.Request) (any, error) {
	req, err := decode[struct {
		SessionID  string `json:"session_id"`
		ModelSeqID int    `json:"model_seq_id"`
		BaseModel  string `json:"base_model"`
		LoraConfig struct {
			Rank int `json:"rank"`
		} `json:"lora_config"`
	}](r)
	if err != nil {
		return nil, err
	}
	id := fmt.Sprintf("%s:train:%d", req.SessionID, req.ModelSeqID)
	k.mu.Lock()
	k.models[id] = sdkModel{base: req.BaseModel, rank: req.LoraConfig.Rank}
	k.mu.Unlock()
	return k.future(id+":0", id, func() []Step {
		return []Step{{State: "active"}, jsonResult(object{"type": "create_model", "model_id": id})}
	}), nil
}

func (k *sdk) getInfo(r *http.Request) (any, error) {
	req, err := decode[struct {
		ModelID string `json:"model_id"`
	}](r)
	if err != nil {
		return nil, err
	}
	m, err := k.model(req.ModelID)
	return object{
		"type": "get_info", "model_id": req.ModelID, "model_name": m.base, "is_lora": true, "lora_rank": m.rank,
		"model_data": object{"arch": "sim", "model_name": m.base, "tokenizer_id": m.base},
	}, err
}

func (k *sdk) forwardBackward(r *http.Request) (any, error) {
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t != protobufType {
		return nil, refuse(http.StatusUnsupportedMediaType, "send %s, as the SDK does from 0.25 on", protobufType)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	req, err := parseForwardBackward(body)
	if err != nil {
		return nil, refuse(http.StatusUnprocessableEntity, "the body is no ForwardBackwardRequest: %v", err)
	}
	if _, err := k.model(req.modelID); err != nil {
		return nil, err
	}
	return k.future(fmt.Sprintf("%s:%d", req.modelID, req.seqID), req.modelID, func() []Step {
		return []Step{
			{State: "paused_capacity", Reason: "all workers are busy"},
			{State: "active"},
			req.run(),
		}
	}), nil
}

func (req *forwardBackwardRequest) run() Step {
	if !lossFns[req.lossFn] {
		return userFailure("unknown loss_fn %q", req.lossFn)
	}
	var loss float64
	logprobs := make([][]float32, len(req.data))
	for i, d := range req.data {
		if len(d.targets) != d.inputs {
			return userFailure("datum %d: %d target tokens for %d input tokens", i, len(d.targets), d.inputs)
		}
		for j, token := range d.targets {
			weight := 1.0
			if j < len(d.weights) {
				weight = float64(d.weights[j])
			}
			logprobs[i] = append(logprobs[i], logprob(token))
			loss -= float64(logprob(token)) * weight
		}
	}
	return protoResult(forwardBackwardOutput(logprobs, map[string]float64{"loss:sum": loss}))
}

func (k *sdk) optimStep(r *http.Request) (any, error) {
	req, err := decode[struct {
		ModelID    string `json:"model_id"`
		SeqID      int    `json:"seq_id"`
		AdamParams struct {
			LearningRate float64 `json:"learning_rate"`
		} `json:"adam_params"`
	}](r)
	if err != nil {
		return nil, err
	}
	if _, err := k.model(req.ModelID); err != nil {
		return nil, err
	}
	return k.future(fmt.Sprintf("%s:%d", req.ModelID, req.SeqID), req.ModelID, func() []Step {
		return []Step{jsonResult(object{"metrics": object{"step": req.SeqID, "learning_rate": req.AdamParams.LearningRate}})}
	}), nil
}

func (k *sdk) saveWeightsForSampler(r *http.Request) (any, error) {
	req, err := decode[struct {
		ModelID              string `json:"model_id"`
		SeqID                int    `json:"seq_id"`
		Path                 string `json:"path"`
		SamplingSessionSeqID *int   `json:"sampling_session_seq_id"`
	}](r)
	if err != nil {
		return nil, err
	}
	m, err := k.model(req.ModelID)
	if err != nil {
		return nil, err
	}
	result := object{"type": "save_weights_for_sampler"}
	if req.SamplingSessionSeqID != nil {
		// The SDK wants a sampler of the weights as they are now, and no path.
		session, _, _ := strings.Cut(req.ModelID, ":")
		result["sampling_session_id"] = k.addSampler(session, *req.SamplingSessionSeqID, sdkSampler{base: m.base})
	} else {
		result["path"] = fmt.Sprintf("tinker://%s/sampler_weights/%s", req.ModelID, req.Path)
	}
	return k.future(fmt.Sprintf("%s:%d", req.ModelID, req.SeqID), req.ModelID, func() []Step {
		return []Step{{State: "active"}, jsonResult(result)}
	}), nil
}

func (k *sdk) createSamplingSession(r *http.Request) (any, error) {
	req, err := decode[struct {
		SessionID            string `json:"session_id"`
		SamplingSessionSeqID int    `json:"sampling_session_seq_id"`
		BaseModel            string `json:"base_model"`
		ModelPath            string `json:"model_path"`
	}](r)
	if err != nil {
		return nil, err
	}
	s := sdkSampler{base: req.BaseModel, path: req.ModelPath}
	if s.path != "" {
		id, _, _ := strings.Cut(strings.TrimPrefix(s.path, "tinker://"), "/")
		m, err := k.model(id)
		if err != nil {
			return nil, err
		}
		s.base = m.base
	}
	id := k.addSampler(req.SessionID, req.SamplingSessionSeqID, s)
	return object{"type": "create_sampling_session", "sampling_session_id": id}, nil
}

func (k *sdk) getSampler(r *http.Request) (any, error) {
	id := r.PathValue("id")
	s, err := k.sampler(id)
	return object{"sampler_id": id, "base_model": s.base, "model_path": s.path}, err
}

func (k *sdk) sample(r *http.Request) (any, error) {
	req, err := decode[struct {
		SamplingSessionID string `json:"sampling_session_id"`
		SeqID             int64  `json:"seq_id"`
		NumSamples        int    `json:"num_samples"`
		PromptLogprobs    bool   `json:"prompt_logprobs"`
		Prompt            struct {
			Chunks []struct {
				Tokens []int32 `json:"tokens"`
			} `json:"chunks"`
		} `json:"prompt"`
		SamplingParams struct {
			MaxTokens *int `json:"max_tokens"`
		} `json:"sampling_params"`
	}](r)
	if err != nil {
		return nil, err
	}
	if _, err := k.sampler(req.SamplingSessionID); err != nil {
		return nil, err
	}
	var prompt []int32
	for _, chunk := range req.Prompt.Chunks {
		prompt = append(prompt, chunk.Tokens...)
	}
	tokens := defaultTokens
	if req.SamplingParams.MaxTokens != nil {
		tokens = *req.SamplingParams.MaxTokens
	}
	if req.NumSamples < 1 || tokens < 1 || req.NumSamples > maxSDKBody/8 || tokens > maxSDKBody/8/req.NumSamples {
		return nil, refuse(http.StatusUnprocessableEntity, "%d samples of %d tokens: not possible", req.NumSamples, tokens)
	}
	id := fmt.Sprintf("%s:%d", req.SamplingSessionID, req.SeqID)
	answer := k.future(id, "", func() []Step {
		steps := []Step{{State: "active"}}
		if len(prompt) == 0 {
			return append(steps, userFailure("the prompt is empty"))
		}
		return append(steps, sampled(prompt, req.NumSamples, tokens, req.PromptLogprobs))
	})
	sequences := make([]string, req.NumSamples)
	for i := range sequences {
		sequences[i] = fmt.Sprintf("%s:%d", id, i)
	}
	answer["sample_sequence_ids"] = sequences
	return answer, nil
}

func sampled(prompt []int32, samples, length int, promptLogprobs bool) Step {
	last := prompt[len(prompt)-1]
	sequences := make([]sequence, samples)
	for k := range sequences {
		for j := range length {
			token := last + 1 + int32(k) + int32(j)
			sequences[k].tokens = append(sequences[k].tokens, token)
			sequences[k].logprobs = append(sequences[k].logprobs, logprob(int64(token)))
		}
	}
	var ofPrompt []float32
	if promptLogprobs {
		ofPrompt = append(ofPrompt, float32(math.NaN())) // nothing comes before the first
		for _, token := range prompt[1:] {
			ofPrompt = append(ofPrompt, logprob(int64(token)))
		}
	}
	return protoResult(sampleResponse(sequences, ofPrompt))
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

func (k *sdk) model(id string) (sdkModel, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	m, ok := k.models[id]
	if !ok {
		return m, refuse(http.StatusNotFound, "no model %q", id)
	}
	return m, nil
}

func (k *sdk) addSampler(session string, seq int, s sdkSampler) (id string) {
	id = fmt.Sprintf("%s:sample:%d", session, seq)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.samplers[id] = s
	return id
}

func (k *sdk) sampler(id string) (sdkSampler, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s, ok := k.samplers[id]
	if !ok {
		return s, refuse(http.StatusNotFound, "no sampling session %q", id)
	}
	return s, nil
}
