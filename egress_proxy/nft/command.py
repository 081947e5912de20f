"""Runs nft(8), which configures the kernel: list our table, try a text, commit it.

The program is in the image. This module uses nft's text, not its JSON, which in nft 1.0.6
loses the policy of a ct timeout, can't declare a map to an address with a port, and crashes on some
wrong inputs.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from typing import NamedTuple

from egress_proxy.nft.table import FAMILY, NAME

# Where distributions put it; a container's PATH may be empty.
PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
# A thousand destinations take well below a second.
_TIMEOUT_S = 30.0
_NUMBERS = {os.strerror(number): number for number in errno.errorcode}


class NoNftError(FileNotFoundError):
    """There is no nft program."""

    def __init__(self) -> None:
        super().__init__(errno.ENOENT, "there is no nft program")


def list_table() -> str:
    """Our table as nft lists it, without the values of counters; empty when there is none.

    Raises OSError with what nft says.
    """
    tables = _run("list", "tables", FAMILY).splitlines()
    if f"table {FAMILY} {NAME}" not in tables:
        return ""
    return _run("--stateless", "list", "table", FAMILY, NAME)


def try_text(text: str) -> None:
    """Let nft and the kernel check `text` without any change. Raises OSError with their message."""
    _run("--check", "--file", "-", text=text)


def commit(text: str) -> None:
    """Carry out `text` in one transaction: all of it or nothing. Raises OSError."""
    _run("--file", "-", text=text)


class Counted(NamedTuple):
    """What a counter has counted."""

    packets: int
    octets: int


def read_counters() -> dict[str, Counted]:
    """Our counters by their names. Raises OSError."""
    found = json.loads(_run("--json", "list", "counters", "table", FAMILY, NAME))
    return {
        entry["counter"]["name"]: Counted(entry["counter"]["packets"], entry["counter"]["bytes"])
        for entry in found["nftables"]
        if "counter" in entry
    }


def _run(*arguments: str, text: str = "") -> str:
    program = shutil.which("nft", path=PATH)
    if program is None:
        raise NoNftError
    try:
        done = subprocess.run(  # noqa: S603 - the arguments are ours
            [program, *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            env={"LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(errno.ETIMEDOUT, f"nft takes more than {_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        raise _error(done)
    return done.stdout


def _error(done: subprocess.CompletedProcess[str]) -> OSError:
    """An error of nft is 'FILE:LINE:COLUMN: Error: WHAT: WHY', and then the line, with marks."""
    said = next((line for line in done.stderr.splitlines() if "rror: " in line), "")
    what = said.partition("rror: ")[2] or f"nft ended with status {done.returncode}"
    why = what.rpartition(": ")[2].partition(" (")[0]
    return OSError(_NUMBERS.get(why, errno.EINVAL), what)
