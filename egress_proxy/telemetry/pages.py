"""What the admin port shows: health, metrics, the status page.

`/livez` and `/readyz` read a few flags. `/metrics` and `/status.json` are made in parts, with turns
of the event loop between them, at most once per `_FRESH_S`, and shared by all requests, so that no
request stalls a connection of the relay. An answer never repeats anything from a request.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import msgspec

from egress_proxy.telemetry import metrics
from egress_proxy.telemetry.process import read_process
from egress_proxy.telemetry.sessions import parse_query

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from egress_proxy.telemetry.sessions import Query, SessionList
    from egress_proxy.telemetry.status import Check, Status

# No scrape is more frequent, and the page asks every 2 s.
_FRESH_S = 1.0

# After sessions are listed, the next listing waits for so many times as long as it took.
_SESSIONS_PAUSE = 20

_PAGE = Path(__file__).with_name("status.html")

T = TypeVar("T")


class StatusSource(Protocol):
    """Where the pages get their content."""

    @property
    def down(self) -> Sequence[str]: ...

    def readiness(self) -> tuple[Check, ...]: ...

    async def sessions(self, query: Query) -> SessionList | None: ...

    async def take(self) -> Status: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """The response to a request."""

    status: int
    content_type: str
    body: bytes
    more: tuple[tuple[str, str], ...] = ()


class Shared(Generic[T]):
    """The result of `make`: made at most once per `fresh_s`, and shared by all callers."""

    def __init__(self, make: Callable[[], Awaitable[T]], fresh_s: float) -> None:
        self._make = make
        self._fresh_s = fresh_s
        self._task: asyncio.Task[T] | None = None
        self._started_at = 0.0

    async def get(self) -> T:
        """Raises what `make` raises; the next call starts it again."""
        now = asyncio.get_running_loop().time()
        task = self._task
        if task is None or (
            task.done() and (task.exception() or now - self._started_at >= self._fresh_s)
        ):
            task = self._task = asyncio.create_task(self._run(), name="make a page")
            self._started_at = now
        # If one caller is cancelled, the others still need the result.
        return await asyncio.shield(task)

    async def _run(self) -> T:
        return await self._make()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None


class Pages:
    """The answer to each path."""

    def __init__(self, source: StatusSource, *, fresh_s: float = _FRESH_S) -> None:
        self._source = source
        self._page = _PAGE.read_bytes()
        self._policy = _policy(self._page)
        self._sessions_lock = asyncio.Lock()
        self._sessions_from = 0.0
        status = self._status = Shared(source.take, fresh_s)
        self._metrics_text = Shared(lambda: _metrics_text(status), fresh_s)
        self._status_text = Shared(lambda: self._encode_status(status), fresh_s)
        self._paths: dict[str, Callable[[str], Awaitable[Answer]]] = {
            "/": self._status_page,
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/status.json": self._status_json,
            "/sessions.json": self._sessions_json,
        }

    async def answer(self, method: str, target: str) -> Answer:
        """The answer to a request."""
        path, _, query = target.partition("?")
        page = self._paths.get(path)
        if page is None:
            return text_answer(404, f"there are {' '.join(self._paths)}")
        if method not in ("GET", "HEAD"):
            return text_answer(405, "nothing can be changed here", (("Allow", "GET, HEAD"),))
        return await page(query)

    async def stop(self) -> None:
        for shared in (self._metrics_text, self._status_text, self._status):
            await shared.stop()

    async def _livez(self, _query: str) -> Answer:
        down = self._source.down
        if down:
            return text_answer(503, "\n".join(f"not running: {name}" for name in down))
        return text_answer(200, "ok")

    async def _readyz(self, query: str) -> Answer:
        checks = self._source.readiness()
        problems = [problem for check in checks for problem in check.problems]
        verbose = "verbose" in query.split("&")
        lines = _verbose(checks) if verbose else problems or ["ok"]
        return text_answer(503 if problems else 200, "\n".join(lines))

    async def _metrics(self, _query: str) -> Answer:
        return Answer(200, metrics.CONTENT_TYPE, await self._metrics_text.get())

    async def _status_json(self, _query: str) -> Answer:
        return Answer(200, "application/json", await self._status_text.get())

    async def _sessions_json(self, query: str) -> Answer:
        try:
            wanted = parse_query(query)
        except ValueError as error:
            return text_answer(400, str(error))
        # One after the other, and seldom: each looks at all connections.
        clock = asyncio.get_running_loop().time
        async with self._sessions_lock:
            await asyncio.sleep(self._sessions_from - clock())
            began = clock()
            found = await self._source.sessions(wanted)
            self._sessions_from = clock() + _SESSIONS_PAUSE * (clock() - began)
        if found is None:
            return text_answer(
                403, "EGRESS_DNS_PROXY_ADMIN_SESSIONS is off: sessions are not listed"
            )
        return Answer(200, "application/json", msgspec.json.encode(found))

    async def _encode_status(self, status: Shared[Status]) -> bytes:
        # A thousand destinations take less than a millisecond.
        return msgspec.json.encode(
            {"ready": self._source.readiness(), "status": await status.get()}
        )

    async def _status_page(self, _query: str) -> Answer:
        policy = ("Content-Security-Policy", self._policy)
        return Answer(200, "text/html; charset=utf-8", self._page, (policy,))


async def _metrics_text(status: Shared[Status]) -> bytes:
    # Before Linux 6.2 counting the descriptors of many connections takes milliseconds.
    process = await asyncio.to_thread(read_process)
    return await join_in_turns(metrics.exposition(await status.get(), process))


async def join_in_turns(parts: Iterable[bytes]) -> bytes:
    """`parts` as one, with a turn of the event loop after each."""
    made = []
    for part in parts:
        made.append(part)
        await asyncio.sleep(0)
    return b"".join(made)


def text_answer(status: int, text: str, more: tuple[tuple[str, str], ...] = ()) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", f"{text}\n".encode(), more)


def _verbose(checks: Iterable[Check]) -> list[str]:
    """One line per condition and problem, in the form of Kubernetes' own components."""
    lines = []
    for check in checks:
        lines += [f"[-]{check.name} failed: {problem}" for problem in check.problems]
        lines += [f"[!]{check.name} warning: {warning}" for warning in check.warnings]
        if not check.problems and not check.warnings:
            lines.append(f"[+]{check.name} ok")
    return lines


def _policy(page: bytes) -> str:
    """The browser may run the script and style of `page`, and send requests to this port."""

    def digest(tag: bytes) -> str:
        inside = page.partition(b"<" + tag + b">")[2].partition(b"</" + tag + b">")[0]
        return "'sha256-" + base64.b64encode(hashlib.sha256(inside).digest()).decode() + "'"

    return (
        f"default-src 'none'; script-src {digest(b'script')}; style-src {digest(b'style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
