"""Pure functions: the samples of all rounds → one row per load and peer."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from bench.figures import median_or_none, ratios
from bench.loads import KEPT, LOADS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.samples import Sample

SCALE = {load.name: load.scale for load in LOADS}


@dataclass(frozen=True, slots=True)
class Ratio:
    """This project's figure divided by the peer's in the same round: median, lowest, highest."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Medians over the rounds. Costs are CPU seconds per gigabyte, or microseconds per request.

    `disturbance` is the share of the machine's CPU that other processes and other virtual machines
    used, in the round where it was largest.
    """

    load: str
    peer: str
    rounds: int
    rate: float
    proxy_cost: float
    machine_cost: float
    proxy_core: float
    latency_us: float | None
    octets_per_pair: float | None
    proxy_ratio: Ratio | None
    machine_ratio: Ratio | None
    latency_ratio: Ratio | None
    idle: float
    disturbance: float


def summarize(samples: Sequence[Sample], ours: str, cores: int) -> list[Row]:
    """One row per load and peer, in the order of their first samples."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.load, sample.peer), []).append(sample)
    return [_row(group, groups.get((load, ours), []), cores) for (load, _), group in groups.items()]


def _row(group: list[Sample], ours: list[Sample], cores: int) -> Row:
    first = group[0]

    def proxy_cost(sample: Sample) -> float:
        return sample.times.proxy / sample.amount * _scale(first.load)

    def machine_cost(sample: Sample) -> float:
        return sample.times.busy(cores) / sample.amount * _scale(first.load)

    def latency(sample: Sample) -> float | None:
        return sample.latency_us

    return Row(
        load=first.load,
        peer=first.peer,
        rounds=len(group),
        rate=median(sample.amount / sample.times.wall for sample in group),
        proxy_cost=median(map(proxy_cost, group)),
        machine_cost=median(map(machine_cost, group)),
        proxy_core=median(sample.times.proxy / sample.times.wall for sample in group),
        latency_us=median_or_none(sample.latency_us for sample in group),
        octets_per_pair=median_or_none(sample.octets_per_pair for sample in group),
        proxy_ratio=compare(ours, group, proxy_cost),
        machine_ratio=compare(ours, group, machine_cost),
        latency_ratio=compare(ours, group, latency),
        idle=median(sample.times.idle / (cores * sample.times.wall) for sample in group),
        disturbance=max(
            (sample.times.foreign(cores) + sample.times.steal) / (cores * sample.times.wall)
            for sample in group
        ),
    )


def compare(
    ours: Sequence[Sample], theirs: Sequence[Sample], figure: Callable[[Sample], float | None]
) -> Ratio | None:
    """`figure` of ours divided by that of theirs; None if one of them has none."""
    found = ratios(_by_round(ours, figure), _by_round(theirs, figure))
    return Ratio(median(found), min(found), max(found)) if found else None


def _by_round(
    samples: Sequence[Sample], figure: Callable[[Sample], float | None]
) -> dict[int, float]:
    figures = ((sample.number, figure(sample)) for sample in samples)
    return {number: value for number, value in figures if value is not None}


def _scale(load: str) -> float:
    # `IDLE` is not in `LOADS`; its requests are those of `KEPT`.
    return SCALE.get(load, KEPT.scale)
