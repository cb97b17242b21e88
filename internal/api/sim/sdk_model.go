package sim

import (
	"fmt"
	"io"
	"mime"
	"net/http"
)

type sdkModel struct {
	base string
	rank int
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

var lossFns = map[string]bool{"cross_entropy": true, "importance_sampling": true, "ppo": true, "cispo": true, "dro": true}

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

func (k *sdk) model(id string) (sdkModel, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	m, ok := k.models[id]
	if !ok {
		return m, refuse(http.StatusNotFound, "no model %q", id)
	}
	return m, nil
}
