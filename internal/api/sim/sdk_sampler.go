package sim

import (
	"fmt"
	"math"
	"net/http"
	"strings"
)

type sdkSampler struct{ base, path string }

// defaultTokens is how long a sample is whose request does not say.
const defaultTokens = 16

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
