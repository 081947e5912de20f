"""The rules are replaced by a process that is killed half way, a hundred times, under traffic."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager, suppress
from itertools import cycle
from typing import TYPE_CHECKING

import pytest

from egress_proxy.init.settings import read_settings
from egress_proxy.nft.command import list_table
from egress_proxy.nft.table import same
from tests.netns import swapping_rules
from tests.netns.init_lab import V4
from tests.netns.test_redirect import MODE, add_route, captured, redirect, senders
from tests.support.lab import CLIENT, OUTSIDE, OUTSIDE_SECOND, POD, RESERVED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.lab import Lab

KILLS = 100
# What IPv6 asks with, before it has an address.
UNSPECIFIED = "::"
PORTS = range(1, 201)


def rules(outside: str) -> str:
    """Many, so that a transaction takes a while."""
    return "\n".join(f"{port} udp {outside}" for port in PORTS)


@contextmanager
def new_flows(lab: Lab) -> Iterator[None]:
    """Datagrams of ever new flows to the pod, and through it to where no rule leads."""
    ended = threading.Event()

    ports = cycle(PORTS)

    def send() -> None:
        while not ended.is_set():
            for address, port in ((POD.v4, next(ports)), (OUTSIDE.v4, 9)):
                with lab.client.bind(CLIENT.v4, 0) as client, suppress(OSError):
                    client.sendto(b"new", (address, port))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.timeout(300)
def test_the_table_is_the_old_one_or_the_new_one(lab: Lab, tmp_path: Path) -> None:
    add_route(lab.node, OUTSIDE, POD)
    tables, files = [], []
    for outside in (OUTSIDE.v4, OUTSIDE_SECOND.v4):
        ruleset = read_settings(V4 | MODE | {"EGRESS_DESTINATION": rules(outside)}).ruleset
        assert ruleset is not None
        tables.append(ruleset.table())
        files.append(tmp_path / outside)
        files[-1].write_text(tables[-1].transaction())
    redirect(lab, rules(OUTSIDE.v4), base=V4)
    found = [0, 0]
    with captured(lab.gateway, "lan0") as packets, new_flows(lab):
        for kill in range(KILLS):
            argv = (sys.executable, swapping_rules.__file__, *map(str, files))
            with lab.pod.start(*argv, env={}) as process:
                process.wait_for("swapping")
                # Wherever it is then: a whole transaction takes some 10 ms.
                time.sleep(kill / KILLS / 10)
            listing = lab.pod.call(list_table)
            [index] = [number for number in (0, 1) if same(listing, tables[number].listing())]
            found[index] += 1
    assert senders(packets) <= {RESERVED.v4, UNSPECIFIED}
    assert len(packets) > KILLS
    # Both were seen, so the kills came in the midst of it.
    assert all(found), found
