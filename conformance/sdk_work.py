"""Uses the official Tinker SDK, whichever version is on the path, as its documentation says, and prints what it got.

    sdk_work.py BASE_URL KEY      one JSON object on stdout

It runs as a process of its own because two versions of one package cannot live in one interpreter.
"""

from __future__ import annotations

import json
import sys

import tinker
from tinker import types

INPUTS, TARGETS, WEIGHTS = [11, 12, 13], [12, 13, 22], [1.0, 0.5, 0.25]
PROMPT, SAMPLES, MAX_TOKENS = [5, 6, 7], 2, 4
LEARNING_RATE = 1e-4


def wait(value):
    """Newer versions give futures where older ones gave the thing itself."""
    return value.result(timeout=60) if hasattr(value, "result") else value


def failure(start) -> dict:
    try:
        return {"error": None, "got": repr(wait(start()))}
    except tinker.RequestFailedError as e:
        return {"error": str(e), "category": str(e.category.value)}


def datum(targets: list[int]) -> types.Datum:
    return types.Datum(
        model_input=types.ModelInput.from_ints(INPUTS),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=targets, dtype="int64", shape=[len(targets)]),
            "weights": types.TensorData(data=WEIGHTS[: len(targets)], dtype="float32", shape=[len(targets)]),
        },
    )


def main(base_url: str, key: str) -> dict:
    service = tinker.ServiceClient(base_url=base_url, api_key=key)
    trainer = wait(service.create_lora_training_client(base_model="scripted", rank=8))

    # Both are sent before either is waited for: two requests in flight, as in a real training loop.
    forward_backward = trainer.forward_backward([datum(TARGETS), datum(TARGETS)], "cross_entropy")
    optim_step = trainer.optim_step(types.AdamParams(learning_rate=LEARNING_RATE))
    trained, stepped = wait(forward_backward), wait(optim_step)

    sampler = wait(trainer.save_weights_and_get_sampling_client())
    sampled = wait(
        sampler.sample(
            prompt=types.ModelInput.from_ints(PROMPT),
            num_samples=SAMPLES,
            sampling_params=types.SamplingParams(max_tokens=MAX_TOKENS),
            include_prompt_logprobs=True,
        )
    )
    return {
        "version": tinker.__version__,
        "sent": {
            "targets": TARGETS,
            "weights": WEIGHTS,
            "prompt": PROMPT,
            "samples": SAMPLES,
            "max_tokens": MAX_TOKENS,
            "learning_rate": LEARNING_RATE,
        },
        "forward_backward": {
            "logprobs": [list(map(float, output["logprobs"].data)) for output in trained.loss_fn_outputs],
            "metrics": dict(trained.metrics),
        },
        "optim_step": dict(stepped.metrics or {}),
        "sample": {
            "tokens": [list(s.tokens) for s in sampled.sequences],
            "logprobs": [s.logprobs and list(s.logprobs) for s in sampled.sequences],
            "stop_reasons": [s.stop_reason for s in sampled.sequences],
            "prompt_logprobs": sampled.prompt_logprobs and list(sampled.prompt_logprobs),
        },
        # The simulator fails the first for its targets' length, the stub of hatchery-core for knowing no such work.
        "failure": failure(lambda: trainer.forward([datum(TARGETS[:-1])], "cross_entropy")),
    }


if __name__ == "__main__":
    json.dump(main(sys.argv[1], sys.argv[2]), sys.stdout)
