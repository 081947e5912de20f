"""Makes docs/metrics.md from the code: `make docs` calls it."""

from __future__ import annotations

from pathlib import Path

from egress_proxy.events import Reason
from egress_proxy.telemetry.counters import BOUNDS_S
from egress_proxy.telemetry.metrics import CONNECT_DURATION, METRICS, PREFIX

PAGE = Path(__file__).with_suffix(".md")
_HEAD = """\
# Metrics

Made by `make docs` from `egress_proxy/metrics.py`; do not edit. They are at `/metrics` of
`EGRESS_DNS_PROXY_ADMIN_LISTEN`, with those of the process (`process_resident_memory_bytes`,
`process_cpu_seconds_total`, `process_open_fds` …) from the official client library. No label holds
anything of a client. A destination that a reload has removed keeps its series until one reload
after its last connection has ended.

| metric | type | labels | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The whole text."""
    rows: list[tuple[str, str, tuple[str, ...], str]] = [
        (
            PREFIX + metric.name + ("_total" if metric.kind == "counter" else ""),
            metric.kind,
            metric.labels,
            metric.meaning,
        )
        for metric in METRICS
    ]
    name, labels, meaning = CONNECT_DURATION
    rows.append((PREFIX + name, "histogram", labels, meaning))
    table = "\n".join(
        f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {meaning} |"
        for name, kind, labels, meaning in rows
    )
    reasons = ", ".join(f"`{reason}`" for reason in Reason)
    bounds = ", ".join(f"{bound:g}" for bound in BOUNDS_S)
    return (
        f"{_HEAD}{table}\n\n`reason` is one of {reasons}.\n\nThe histogram's bounds, in seconds: "
        f"{bounds}.\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page())
