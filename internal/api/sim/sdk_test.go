package sim

import (
	"encoding/json"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheSDKsRoutesStartWorkThatRetrieveFutureAnswers(t *testing.T) {
	c := newSDKClient(t)
	model := c.session + ":train:0"
	tests := []struct {
		name, path  string
		body        string
		id          string
		states      []string
		contentType string
		result      string
	}{
		{
			name: "create_model", path: "create_model",
			body:   `{"session_id":"` + c.session + `","model_seq_id":0,"base_model":"base","lora_config":{"rank":8},"type":"create_model"}`,
			id:     model + ":0",
			states: []string{"active"}, contentType: "application/json",
			result: `{"model_id":"` + model + `","type":"create_model"}`,
		},
		{
			name: "forward_backward", path: "forward_backward",
			body:   string(forwardBackwardBody(model, 1, "cross_entropy", []int32{1, 2}, []int64{2, 8}, []float32{1, 0.5})),
			id:     model + ":1",
			states: []string{"paused_capacity", "active"}, contentType: protobufType,
			// Tokens 2 and 8: -3/8 and -1/8; the loss is 3/8 + 1/16.
			result: string(forwardBackwardOutput([][]float32{{-0.375, -0.125}}, map[string]float64{"loss:sum": 0.4375})),
		},
		{
			name: "optim_step", path: "optim_step",
			body: `{"adam_params":{"learning_rate":0.0001,"beta1":0.9},"model_id":"` + model + `","seq_id":2,"type":"optim_step"}`,
			id:   model + ":2", contentType: "application/json",
			result: `{"metrics":{"learning_rate":0.0001,"step":2}}`,
		},
		{
			name: "save_weights_for_sampler without a path", path: "save_weights_for_sampler",
			body:   `{"model_id":"` + model + `","sampling_session_seq_id":0,"seq_id":3}`,
			id:     model + ":3",
			states: []string{"active"}, contentType: "application/json",
			result: `{"sampling_session_id":"` + c.session + `:sample:0","type":"save_weights_for_sampler"}`,
		},
		{
			name: "save_weights_for_sampler with a path", path: "save_weights_for_sampler",
			body:   `{"model_id":"` + model + `","path":"first","seq_id":4}`,
			id:     model + ":4",
			states: []string{"active"}, contentType: "application/json",
			result: `{"path":"tinker://` + model + `/sampler_weights/first","type":"save_weights_for_sampler"}`,
		},
		{
			name: "asample", path: "asample",
			body:   `{"sampling_session_id":"` + c.session + `:sample:0","seq_id":7,"num_samples":2,"prompt_logprobs":true,"prompt":{"chunks":[{"tokens":[5],"type":"encoded_text"},{"tokens":[6,7]}]},"sampling_params":{"max_tokens":2}}`,
			id:     c.session + ":sample:0:7",
			states: []string{"active"}, contentType: protobufType,
			result: string(sampleResponse([]sequence{
				{tokens: []int32{8, 9}, logprobs: []float32{-0.125, -0.25}},
				{tokens: []int32{9, 10}, logprobs: []float32{-0.25, -0.375}},
			}, []float32{float32(math.NaN()), -0.875, -1})),
		},
	}
	for _, tt := range tests { // in order: later ones use what earlier ones made
		t.Run(tt.name, func(t *testing.T) {
			for range 2 { // a request that is sent again is the same job
				code, answer := c.post(tt.path, tt.body)
				require.Equal(t, http.StatusOK, code, answer)
				require.Equal(t, tt.id, member(t, answer, "request_id"))
			}
			states, contentType, result := c.retrieve(tt.id)
			require.Equal(t, tt.states, states)
			require.Equal(t, tt.contentType, contentType)
			require.Equal(t, tt.result, result)
		})
	}
}

func TestASamplingSessionOfSavedWeightsHasTheModelsBase(t *testing.T) {
	c := newSDKClient(t)
	c.post("create_model", `{"session_id":"`+c.session+`","model_seq_id":0,"base_model":"base"}`)
	code, answer := c.post("create_sampling_session",
		`{"session_id":"`+c.session+`","sampling_session_seq_id":4,"model_path":"tinker://`+c.session+`:train:0/sampler_weights/first"}`)
	require.Equal(t, http.StatusOK, code, answer)
	id := member(t, answer, "sampling_session_id")
	require.Equal(t, c.session+":sample:4", id)
	_, answer = c.do(http.MethodGet, "samplers/"+id, "")
	require.Equal(t, "base", member(t, answer, "base_model"))
}

func TestWorkThatCannotBeDoneIsAFailureOfTheUser(t *testing.T) {
	c := newSDKClient(t)
	model, sampler := c.session+":train:0", c.session+":sample:0"
	c.post("create_model", `{"session_id":"`+c.session+`","model_seq_id":0,"base_model":"base"}`)
	c.post("create_sampling_session", `{"session_id":"`+c.session+`","sampling_session_seq_id":0,"base_model":"base"}`)
	for name, tt := range map[string]struct{ path, body, message string }{
		"empty prompt": {
			"asample", `{"sampling_session_id":"` + sampler + `","seq_id":0,"num_samples":1,"prompt":{"chunks":[]},"sampling_params":{}}`,
			"the prompt is empty",
		},
		"unknown loss function": {
			"forward_backward", string(forwardBackwardBody(model, 1, "hinge", []int32{1}, []int64{2}, nil)),
			`unknown loss_fn "hinge"`,
		},
		"targets of another length": {
			"forward_backward", string(forwardBackwardBody(model, 2, "cross_entropy", []int32{1, 2}, []int64{2}, nil)),
			"datum 0: 1 target tokens for 2 input tokens",
		},
	} {
		t.Run(name, func(t *testing.T) {
			code, answer := c.post(tt.path, tt.body)
			require.Equal(t, http.StatusOK, code, answer)
			_, _, result := c.retrieve(member(t, answer, "request_id"))
			require.Equal(t, tt.message, member(t, result, "error"))
			require.Equal(t, "user", member(t, result, "category"))
		})
	}
}

func TestTheSDKsRoutesRefuseWhatIsNoRequest(t *testing.T) {
	c := newSDKClient(t)
	c.post("create_model", `{"session_id":"`+c.session+`","model_seq_id":0,"base_model":"base"}`)
	c.post("create_sampling_session", `{"session_id":"`+c.session+`","sampling_session_seq_id":0,"base_model":"base"}`)
	sampler := `{"sampling_session_id":"` + c.session + `:sample:0","prompt":{"chunks":[{"tokens":[1]}]},`
	for name, tt := range map[string]struct {
		path, body string
		code       int
	}{
		"not JSON":                  {"create_model", "create a model", http.StatusUnprocessableEntity},
		"unknown model":             {"optim_step", `{"model_id":"nobody","seq_id":1}`, http.StatusNotFound},
		"unknown model, info":       {"get_info", `{"model_id":"nobody"}`, http.StatusNotFound},
		"unknown model, saving":     {"save_weights_for_sampler", `{"model_id":"nobody"}`, http.StatusNotFound},
		"unknown model, path":       {"create_sampling_session", `{"session_id":"s","model_path":"tinker://nobody/x"}`, http.StatusNotFound},
		"unknown model, protobuf":   {"forward_backward", string(forwardBackwardBody("nobody", 1, "ppo", nil, nil, nil)), http.StatusNotFound},
		"unknown sampling session":  {"asample", `{"sampling_session_id":"nobody","num_samples":1}`, http.StatusNotFound},
		"no samples":                {"asample", sampler + `"num_samples":0}`, http.StatusUnprocessableEntity},
		"no tokens":                 {"asample", sampler + `"num_samples":1,"sampling_params":{"max_tokens":0}}`, http.StatusUnprocessableEntity},
		"more than memory can hold": {"asample", sampler + `"num_samples":1000000,"sampling_params":{"max_tokens":1000000}}`, http.StatusUnprocessableEntity},
		"malformed protobuf":        {"forward_backward", "\x0a\xff", http.StatusUnprocessableEntity},
	} {
		t.Run(name, func(t *testing.T) {
			code, answer := c.post(tt.path, tt.body)
			require.Equal(t, tt.code, code, answer)
			require.NotEmpty(t, member(t, answer, "detail"))
		})
	}
	t.Run("forward_backward as JSON", func(t *testing.T) {
		res, err := http.Post(c.url+"/api/v1/forward_backward", "application/json", strings.NewReader("{}"))
		require.NoError(t, err)
		res.Body.Close()
		require.Equal(t, http.StatusUnsupportedMediaType, res.StatusCode)
	})
}

func TestTheSDKsRoutesAskForTheKey(t *testing.T) {
	server := httptest.NewServer(New(Script{}, WithAPIKey("tml-right")))
	defer server.Close()
	for key, code := range map[string]int{"tml-right": http.StatusOK, "tml-wrong": http.StatusUnauthorized, "": http.StatusUnauthorized} {
		req, err := http.NewRequest(http.MethodPost, server.URL+"/api/v1/create_session", strings.NewReader("{}"))
		require.NoError(t, err)
		req.Header.Set("X-API-Key", key)
		res, err := server.Client().Do(req)
		require.NoError(t, err)
		res.Body.Close()
		require.Equal(t, code, res.StatusCode, key)
	}
}

func TestNoPrefixOfAForwardBackwardRequestPanics(t *testing.T) {
	body := forwardBackwardBody("model", 1, "cross_entropy", []int32{1, 2}, []int64{2, 3}, []float32{1, 1})
	for n := range body {
		_, _ = parseForwardBackward(body[:n])
	}
	req, err := parseForwardBackward(body)
	require.NoError(t, err)
	require.Equal(t, &forwardBackwardRequest{
		modelID: "model", seqID: 1, lossFn: "cross_entropy",
		data: []datum{{inputs: 2, targets: []int64{2, 3}, weights: []float32{1, 1}}},
	}, req)
}

// forwardBackwardBody is what the SDK sends for one datum.
func forwardBackwardBody(model string, seq int, lossFn string, inputs []int32, targets []int64, weights []float32) []byte {
	tensor := func(name string, data []byte, dtype uint64) []byte {
		msg := appendVarint(appendBytes(nil, 1, data), 3, dtype)
		return appendBytes(appendBytes(nil, 1, []byte(name)), 2, msg)
	}
	text := appendBytes(nil, 1, appendBytes(nil, 1, packed(inputs)))
	datum := appendBytes(nil, 1, text)
	datum = appendBytes(datum, 2, tensor("target_tokens", packed(targets), dtypeInt64))
	if weights != nil {
		datum = appendBytes(datum, 2, tensor("weights", packed(weights), dtypeFloat32))
	}
	msg := appendBytes(nil, 1, []byte(model))
	msg = appendVarint(msg, 2, uint64(seq))
	msg = appendBytes(msg, 3, datum)
	return appendBytes(msg, 4, []byte(lossFn))
}

type sdkClient struct {
	t       *testing.T
	url     string
	client  *http.Client
	session string
}

func newSDKClient(t *testing.T) *sdkClient {
	server := httptest.NewServer(New(Script{}))
	t.Cleanup(server.Close)
	c := &sdkClient{t: t, url: server.URL, client: server.Client()}
	for _, path := range []string{"client/config", "client/dynamic_config", "telemetry", "session_heartbeat", "sessions/x/finish"} {
		code, answer := c.post(path, `{"sdk_version":"0"}`)
		require.Equal(t, http.StatusOK, code, path+answer)
	}
	for _, path := range []string{"healthz", "get_server_capabilities"} {
		code, answer := c.do(http.MethodGet, path, "")
		require.Equal(t, http.StatusOK, code, path+answer)
	}
	_, answer := c.post("create_session", `{"tags":[],"sdk_version":"0"}`)
	c.session = member(t, answer, "session_id")
	return c
}

func (c *sdkClient) post(path, body string) (int, string) { return c.do(http.MethodPost, path, body) }

func (c *sdkClient) do(method, path, body string) (int, string) {
	req, err := http.NewRequest(method, c.url+"/api/v1/"+path, strings.NewReader(body))
	require.NoError(c.t, err)
	req.Header.Set("Content-Type", "application/json")
	if path == "forward_backward" {
		req.Header.Set("Content-Type", protobufType)
	}
	res, err := c.client.Do(req)
	require.NoError(c.t, err)
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	require.NoError(c.t, err)
	return res.StatusCode, string(answer)
}

// retrieve polls until there is an answer other than try_again; states are those of the answers before it.
func (c *sdkClient) retrieve(id string) (states []string, contentType, body string) {
	for range 10 {
		res, err := c.client.Post(c.url+"/api/v1/retrieve_future", "application/json", strings.NewReader(`{"request_id":`+quote(id)+`}`))
		require.NoError(c.t, err)
		answer, err := io.ReadAll(res.Body)
		res.Body.Close()
		require.NoError(c.t, err)
		contentType, body = res.Header.Get("Content-Type"), string(answer)
		if contentType != "application/json" || member(c.t, body, "type") != "try_again" {
			return states, contentType, body
		}
		states = append(states, member(c.t, body, "queue_state"))
	}
	c.t.Fatal("still pending after ten polls")
	return nil, "", ""
}

// member is a string member of a JSON object, "" when there is none.
func member(t *testing.T, body, name string) string {
	var fields map[string]any
	require.NoError(t, json.Unmarshal([]byte(body), &fields), body)
	value, _ := fields[name].(string)
	return value
}
