"""The benchmark's pages: results.json, results.md and results.svg."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from bench.loads import KEPT, LOADS
from bench.markdown import NONE, calls, counted, figure, spread, table
from bench.peers import FORWARDING, HAPROXY, HAPROXY_SPLICE, LOGGING, NGINX, PEERS, PROJECT
from bench.plot import draw
from bench.samples import IDLE
from bench.summary import Ratio, Row, summarize

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from bench.loads import Load
    from bench.samples import Sample
    from bench.syscalls import SyscallCount

# Beyond this share of the machine, whatever else runs on it spoils the figures.
_UNDISTURBED = 0.05

# The most that the ratio of this project's proxy CPU may be; latency: of the median latency.
_GOALS = {
    (HAPROXY.name, "bulk-1"): 0.50,
    (HAPROXY.name, "bulk-8"): 0.50,
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
    """Everything that one run of the benchmark has found out."""

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
        "## What was measured, and how",
        _method(run),
        "## What disturbed it",
        _disturbance(rows),
    ]
    return "\n\n".join(parts) + "\n"


def _worst_disturbance(rows: Iterable[Row]) -> float:
    """The largest share of the machine that something else took in any round."""
    return max((row.disturbance for row in rows), default=0.0)


def _warning(rows: Sequence[Row]) -> list[str]:
    worst = _worst_disturbance(rows)
    if worst <= _UNDISTURBED:
        return []
    text = (
        f"**Something else took up to {worst:.0%} of this machine meanwhile: don't quote these"
        " figures, least of all those of rates, latency and the whole machine.**"
    )
    return [text]


def _introduction(run: Run) -> str:
    facts = "\n".join(f"- {name}: {value}" for name, value in run.facts.items())
    day = time.strftime("%Y-%m-%d", time.gmtime())
    duration = counted(round(run.duration_s / 60), "minute")
    return (
        f"Written by `make bench` on {day}: {counted(run.rounds, 'interleaved round')},"
        f" {run.seconds} s for each measurement, {duration} in all."
        " Figures are medians over the rounds."
        " [Where the time goes](engine.md) has the profile, and what each step gained."
        f"\n\n{facts}"
    )


def _ratios(rows: Sequence[Row]) -> str:
    """This project against each proxy, load by load."""
    text = (
        "CPU time of this project's process per unit of work, divided by that of the peer in the"
        " same round; for one kept connection, its median latency instead. Below 1 this project"
        " needs less. In brackets the lowest and the highest of the rounds, and the goal.\n\n"
    )
    others = (HAPROXY, HAPROXY_SPLICE, NGINX, *(peer for peer in PEERS.values() if peer.earlier))
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
    """Every peer's figures under one load, as a section; nothing where there are none."""
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
        "Each connection has carried one request and is kept since. Memory is the growth of the"
        " process (resident), without the kernel's sockets; then the load of 64 kept connections,"
        " without and with the idle ones beside it.\n\n"
    )
    head = ["", "KiB/pair", "µs/request alone", "µs/request beside", "beside, project ÷ peer"]
    return [f"## {run.idle:,} idle connections", text + table(head, lines)]


def _logging(rows: Sequence[Row]) -> list[str]:
    quiet, logging = _of(rows, "new", PROJECT.name), _of(rows, "new", LOGGING.name)
    if quiet is None or logging is None:
        return []
    text = (
        "With `EGRESS_DNS_PROXY_DEBUG` on, a record for each connection is written to a file: a"
        f" new connection costs {logging.proxy_cost:.1f} µs instead of {quiet.proxy_cost:.1f} µs."
    )
    return ["## Logging", text]


def _syscalls(run: Run) -> list[str]:
    if not run.syscalls:
        return []
    text = (
        "Connections one after the other, each with one request and its answer (`strace -c`).\n\n"
    )
    return ["## System calls for one short connection", text + syscalls_table(run.syscalls)]


def syscalls_table(counts: Sequence[SyscallCount]) -> str:
    """One line for each call that a connection makes, one column for each proxy."""
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
        "Shares of the whole machine: how idle it was (medians, from peer to peer), and in the"
        " worst round of any peer, how much went to other virtual machines (steal) and to whatever"
        " is neither the proxy, a server, a generator, nor a network thread of the kernel.\n\n"
    )
    return text + table(["load", "idle", "disturbed"], lines)


def _method(run: Run) -> str:
    return _METHOD.format(idle=f"{run.idle:,}")


_METHOD = """\
- Three network namespaces: clients, the pod, remote servers, joined by two veth pairs. The proxy
  has one core for itself; generators, servers and the benchmark share another one.
- Every proxy runs as one thread, without a log, with TCP keepalive on both sides, an idle timeout
  of an hour and a backlog of 4096, and connects from the reserved address without binding a port.
  HAProxy and nginx are Debian's, in TCP mode; nginx is one process, as a worker is, without
  a master. This project has its defaults.
- "IP forwarding" is the same pod without a proxy: the client connects to the server, and the pod
  routes. It is the physical limit of this laboratory.
- Bulk is iperf3, from the client to the remote, counted by the receiver. Requests are wrk, 128
  octets from an nginx that answers from memory, and the server's count has to agree with wrk's;
  a new connection carries one request, and the server ends it. Latencies are those that wrk has
  measured, without those it adds for requests that it would have liked to send meanwhile.
- Any error ends the benchmark. Before each round, what a proxy sends must reach the remote from the
  reserved address.
- The proxy's CPU time is its process's, with what the network stack does in its name. The machine's
  is all that its cores were not idle. Where the proxy's core is not fully used, the generator or
  the server is what limits the rate, and only CPU time per unit of work compares the proxies.
- Ports 1024 to 65535 are ephemeral and `tcp_tw_reuse` is 1 in all three namespaces, so that new
  connections don't run out of ports. All else is the kernel's default.
- Every round starts all processes anew and begins with another peer. Each load goes through all
  peers before the next one. Idle connections come last, with a fresh process for each peer."""


def _of(rows: Iterable[Row], load: str | None, peer: str) -> Row | None:
    return next((r for r in rows if r.peer == peer and load in {None, r.load}), None)
