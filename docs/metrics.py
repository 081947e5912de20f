"""Makes docs/metrics.md from the code: `make docs` calls it."""

from __future__ import annotations

from pathlib import Path

from egress_proxy.events import Reason
from egress_proxy.telemetry.counters import BOUNDS_S
from egress_proxy.telemetry.metrics import METRICS

PAGE = Path(__file__).with_suffix(".md")
_HEAD = """\
# Metrics

Made by `make docs` from `egress_proxy/telemetry/metrics.py`; do not edit. They are at `/metrics` of
`EGRESS_DNS_PROXY_ADMIN_LISTEN`, with those of the process that Prometheus' client libraries have
(`process_resident_memory_bytes`, `process_cpu_seconds_total`, `process_open_fds` …). They are made
at most once per second. No label holds anything of a client. A destination that a reload has
removed keeps its series until one reload after its last connection has ended.

| metric | type | labels | meaning |
|---|---|---|---|
"""


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
        f"{bounds}.\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page())
