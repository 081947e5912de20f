"""A terminal (pty(7)), as a person would sit at."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Terminal:
    """A program writes to `fd`; `read` is what the person sees."""

    def __init__(self) -> None:
        self._screen, self.fd = os.openpty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._screen)
        os.close(self.fd)

    def read(self) -> str:
        return os.read(self._screen, 1 << 16).decode()
