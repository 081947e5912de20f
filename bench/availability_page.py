"""The page of ``make bench-ha``, and the figures that it is made of."""

from __future__ import annotations

import os
import platform
import statistics
import time
from dataclasses import dataclass, field

from bench.failovers import MANY_CLIENTS

# VRRP counts a master as gone after three of them and a bit (RFC 5798 section 6.1).
ADVERTISEMENTS_S = 1


@dataclass(slots=True)
class Row:
    """A failure, and what was measured in each run: seconds, and numbers of clients or questions.

    `waits` are the longest of a client in runs in which all had their answer, `overlaps` how long
    two pods answered after a split LAN was one again, `pauses` the longest time between two
    questions, `busy` the share of all cores.
    """

    title: str
    takeovers: list[float] = field(default_factory=list)
    services: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    clients: list[int] = field(default_factory=list)
    failed: int = 0
    unanswered: int = 0
    doubles: int = 0
    questions: int = 0


def seconds(values: list[float]) -> str:
    """Median and worst."""
    return f"{statistics.median(values):.2f} / {max(values):.2f}" if values else "-"


HEAD = """\
# Availability of the reserved address

Measured by `make bench-ha` on {date}, Linux {kernel}, {cores} cores: each failure {rounds} times,
in turn. Pods are network namespaces with macvlan, the API server is the stand-in of the tests,
settings are the defaults (`EGRESS_HA_LEASE_DURATION=2s`, `EGRESS_HA_HANDOVER=2s`). Seconds are
*median / worst*. A host on the LAN asked for the address every 20 ms by ARP or ND. A client asked
the Service every 20 ms, and every 4 ms where pods are deleted or replaced, until at least {many}
clients had asked in that run.

The machine was shared: its cores were busy for {busy:.0%} of the time (median of all runs, the
benchmark included; {busiest:.0%} in the busiest run). The host that asks, which should do so every
20 ms, once paused for {pause:.0f} ms; so much of a figure may be the machine's.

| what fails | the other pod answers after | longest time without an answer | clients are \
served at once after | longest wait of a client | clients failed | questions answered by two \
pods |
|---|---|---|---|---|---|---|
"""
NOTES = """
Clients without an answer had waited for more than a second when the run ended. A client that
begins while the Service still leads to a node without power waits for that node; one that the old
pod had accepted waits there for the connect timeout. The Service is that of the tests and follows
the labels of the pods within 20 ms; a real kube-proxy takes longer.
{overlaps}
`hold` takes {held[0]:.1f} MiB resident and {held[1]:.2f} % of a core while active, {held[2]:.1f}
MiB and {held[3]:.2f} % as a standby (over 30 s).
"""
OVERLAPS = """
When the split LAN is one again, two pods answer for a moment: the last question that both answered
was asked {0} s after that.
"""
KEEPALIVED_HEAD = """
## keepalived on the same LAN
Debian's keepalived with VRRP advertisements every {interval} s and `nopreempt`. It moves no
Service. A process that is killed or frozen leaves the address in its kernel, so that both
hosts answer until that is noticed.

| what fails | the other host answers after | longest time without an answer | questions answered \
by two |
|---|---|---|---|
"""


def page(rows: list[Row], others: list[Row], rounds: int, held: tuple[float, ...]) -> str:
    """The document."""
    busy = [share for row in rows + others for share in row.busy]
    head = HEAD.format(
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        rounds=rounds,
        kernel=platform.release().partition("-")[0],
        cores=os.cpu_count(),
        many=f"{MANY_CLIENTS:,}",
        busy=statistics.median(busy),
        busiest=max(busy),
        pause=1000 * max(pause for row in rows for pause in row.pauses),
    )
    overlaps = [overlap for row in rows for overlap in row.overlaps]
    told = OVERLAPS.format(seconds(overlaps)) if overlaps else ""
    text = head + "".join(map(_line, rows)) + NOTES.format(held=held, overlaps=told)
    if others:
        text += KEEPALIVED_HEAD.format(interval=ADVERTISEMENTS_S)
        text += "".join(
            f"| {row.title} | {seconds(row.takeovers)} | {seconds(row.gaps)} "
            f"| {row.doubles} of {row.questions} |\n"
            for row in others
        )
    return text


def _line(row: Row) -> str:
    failed = f"{row.failed} of {sum(row.clients)}"
    if row.unanswered:
        failed += f", {row.unanswered} without an answer"
    return (
        f"| {row.title} | {seconds(row.takeovers)} | {seconds(row.gaps)} "
        f"| {seconds(row.services)} | {seconds(row.waits)} | {failed} "
        f"| {row.doubles} of {row.questions} |\n"
    )
