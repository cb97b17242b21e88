"""The checks of `make conformance`. run.sh prepares what they need and calls

    check.py --bridge BINARY --overlays DIR [GROUP…]

Groups: sdk, foreign, nats, examples; all of them when none is named.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from examples import extract, run, run_examples
from harness import HERE, ROOT, Process, Report, equal, free_port, is_free, serving, simulator
from proxy import Exchange, RecordingProxy
from subscriber import REJECTED, RESULTS, TERMINAL, Message, Subscriber, as_message

# hatchery-core takes and gives JSON where the SDK speaks nothing but protobuf from 0.25 on, so this is the last
# version that can train there. The simulator is for those that come after.
LAST_JSON_SDK = (0, 24, 1)
LIMIT = 240  # seconds for everything; each wait has a limit of its own
KEY = "tml-" + uuid.uuid4().hex  # the SDK only takes keys that begin so


class Setup:
    def __init__(self, bridge: Path, overlays: Path) -> None:
        self.bridge, self.overlays = bridge, overlays

    def sdks(self) -> list[tuple[int, ...]]:
        found = [tuple(map(int, d.name.removeprefix("tinker-").split("."))) for d in self.overlays.glob("tinker-*")]
        assert len(found) >= 3, f"{self.overlays} has only {len(found)} versions of tinker: run conformance/run.sh"
        return sorted(found)

    def overlay(self, package: str) -> dict[str, str]:
        (directory,) = self.overlays.glob(package)
        return {"PYTHONPATH": str(directory)}

    def work(self, sdk: tuple[int, ...], url: str) -> dict:
        """What the SDK of that version got from the server at url."""
        env = os.environ | self.overlay("tinker-" + dotted(sdk))
        done = subprocess.run(
            [sys.executable, HERE / "sdk_work.py", url, KEY], env=env, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, f"the SDK failed:\n{done.stderr[-3000:]}"
        got = json.loads(done.stdout)
        equal(got["version"], dotted(sdk), "SDK version")
        return got


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


# ---- sdk: the official SDK against `bridge simulate` -----------------------------------------------------------


async def check_sdk(setup: Setup, report: Report) -> None:
    with simulator(setup.bridge) as upstream, serving(setup.bridge, upstream) as nats_url:
        for sdk in setup.sdks():
            if sdk <= LAST_JSON_SDK:
                continue
            label = f"sdk {dotted(sdk)}"
            with RecordingProxy(upstream) as proxy:
                got = None
                with report.check(f"{label}: trains, samples and meets a failure at the simulator"):
                    got = setup.work(sdk, proxy.url)
                if got is None:
                    continue
                check_scripted(report, label, got, proxy)
                await check_results(report, label, nats_url, proxy)


def logprob(token: int) -> float:
    return -(token % 8 + 1) / 8


def check_scripted(report: Report, label: str, got: dict, proxy: RecordingProxy) -> None:
    """What the simulator's model makes of a request is arithmetic; here it is done a second time."""
    sent = got["sent"]
    with report.check(f"{label}: forward_backward gave what was scripted"):
        row = [logprob(t) for t in sent["targets"]]
        loss = 2 * sum(-lp * w for lp, w in zip(row, sent["weights"], strict=True))  # two equal data were sent
        equal(got["forward_backward"], {"logprobs": [row, row], "metrics": {"loss:sum": loss}})
    with report.check(f"{label}: optim_step gave what was scripted"):
        equal(got["optim_step"], {"step": 2, "learning_rate": sent["learning_rate"]})
    with report.check(f"{label}: sample gave what was scripted"):
        last, count = sent["prompt"][-1], sent["max_tokens"]
        tokens = [[last + 1 + k + j for j in range(count)] for k in range(sent["samples"])]
        equal(
            got["sample"],
            {
                "tokens": tokens,
                "logprobs": [[logprob(t) for t in row] for row in tokens],
                "stop_reasons": ["length"] * sent["samples"],
                "prompt_logprobs": [None] + [logprob(t) for t in sent["prompt"][1:]],
            },
        )
    with report.check(f"{label}: a failed job is the user's failure"):
        equal(got["failure"]["category"], "user")
        assert "2 target tokens for 3 input tokens" in got["failure"]["error"], got["failure"]
    with report.check(f"{label}: waited through the scripted queue states"):
        states = [(op, [state_of(e) for e in proxy.answers(id) if e.is_try_again()]) for op, id in proxy.started()]
        equal(
            states,
            [
                ("create_model", ["active"]),
                ("forward_backward", ["paused_capacity", "active"]),
                ("optim_step", []),
                ("save_weights_for_sampler", ["active"]),
                ("asample", ["active"]),
                ("forward_backward", ["paused_capacity", "active"]),
            ],
        )


def state_of(exchange: Exchange) -> str:
    return json.loads(exchange.content)["queue_state"]


# ---- what the SDK got and what the bridge publishes for the same ids --------------------------------------------


async def check_results(report: Report, label: str, nats_url: str, proxy: RecordingProxy) -> None:
    """Submits every id that the SDK retrieved, and compares the results with the bytes that the SDK got."""
    finals = proxy.final_answers()
    types = proxy.request_types()
    async with Subscriber(nats_url) as bridge:
        for request_id in finals:
            await bridge.submit(request_id, types[request_id])
        for request_id, seen in finals.items():
            with report.check(f"{label}: {types[request_id]} through the bridge equals what the SDK got"):
                same_result(await bridge.result(request_id), seen)


def same_result(result: Message, seen: Exchange) -> None:
    failed = "json" in seen.content_type and "error" in json.loads(seen.content)
    if failed:
        equal(result.status, "failed")
        equal(result.json["message"], json.loads(seen.content)["error"])
        equal(result.json["type"], "request_failed")
        equal(result.json["category"], "user")
        return
    equal(result.status, "completed")
    equal(result.data, seen.content)
    equal(result.headers["Content-Type"], seen.content_type)


# ---- foreign: the bridge against a server that somebody else wrote ----------------------------------------------


async def check_foreign(setup: Setup, report: Report) -> None:
    port = free_port()
    hatchery = Process(
        "hatchery",
        [sys.executable, "-m", "hatchery.core.local_dev"],
        env=setup.overlay("hatchery-core-*")
        | {"HATCHERY_DEV_NO_GPU": "1", "HATCHERY_DEV_PORT": str(port), "HATCHERY_DEV_API_KEY": KEY},
        ready=f"http://127.0.0.1:{port}/v1/health",
    )
    upstream = f"http://127.0.0.1:{port}"
    with hatchery, RecordingProxy(upstream) as proxy, serving(setup.bridge, upstream, key=KEY) as nats_url:
        label = f"hatchery, sdk {dotted(LAST_JSON_SDK)}"
        # Each id goes to the bridge the moment the server gives it out, so that SDK and bridge wait for it together.
        loop = asyncio.get_running_loop()
        async with Subscriber(nats_url) as bridge:
            submitted = []
            proxy.on_started = lambda op, request_id: submitted.append(
                asyncio.run_coroutine_threadsafe(bridge.submit(request_id), loop)
            )
            got = None
            with report.check(f"{label}: trains, samples and meets a failure"):
                got = await asyncio.to_thread(setup.work, LAST_JSON_SDK, proxy.url)
            if got is None:
                return
            for submission in submitted:
                await asyncio.wrap_future(submission)
            finals, types = proxy.final_answers(), proxy.request_types()
            results = {}
            for request_id, seen in finals.items():
                with report.check(f"{label}: {types[request_id]} through the bridge equals what the SDK got"):
                    results[types[request_id]] = await bridge.result(request_id)
                    same_result(results[types[request_id]], seen)
            with report.check(f"{label}: all kinds of work were among them"):
                equal(
                    set(results),
                    {"CreateModel", "ForwardBackward", "OptimStep", "SaveWeightsForSampler", "Sample", "Forward"},
                )
            with report.check(f"{label}: the values are those that the SDK's objects have"):
                equal(results["ForwardBackward"].json["metrics"], got["forward_backward"]["metrics"])
                equal(results["OptimStep"].json["metrics"], got["optim_step"])
                equal([s["tokens"] for s in results["Sample"].json["sequences"]], got["sample"]["tokens"])
            with report.check("hatchery: an id that it does not know ends as failed, after the grace"):
                await bridge.submit("fut_" + "0" * 32)
                result = await bridge.result("fut_" + "0" * 32, seconds=40)
                equal((result.status, result.json["http_status"]), ("failed", 404))


# ---- nats: nats-py as submitter and consumer --------------------------------------------------------------------

STRANGE_IDS = ["with space", "a.b.c", "*", ">", "a/b", "größe-日本", "-5", "=", "~x", "x" * 1000]


async def check_nats(setup: Setup, report: Report) -> None:
    with simulator(setup.bridge) as upstream, serving(setup.bridge, upstream) as nats_url:
        async with Subscriber(nats_url) as bridge:
            live: list[Message] = []

            async def on_result(msg: Msg) -> None:
                live.append(as_message(msg))

            await bridge.nc.subscribe("tinker.result.*", cb=on_result)
            await bridge.nc.flush()

            forms = {
                "plain": (b" plain \n", None),
                "json": (json.dumps({"request_id": "json", "request_type": "Sample", "timeout_ms": 60000}).encode(), None),
                "header": (b"ignored", {"Bridge-Request-Id": "header"}),
            }
            with report.check("nats-py: submits as plain text, as JSON and by header"):
                for data, headers in forms.values():
                    ack = await bridge.js.publish("tinker.submit", data, headers=headers)
                    equal(ack.stream, "TINKER_WORK")
                await bridge.js.publish("tinker.submit.team.a", b"routed")
                for request_id in STRANGE_IDS:
                    await bridge.js.publish("tinker.submit", json.dumps({"request_id": request_id}).encode())
                await bridge.js.publish("tinker.submit", b"plain")  # once more: still one result

            ids = [*forms, "routed", *STRANGE_IDS]
            results: dict[str, Message] = {}
            for request_id in ids:
                with report.check(f"nats-py: the result of {request_id[:20]!r} is in its stream"):
                    result = await bridge.result(request_id)
                    equal((result.request_id, result.status), (request_id, "completed"))
                    assert result.data, "the result is empty"
                    results[request_id] = result
            with report.check("nats-py: a core subscriber saw each of them once, with the same bytes"):
                async with asyncio.timeout(10):
                    while len(live) < len(ids):
                        await asyncio.sleep(0.05)
                await bridge.nc.flush()
                equal(sorted(m.request_id for m in live), sorted(ids))
                for m in live:
                    equal((m.data, m.seq), (results[m.request_id].data, results[m.request_id].seq), m.request_id)
            with report.check("nats-py: a log replays from its start to its closing record"):
                await check_history(await bridge.history("plain"), results["plain"])
            with report.check("nats-py: two workers of one durable consumer share the results"):
                equal(sorted(await durable_group(bridge, len(ids))), sorted(ids))
            for name, data, headers in (
                ("empty", b"", None),
                ("not UTF-8", b"\xff\xfe", None),
                ("JSON without request_id", b'{"id":"x"}', None),
                ("negative time-out", b"x", {"Bridge-Timeout-Ms": "-1"}),
            ):
                with report.check(f"nats-py: a submission that is {name} comes back as rejected, whole"):
                    ack = await bridge.js.publish("tinker.submit", data, headers=headers)
                    rejected = await last_within(bridge, REJECTED, f"tinker.rejected.{ack.seq}")
                    equal(rejected.data, data)
                    assert rejected.headers["Bridge-Rejected-Reason"], "no reason"


async def check_history(log: list[Message], result: Message) -> None:
    *states, closing = log
    assert states, "the log has only its closing record"
    equal([m.json["queue_state"] for m in states], ["active"])
    equal({m.request_id for m in log}, {result.request_id})
    assert [m.seq for m in log] == sorted({m.seq for m in log}), "sequence numbers do not grow"
    assert not any(m.status in TERMINAL for m in states)
    equal(closing.json["status"], result.status)
    want = {"stream": RESULTS, "seq": result.seq, "bytes": len(result.data)}
    equal({k: closing.json["result"][k] for k in want}, want)


async def durable_group(bridge: Subscriber, expected: int) -> list[str]:
    config = ConsumerConfig(durable_name="workers", ack_policy=AckPolicy.EXPLICIT, filter_subject="tinker.result.*")
    await bridge.js.add_consumer(RESULTS, config)
    seen: list[str] = []

    async def worker() -> None:
        subscription = await bridge.js.pull_subscribe_bind(durable="workers", stream=RESULTS)
        while len(seen) < expected:
            try:
                messages = await subscription.fetch(2, timeout=0.5)
            except TimeoutError:
                continue
            for msg in messages:
                seen.append(msg.headers["Bridge-Request-Id"])
                await msg.ack_sync()

    async with asyncio.timeout(30):
        await asyncio.gather(worker(), worker())
    info = await bridge.js.consumer_info(RESULTS, "workers")
    equal((info.num_pending, info.num_ack_pending), (0, 0), "left over")
    return seen


async def last_within(bridge: Subscriber, stream: str, subject: str, seconds: float = 20) -> Message:
    async with asyncio.timeout(seconds):
        while not (message := await bridge.last(stream, subject)):
            await asyncio.sleep(0.05)
        return message


# ---- examples: what the documentation shows, as it is written there ---------------------------------------------


async def check_examples(setup: Setup, report: Report) -> None:
    check_runner(report)
    port = 4222 if is_free(4222) else free_port()
    with simulator(setup.bridge) as upstream, serving(setup.bridge, upstream, nats_port=port) as nats_url:
        await asyncio.to_thread(run_examples, report, ROOT / "subjects.md", nats_url, [setup.bridge.parent])


def check_runner(report: Report) -> None:
    """A runner that lets everything pass proves nothing, so it has examples of its own, half of which must fail."""
    with report.check("the runner of examples runs those that are marked, and notices those that fail"):
        file = HERE / "testdata" / "examples.md"
        marked = extract(file.read_text())
        equal(len(marked), file.read_text().count("<!-- run:"))
        for example in marked:
            try:
                run(example, os.environ | {"NATS_URL": "nats://nowhere"})
                passed = True
            except AssertionError:
                passed = False
            equal(passed, example.name.startswith("passes-"), example.name)


GROUPS = {"sdk": check_sdk, "foreign": check_foreign, "nats": check_nats, "examples": check_examples}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bridge", type=Path, required=True)
    parser.add_argument("--overlays", type=Path, required=True)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    args = parser.parse_args()
    if unknown := [g for g in args.groups if g not in GROUPS]:
        parser.error(f"no group {unknown[0]!r}: the groups are {', '.join(GROUPS)}")
    setup, report = Setup(args.bridge.resolve(), args.overlays.resolve()), Report()
    # However it ends, the contexts are left and with them the processes end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"FAIL  not done within {LIMIT} s"))
    signal.alarm(LIMIT)
    for name in args.groups or GROUPS:
        before = report.passed + report.failed
        try:
            asyncio.run(GROUPS[name](setup, report))
            if report.passed + report.failed == before:
                raise AssertionError("checked nothing")
        except Exception as e:
            with report.check(name):
                raise e
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
