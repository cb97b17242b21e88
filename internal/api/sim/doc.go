// Package sim is a scripted "retrieve future" upstream: an http.Handler that behaves, on command, like any of the
// servers the bridge may meet, and that counts what was asked of it. Tests, the demo and `bridge simulate` share it.
//
// # Jobs
//
// A job is one request id and its script: the steps of a profile, in order. A step lasts for a time ("for", counted
// from the end of the step before it, whether anybody polls or not) or for a number of answered polls ("polls", 1
// when neither is given); the last step lasts for ever. A poll is answered by the step that the job is in. A pending
// poll is held for style.hold, or until a step that is not pending begins.
//
// # Scripts
//
// A script is one JSON object (Parse, Load) or a Go literal (Script). Keys that are not known are errors. Durations
// are strings as time.ParseDuration reads them. Everything may be left out.
//
//	seed            number; ids, generated results, weights and noise follow from it
//	id_format       of minted ids: uuid (default) train sample req req32 fut hex int negative gw unload mixed
//	unknown         what an id gets that nobody made: create (default) 404 error try_again
//	path            where polls are answered, and nowhere else (default: the three paths under HTTP, below)
//	key_header      where an API key counts, and nowhere else: X-API-Key, or Authorization as "Bearer KEY" (default: either)
//	key_refusal     status for a wrong key: 401 (default) or 403; a missing one gets 401
//	require_headers names; a poll without one of them gets 400
//	style           the server's habits, below
//	rate_limit      {"per_second":200,"burst":20,"with":STEP}; beyond it polls get "with" (default: 429)
//	noise           [{"rate":0.01,"with":STEP}]: that share of all polls gets "with" instead; a STEP that has only
//	                a "wire" breaks the answer that was due
//	outages         [{"after":"30s","for":"3m","every":"1h","forget":true,"with":STEP}], counted from New; without
//	                "with" connections are refused; "forget" is a restart that loses all jobs
//	profiles        [{"name":…,"match":GLOB,"weight":3,"named_only":true,"style":STYLE,"steps":[STEP…]}]
//
// Which profile an id gets: those whose match (* any characters, ? one) fits compete by weight; if none fits, those
// without match do; if there is none, the built-in "default": active for 2 s, then completed. A named_only profile is
// only used by name (Mint, Add, POST /sim/jobs). A profile's style starts from the script's and changes what it names.
//
// STYLE:
//
//	hold               how long a pending poll is held (0)
//	latency            added before every answer (0)
//	pending_style      try_again (default), pending (200), 202, 408 (bare), 408_detail, 408_full
//	failure_style      flat (default; 200 {"error":"…","category":…}), enveloped (200 {"status":"failed","error":{…}}),
//	                   error_message (200), 400, 422, 500 (each {"detail":"…"})
//	result_style       enveloped (default; {"status":"completed","result":…}) or bare
//	retention          forever (default), once (destroyed by the first delivery), ended (for retention_ttl from the
//	                   job's end), delivered (for retention_ttl from the first delivery)
//	retention_ttl      duration
//	gone               what a destroyed result's id gets: 404 (default), error (200 "already retrieved"), 410, try_again
//	metadata_threshold bytes; larger answers are announced as complete_metadata to polls with allow_metadata_only
//	gzip               true: answers are compressed for whoever accepts it
//	ignore_disconnect  true: a held poll goes on after its client has left, and delivers to nobody
//
// STEP:
//
//	for, spread, polls how long (spread: up to so much longer, by the id's hash)
//	answer             pending (default), completed, failed, expired (410), status, empty, malformed, redirect,
//	                   reflect_key; "status":503 alone means status
//	style, hold        this step's pending_style, failure_style or result_style; this step's hold
//	state, reason      a pending answer's queue_state and queue_state_reason
//	fields             object: more fields of a pending answer (progress fields, null hints, reasons that are no string)
//	result             any JSON value, its bytes are sent as they stand here
//	result_bytes       size of a generated result (default 200)
//	content_type       of a result (application/json); with any other type its bytes are the whole body
//	message, category  of a failure (category user, server, unknown or anything else)
//	status, body       of answers status, empty, malformed, redirect, reflect_key; a body that is a string is sent as
//	                   its text, any other as its JSON; status without a body sends {"detail":…}, empty sends nothing
//	headers            object: more response headers
//	should_retry       true or false: x-should-retry
//	retry_after        Retry-After in whole seconds        retry_after_date  Retry-After as the HTTP date so far ahead
//	retry_after_ms     in the body                         retry_after_s     in the body
//	retry_after_ms_header  the retry-after-ms header
//	wire               ok (default), truncated (half the body, then the connection ends), dead (nothing, then it ends),
//	                   reset (as dead, by TCP RST), stall (half the body, then silence until the client leaves)
//	drip               the time over which the body is spread
//
// A result that goes out on any wire but ok counts as delivered: with retention once it is lost.
//
// # HTTP
//
//	POST /api/v1/retrieve_future, /api/v1/future/retrieve, /retrieve_future
//	POST /sim/jobs   {"count":N,"profile":…,"id_format":…,"ids":[…]} makes jobs → {"ids":[…]}
//	GET  /sim/stats  Stats as JSON; ?ids=1 adds counts and times of every id
//	POST /api/v1/create_session, create_model, forward_backward, optim_step, asample, …: what the official Tinker SDK
//	     calls to train and to sample; the type sdk says what comes back
package sim
