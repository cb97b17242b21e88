"""What every check needs: processes that are always ended, readiness by polling, and the report."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent


class Report:
    """One line a check; the numbers at the end are the contract with whoever runs this."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0

    @contextlib.contextmanager
    def check(self, name: str) -> Iterator[None]:
        """A failing check does not stop those after it."""
        try:
            yield
        except Exception as e:
            self.failed += 1
            print(f"FAIL  {name}: {type(e).__name__}: {e}", flush=True)
            if not isinstance(e, AssertionError):
                traceback.print_exc()
        else:
            self.passed += 1
            print(f"ok    {name}", flush=True)

    def finish(self) -> int:
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        return 1 if self.failed or not self.passed else 0


def equal(got: object, want: object, what: str = "") -> None:
    assert got == want, f"{what + ': ' if what else ''}got {shortened(got)}, want {shortened(want)}"


def shortened(value: object, most: int = 300) -> str:
    text = repr(value)
    return text if len(text) <= most else text[:most] + "…"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def is_free(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) != 0


def until(condition, seconds: float, what: str, pause: float = 0.05):
    """Polls a condition until it is truthy and returns what it gave."""
    deadline = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(pause)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


class Process:
    """A child process with its output in a file. Leaving the context ends it: first politely, then not."""

    def __init__(self, name: str, args: list[str | Path], ready: str, env: dict[str, str] | None = None) -> None:
        self.name, self.args, self.ready = name, [str(a) for a in args], ready
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("BRIDGE_", "TINKER_", "NATS_"))} | (env or {})

    def __enter__(self) -> Process:
        self.log = tempfile.NamedTemporaryFile(prefix=f"conformance-{self.name}-", suffix=".log", delete=False)
        self.process = subprocess.Popen(
            self.args, env=self.env, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            until(self._is_ready, 30, f"{self.name} is ready at {self.ready}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _is_ready(self) -> bool:
        if (code := self.process.poll()) is not None:
            raise RuntimeError(f"{self.name} ended with exit code {code}; it said:\n{self.tail()}")
        return answers(self.ready)

    def tail(self) -> str:
        return "\n".join(Path(self.log.name).read_text(errors="replace").splitlines()[-20:])

    def __exit__(self, exc_type: object = None, *exc: object) -> None:
        for signo, patience in ((signal.SIGTERM, 15), (signal.SIGKILL, 5)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signo)  # the group: nothing that it started stays behind
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
                break
        self.log.close()
        if exc_type is not None:
            print(f"---- last words of {self.name}:\n{self.tail()}\n----", flush=True)
        Path(self.log.name).unlink(missing_ok=True)


@contextlib.contextmanager
def simulator(bridge: Path, *flags: str) -> Iterator[str]:
    """`bridge simulate`; gives its URL."""
    address = f"127.0.0.1:{free_port()}"
    with Process("simulate", [bridge, "simulate", "--listen", address, *flags], ready=f"http://{address}/sim/stats"):
        yield f"http://{address}"


@contextlib.contextmanager
def serving(bridge: Path, upstream: str, *, key: str | None = None, nats_port: int | None = None) -> Iterator[str]:
    """`bridge serve --embedded`; gives the URL of its NATS server."""
    nats, http = nats_port or free_port(), f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="conformance-store-") as store:
        args = [
            bridge, "serve", "--embedded", "--embedded-listen", f"127.0.0.1:{nats}", "--store-dir", store,
            "--upstream", upstream, "--http", http,
        ]  # fmt: skip
        with Process("serve", args, env={"BRIDGE_API_KEY": key} if key else None, ready=f"http://{http}/readyz"):
            yield f"nats://127.0.0.1:{nats}"
