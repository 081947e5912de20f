"""A terminal (pty(7)), as a person would sit at."""

from __future__ import annotations

import os
from contextlib import ExitStack


class Terminal(ExitStack):
    """A program writes to `fd`; `read` is what the person sees."""

    def __init__(self) -> None:
        super().__init__()
        self._screen, self.fd = os.openpty()
        self.callback(os.close, self._screen)
        self.callback(os.close, self.fd)

    def read(self) -> str:
        return os.read(self._screen, 1 << 16).decode()
