"""Clients of a Service: a new connection every 20 ms, and what became of each."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic, time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from tests.support.network import Namespace

INTERVAL_S = 0.02
# Longer than any handover; a client that waits so long counts as failed.
_TIMEOUT_S = 15.0
_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Outcome:
    """One client: when it began (time.time), how long it took, the answer or the error."""

    began_at: float
    took_s: float
    answer: str = ""
    error: str = ""


class Clients:
    """Clients in `namespace` of `address`:`port`, as long as it is entered."""

    def __init__(self, namespace: Namespace, address: str, port: int) -> None:
        self.outcomes: list[Outcome] = []
        self._target = (address, port)
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(_AT_ONCE, "client", initializer=namespace.enter)
        self._thread = threading.Thread(target=self._run, name="clients")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._pool.shutdown()

    def summary(self) -> str:
        """Counts, and the longest wait."""
        failed = [outcome for outcome in self.outcomes if outcome.error]
        longest = max((outcome.took_s for outcome in self.outcomes), default=0.0)
        return f"{len(self.outcomes)} clients, {len(failed)} failed, longest wait {longest:.2f} s"

    def _run(self) -> None:
        due = monotonic()
        while not self._ended.is_set():
            self._pool.submit(self._ask)
            due += INTERVAL_S
            self._ended.wait(max(due - monotonic(), 0))

    def _ask(self) -> None:
        began_at, started = time(), monotonic()
        answer = error = ""
        try:
            with socket.create_connection(self._target, _TIMEOUT_S) as connection:
                answer = connection.recv(1000).decode()
                error = "" if answer else "ended without an answer"
        except OSError as problem:
            error = str(problem)
        self.outcomes.append(Outcome(began_at, monotonic() - started, answer, error))
