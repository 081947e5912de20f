"""Write the pages of the benchmark: results.json, results.md and results.svg."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from bench.loads import KEPT, LOADS
from bench.markdown import NONE, calls, counted, figure, spread, table
from bench.peers import FORWARDING, HAPROXY, LOGGING, NGINX, PEERS, PROJECT
from bench.plot import draw
from bench.samples import IDLE
from bench.summary import Ratio, Row, summarize

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from bench.loads import Load
    from bench.samples import Sample
    from bench.syscalls import SyscallCount

# If other processes used more than this share of the machine, the figures are unreliable.
_UNDISTURBED = 0.05

# Upper limits for the ratio of this project's CPU time, and for "latency" of its median latency.
# HAProxy splices bulk as this project does; nginx copies it, which costs twice as much or more.
_GOALS = {
    (HAPROXY.name, "bulk-1"): 1.00,
    (HAPROXY.name, "bulk-8"): 1.00,
    (HAPROXY.name, "kept"): 1.00,
    (HAPROXY.name, "new"): 1.10,
    (HAPROXY.name, "latency"): 1.00,
    (NGINX.name, "bulk-1"): 0.50,
    (NGINX.name, "bulk-8"): 0.50,
    (NGINX.name, "kept"): 1.05,
    (NGINX.name, "new"): 1.15,
    (NGINX.name, "latency"): 1.00,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All results of one run of the benchmark."""

    facts: Mapping[str, str]
    samples: Sequence[Sample]
    syscalls: Sequence[SyscallCount]
    rounds: int
    seconds: int
    idle: int
    cores: int
    duration_s: float


def write(run: Run, directory: Path) -> None:
    """Write all pages to `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = summarize(run.samples, PROJECT.name, run.cores)
    data = {**asdict(run), "summary": [asdict(row) for row in rows]}
    (directory / "results.json").write_text(json.dumps(data, indent=1) + "\n")
    (directory / "results.md").write_text(_page(run, rows))
    (directory / "results.svg").write_text(draw(rows))


def _page(run: Run, rows: Sequence[Row]) -> str:
    parts = [
        "# Benchmarks",
        *_warning(rows),
        _introduction(run),
        "![CPU time of each proxy per unit of work](results.svg)",
        "## Ratios",
        _ratios(rows),
        *(part for load in LOADS for part in _load(load, rows)),
        *_idle(run, rows),
        *_logging(rows),
        *_syscalls(run),
        "## Method",
        _METHOD,
        "## Disturbance",
        _disturbance(rows),
    ]
    return "\n\n".join(parts) + "\n"


def _worst_disturbance(rows: Iterable[Row]) -> float:
    """The largest share of the machine that other processes used in any round."""
    return max((row.disturbance for row in rows), default=0.0)


def _warning(rows: Sequence[Row]) -> list[str]:
    worst = _worst_disturbance(rows)
    if worst <= _UNDISTURBED:
        return []
    text = (
        f"**Other processes used up to {worst:.0%} of this machine during the run: do not quote"
        " these figures, in particular not rates, latencies and CPU time of the machine.**"
    )
    return [text]


def _introduction(run: Run) -> str:
    facts = "\n".join(f"- {name}: {value}" for name, value in run.facts.items())
    day = time.strftime("%Y-%m-%d", time.gmtime())
    duration = counted(round(run.duration_s / 60), "minute")
    return (
        f"Written by `make bench` on {day}: {counted(run.rounds, 'interleaved round')},"
        f" {run.seconds} s per measurement, {duration} in total."
        " Figures are medians over the rounds."
        " [Where the time goes](engine.md) explains them."
        f"\n\n{facts}"
    )


def _ratios(rows: Sequence[Row]) -> str:
    """The ratios of this project to each proxy, one line per load."""
    text = (
        "CPU time of this project's process per unit of work, divided by that of the peer in the"
        " same round. For one kept connection: its median latency, divided by that of the peer."
        " Below 1, this project needs less. In brackets: the lowest and the highest round.\n\n"
    )
    others = (HAPROXY, NGINX, *(peer for peer in PEERS.values() if peer.earlier))
    peers = [peer for peer in others if _of(rows, None, peer.name)]
    lines = []
    for load in LOADS:
        cells = [load.title]
        for peer in peers:
            row = _of(rows, load.name, peer.name)
            ratio = _compared(row) if row else None
            cells.append(spread(ratio, _GOALS.get((peer.name, load.name))))
        lines.append(cells)
    return text + table(["load", *(peer.title for peer in peers)], lines)


def _compared(row: Row) -> Ratio | None:
    return row.latency_ratio if row.load == "latency" else row.proxy_ratio


def _load(load: Load, rows: Sequence[Row]) -> list[str]:
    """The section of one load: a line per peer. Empty if the load was not measured."""
    lines = []
    for row in rows:
        if row.load == load.name and row.peer != LOGGING.name:
            proxied = row.peer != FORWARDING.name
            lines.append(
                [
                    PEERS[row.peer].title,
                    figure(row.rate),
                    figure(row.proxy_cost) if proxied else NONE,
                    figure(row.machine_cost),
                    spread(row.machine_ratio),
                    f"{row.proxy_core:.0%}" if proxied else NONE,
                    figure(row.latency_us),
                ]
            )
    head = [
        "",
        load.rate_unit,
        f"proxy, {load.unit}",
        f"machine, {load.unit}",
        "machine, project ÷ peer",
        "proxy's core",
        "latency, µs",
    ]
    if not any(row.latency_us for row in rows if row.load == load.name):
        head, lines = head[:-1], [line[:-1] for line in lines]
    return [f"## {load.title[0].upper()}{load.title[1:]}", table(head, lines)] if lines else []


def _idle(run: Run, rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        kept = _of(rows, KEPT.name, row.peer)
        if row.load == IDLE and row.octets_per_pair is not None:
            lines.append(
                [
                    PEERS[row.peer].title,
                    f"{row.octets_per_pair / 1024:.1f}",
                    figure(kept.proxy_cost if kept else None),
                    figure(row.proxy_cost),
                    spread(row.proxy_ratio),
                ]
            )
    if not lines:
        return []
    text = (
        "Each connection has carried one request and stays open. Memory is the growth of the"
        " process (resident) per connection, without the kernel's sockets. CPU time is that of"
        f" {KEPT.title}, without and with the idle connections.\n\n"
    )
    head = ["", "KiB/pair", "µs/request without", "µs/request with", "with, project ÷ peer"]
    return [f"## {run.idle:,} idle connections", text + table(head, lines)]


def _logging(rows: Sequence[Row]) -> list[str]:
    quiet, logging = _of(rows, "new", PROJECT.name), _of(rows, "new", LOGGING.name)
    if quiet is None or logging is None:
        return []
    text = (
        "With `EGRESS_DNS_PROXY_DEBUG` on and the log going to a file, a new connection costs"
        f" {logging.proxy_cost:.1f} µs instead of {quiet.proxy_cost:.1f} µs."
    )
    return ["## Logging", text]


def _syscalls(run: Run) -> list[str]:
    if not run.syscalls:
        return []
    text = (
        "Connections one after the other, each with one request and one answer (`strace -c`).\n\n"
    )
    return ["## System calls for one short connection", text + syscalls_table(run.syscalls)]


def syscalls_table(counts: Sequence[SyscallCount]) -> str:
    """One line per system call, one column per proxy."""
    names = sorted({name for entry in counts for name in entry.calls})
    lines = [
        [f"`{name}`", *(calls(entry.calls.get(name, 0.0)) for entry in counts)]
        for name in names
        if any(calls(entry.calls.get(name, 0.0)) for entry in counts)
    ]
    lines.append(["all", *(f"{entry.total:.1f}" for entry in counts)])
    return table(["", *(PEERS[entry.peer].title for entry in counts)], lines)


def _disturbance(rows: Sequence[Row]) -> str:
    lines = []
    for load in dict.fromkeys(row.load for row in rows):
        group = [row for row in rows if row.load == load]
        idle = sorted(row.idle for row in group)
        worst = max(row.disturbance for row in group)
        lines.append([load, f"{idle[0]:.0%} to {idle[-1]:.0%}", f"{worst:.1%}"])
    text = (
        "Shares of the CPU time of the whole machine. Idle: the medians of the peers, from the"
        " lowest to the highest. Disturbed: what other virtual machines (steal) and processes that"
        " are no part of the benchmark used, in the round where it was most.\n\n"
    )
    return text + table(["load", "idle", "disturbed"], lines)


_METHOD = """\
- There are three network namespaces: clients, the pod, and remote servers, connected by two veth
  pairs. The proxy has a core of its own; generators, servers and the benchmark share another one.
- HAProxy and nginx are unpacked from the Debian suite named above, not installed. By default that
  is the suite with the newest HAProxy (`BENCH_SUITE` selects another). HAProxy 2.6, which Debian 12
  has, is not a peer any more: it splices badly. HAProxy runs in TCP mode with
  `option splice-auto`. nginx runs as a single process without a master; it always copies.
- Every proxy runs with one thread, without a log, with TCP keepalive on both sides, an idle timeout
  of an hour and a backlog of 4096. It connects from the reserved address without binding a port.
  This project has its default settings.
- "IP forwarding" is the same pod without a proxy: the client connects to the server's address and
  the pod routes the packets. This is the lower limit of the cost on this machine.
- Bulk is iperf3, from the client to the remote; the receiver counts the octets.
- Requests are wrk, with answers of 128 octets from an nginx that answers from memory. The server's
  count must agree with wrk's. A new connection carries one request, then the server closes it.
  Latencies do not include those that wrk adds for requests that it did not send.
- Any error ends the benchmark. Before each round it checks that the remote sees the reserved
  address.
- The proxy's CPU time is that of its process, which includes the work of the network stack on its
  behalf. The machine's CPU time is the time that its cores were not idle. Where the proxy's core is
  not fully used, the generator or the server limits the rate, and only the CPU time per unit of
  work compares the proxies.
- In all three namespaces, ports 1024 to 65535 are ephemeral and `tcp_tw_reuse` is 1, so that new
  connections do not run out of ports. All other settings are the kernel's defaults.
- Every round starts all processes again, and starts with another peer. Each load goes through all
  peers before the next load. Idle connections come last, with a new process for each peer."""


def _of(rows: Iterable[Row], load: str | None, peer: str) -> Row | None:
    return next((r for r in rows if r.peer == peer and load in {None, r.load}), None)
