"""Makes docs/metrics.md from the code: `make docs` calls it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from egress_proxy.events import Reason
from egress_proxy.hold.elector import start
from egress_proxy.hold.pages import Counts, exposition
from egress_proxy.telemetry.counters import BOUNDS_S
from egress_proxy.telemetry.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).with_suffix(".md")
_TABLE = """\
| metric | type | labels | meaning |
|---|---|---|---|
"""
_HEAD = f"""\
# Metrics

Made by `make docs` from the code; do not edit. Those of `run` are at `/metrics` of
`EGRESS_DNS_PROXY_ADMIN_LISTEN`, with those of the process that Prometheus' client libraries have
(`process_resident_memory_bytes`, `process_cpu_seconds_total`, `process_open_fds` …). They are made
at most once per second. No label holds anything of a client. A destination that a reload has
removed keeps its series until one reload after its last connection has ended.

{_TABLE}"""
_HOLD = f"""\
## High availability
`hold` has its own `/metrics`, at `EGRESS_HOLD_ADMIN_LISTEN`: port 9154, which the container
`egress-hold` names `hold-admin`.

{_TABLE}"""


def page() -> str:
    """The whole text."""
    table = "\n".join(
        f"| `{metric.full_name}` | {metric.kind} "
        f"| {', '.join(f'`{label}`' for label in metric.labels)} | {metric.meaning} |"
        for metric in METRICS
    )
    reasons = ", ".join(f"`{reason}`" for reason in Reason)
    bounds = ", ".join(f"{bound:g}" for bound in BOUNDS_S)
    return (
        f"{_HEAD}{table}\n\n`reason` is one of {reasons}.\n\nThe histogram's bounds, in seconds: "
        f"{bounds}.\n\n{_HOLD}{''.join(_of_hold())}"
    )


def _of_hold() -> Iterator[str]:
    """The rows of hold's metrics, read from what a pod with a gateway delivers."""
    state = replace(start(0.0, carrier=True), heard={IPv4Address("203.0.113.1"): 0.0})
    for family in text_string_to_metric_families("".join(exposition(state, 0.0, Counts()))):
        labels = sorted({label for sample in family.samples for label in sample.labels})
        suffix = "_total" if family.type == "counter" else ""
        yield (
            f"| `{family.name}{suffix}` | {family.type} "
            f"| {', '.join(f'`{label}`' for label in labels)} | {family.documentation} |\n"
        )


if __name__ == "__main__":
    PAGE.write_text(page())
