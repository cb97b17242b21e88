"""A plain nats-py client of the bridge: what subjects.md promises, as a program of another language sees it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import time
from dataclasses import dataclass

import nats
from nats.js.errors import NotFoundError

RESULTS, STATES, REJECTED = "TINKER_RESULTS", "TINKER_STATES", "TINKER_REJECTED"


TERMINAL = {"completed", "failed", "timed_out", "expired", "lost", "cancelled"}


def token(request_id: str) -> str:
    """The subject token of an id, as subjects.md says."""
    raw = request_id.encode()
    if re.fullmatch(r"[A-Za-z0-9_:-]{1,128}", request_id):
        return request_id
    if len(raw) <= 384:
        return "=" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    return "~" + base64.urlsafe_b64encode(hashlib.sha256(raw).digest()).rstrip(b"=").decode()


@dataclass(frozen=True)
class Message:
    subject: str
    headers: dict[str, str]
    data: bytes
    seq: int

    @property
    def request_id(self) -> str:
        return self.headers["Bridge-Request-Id"]

    @property
    def status(self) -> str:
        return self.headers["Bridge-Status"]

    @property
    def json(self) -> dict:
        return json.loads(self.data)


class Subscriber:
    """Use it as an async context manager."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def __aenter__(self) -> Subscriber:
        self.nc = await nats.connect(self.url, connect_timeout=5, max_reconnect_attempts=5)
        self.js = self.nc.jetstream()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.nc.close()

    async def submit(self, request_id: str, request_type: str | None = None) -> None:
        """Returns when JetStream has stored the submission."""
        headers = {"Bridge-Request-Type": request_type} if request_type else None
        await self.js.publish("tinker.submit", request_id.encode(), headers=headers)

    async def last(self, stream: str, subject: str) -> Message | None:
        try:
            found = await self.js.get_last_msg(stream, subject, direct=True)
        except NotFoundError:
            return None
        return Message(found.subject, dict(found.headers or {}), found.data or b"", found.seq)

    async def result(self, request_id: str, seconds: float = 20) -> Message:
        """Waits for the stored result of an id, whether it is there already or not."""
        deadline = time.monotonic() + seconds
        while True:
            if message := await self.last(RESULTS, f"tinker.result.{token(request_id)}"):
                return message
            if time.monotonic() > deadline:
                raise TimeoutError(f"no result of {request_id} within {seconds:g} s")
            await asyncio.sleep(0.05)

    async def history(self, request_id: str, seconds: float = 20) -> list[Message]:
        """The log of an id from its start to its closing record."""
        subject = f"tinker.state.{token(request_id)}"
        subscription = await self.js.subscribe(subject, stream=STATES, ordered_consumer=True)
        try:
            messages = []
            while not messages or messages[-1].status not in TERMINAL:
                messages.append(as_message(await subscription.next_msg(timeout=seconds)))
            return messages
        finally:
            await subscription.unsubscribe()


def as_message(msg) -> Message:
    """A message of a stream, whether it was read from there (its reply subject counts) or came live (a header does)."""
    headers = dict(msg.headers or {})
    seq = msg.metadata.sequence.stream if msg.reply else int(headers.get("Nats-Sequence", 0))
    return Message(msg.subject, headers, msg.data, seq)
