"""The text that Prometheus scrapes, against a whole example."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

from msgspec.structs import replace

from egress_proxy.events import Reason
from egress_proxy.telemetry.counters import BOUNDS_S
from egress_proxy.telemetry.metrics import METRICS, PREFIX, exposition
from egress_proxy.telemetry.process import Sample
from egress_proxy.telemetry.status import ConnectTimes, Upstream
from tests.support.needs import do_without
from tests.support.statuses import destination, name, status

if TYPE_CHECKING:
    from egress_proxy.telemetry.status import ListenerState, Status

FAILED = (
    Upstream(address="192.0.2.1", healthy=True),
    Upstream(address="192.0.2.2", healthy=False),
    Upstream(address="192.0.2.3", healthy=False),
)
EXAMPLE = replace(
    status(
        replace(
            destination(),
            active=2,
            established=3,
            connect_times=ConnectTimes(within=(0, 0, 0, 1, 1, 1, 1, 3), count=4, sum_s=20.5),
            ended={"finished": 3, "error": 1},
            upstreams=FAILED[:2],
            upstream_failures=4,
            bytes_to_upstream=5,
            bytes_to_client=7,
        ),
        destination("refusing", port=81, name="a.example"),
        # Another port that leads where the first one does, and has found out something else.
        replace(
            destination("removed", port=82),
            destination="192.0.2.1:80",
            ended={"finished": 1},
            upstreams=FAILED[1:],
            upstream_failures=4,
        ),
        names=(name("timed out"), replace(name(), name="b.example", addresses=2, last_success=9.5)),
        source="no interface has it",
    ),
    pauses=6,
    log_dropped=8,
    defects=9,
)
PROCESS = (Sample("gauge", "process_resident_memory_bytes", "Resident memory size in bytes.", 42),)
HERE = 'destination="192.0.2.1:80",listener="80"'
_PREFIX = "egress_proxy_connect_duration_seconds"


def histogram(destination: str, listener: int, within: str, total_s: str) -> str:
    counts = within.split()
    where = f'destination="{destination}"', f'listener="{listener}"'
    buckets = [
        f'{_PREFIX}_bucket{{{where[0]},le="{bound}",{where[1]}}} {count}.0'
        for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), counts, strict=True)
    ]
    here = f"{{{where[0]},{where[1]}}}"
    sums = f"{_PREFIX}_count{here} {counts[-1]}.0", f"{_PREFIX}_sum{here} {total_s}"
    return "\n".join([*buckets, *sums, ""])


HISTOGRAMS = (
    histogram("192.0.2.1:80", 80, "0 0 0 1 1 1 1 3 4", "20.5")
    + histogram("a.example:81", 81, "0 0 0 0 0 0 0 0 0", "0.0")
    + histogram("192.0.2.1:80", 82, "0 0 0 0 0 0 0 0 0", "0.0")
)
EXPECTED = f"""\
egress_proxy_connections_total{{destination="192.0.2.1:80",listener="80",reason="finished"}} 3.0
egress_proxy_connections_total{{destination="192.0.2.1:80",listener="80",reason="error"}} 1.0
egress_proxy_connections_total{{destination="a.example:81",listener="81",reason="finished"}} 0.0
egress_proxy_connections_total{{destination="192.0.2.1:80",listener="82",reason="finished"}} 1.0
egress_proxy_connections_established_total{{{HERE}}} 3.0
egress_proxy_connections_established_total{{destination="a.example:81",listener="81"}} 0.0
egress_proxy_connections_established_total{{destination="192.0.2.1:80",listener="82"}} 0.0
egress_proxy_connections_active{{{HERE}}} 2.0
egress_proxy_connections_active{{destination="a.example:81",listener="81"}} 0.0
egress_proxy_connections_active{{destination="192.0.2.1:80",listener="82"}} 0.0
egress_proxy_connections_limit 1000.0
egress_proxy_bytes_total{{destination="192.0.2.1:80",direction="to_upstream",listener="80"}} 5.0
egress_proxy_bytes_total{{destination="192.0.2.1:80",direction="to_client",listener="80"}} 7.0
egress_proxy_bytes_total{{destination="a.example:81",direction="to_upstream",listener="81"}} 0.0
egress_proxy_bytes_total{{destination="a.example:81",direction="to_client",listener="81"}} 0.0
egress_proxy_bytes_total{{destination="192.0.2.1:80",direction="to_upstream",listener="82"}} 0.0
egress_proxy_bytes_total{{destination="192.0.2.1:80",direction="to_client",listener="82"}} 0.0
egress_proxy_upstream_failures_total{{destination="192.0.2.1:80"}} 4.0
egress_proxy_upstream_failures_total{{destination="a.example:81"}} 0.0
egress_proxy_upstream_addresses_failed{{destination="192.0.2.1:80"}} 2.0
egress_proxy_upstream_addresses_failed{{destination="a.example:81"}} 0.0
egress_proxy_dns_lookups_total{{name="a.example",result="resolved"}} 0.0
egress_proxy_dns_lookups_total{{name="b.example",result="resolved"}} 0.0
egress_proxy_dns_addresses{{name="a.example"}} 0.0
egress_proxy_dns_addresses{{name="b.example"}} 2.0
egress_proxy_dns_stale{{name="a.example"}} 0.0
egress_proxy_dns_stale{{name="b.example"}} 0.0
egress_proxy_dns_last_success_timestamp_seconds{{name="b.example"}} 9.5
egress_proxy_listener_up{{listener="80"}} 1.0
egress_proxy_listener_up{{listener="81"}} 0.0
egress_proxy_listeners_paused_total 6.0
egress_proxy_source_info{{address="192.0.2.99"}} 1.0
egress_proxy_source_up{{address="192.0.2.99"}} 0.0
egress_proxy_config_reloads_total{{result="reloaded"}} 0.0
egress_proxy_config_reloads_total{{result="rejected"}} 0.0
egress_proxy_config_last_reload_successful 1.0
egress_proxy_draining 0.0
egress_proxy_log_records_dropped_total 8.0
egress_proxy_defects_total 9.0
egress_proxy_build_info{{python="3.11",version="1.0"}} 1.0
{HISTOGRAMS}"""


def text_of(shown: Status) -> str:
    return b"".join(exposition(shown, PROCESS)).decode()


def samples(text: str) -> dict[tuple[str, frozenset[str]], float]:
    """The series of this program, as a name and its labels, with their values."""
    found = {}
    for line in text.splitlines():
        if line.startswith(PREFIX):
            series, value = line.rsplit(" ", 1)
            name, _, labels = series.rstrip("}").partition("{")
            found[name, frozenset(re.findall(r'\w+="(?:[^"\\]|\\.)*"', labels))] = float(value)
    return found


def test_every_sample_of_an_example() -> None:
    assert samples(text_of(EXAMPLE)) == samples(EXPECTED)


def test_the_values_of_labels_are_escaped() -> None:
    shown = status(replace(destination(), destination='a"b\\c\nd'))
    assert '{destination="a\\"b\\\\c\\nd",listener="80"} 0\n' in text_of(shown)


def test_the_text_of_many_destinations_comes_in_small_parts() -> None:
    shown = status(*(destination(port=port) for port in range(1, 1001)))
    parts = list(exposition(shown, PROCESS))
    lines = [part.count(b"\n") for part in parts]
    assert sum(lines) > 19_000
    assert max(lines) <= 1001


def test_reasons_that_alerts_use_are_there_from_the_start_and_others_once_they_occur() -> None:
    def reasons(ended: dict[str, int]) -> list[str]:
        return re.findall(
            r'connections_total{.*reason="(.*?)"}',
            text_of(status(replace(destination(), ended=ended))),
        )

    none = dict.fromkeys(map(str, Reason), 0)
    start = ["finished", "connect_refused", "connect_timeout", "connect_unreachable"]
    assert reasons(none) == start
    assert reasons(none | {"drained": 1}) == [*start, "drained"]


def test_a_port_that_cannot_listen_is_down() -> None:
    states: list[ListenerState] = ["listening", "paused", "refusing", "failed", "removed"]
    shown = status(*(destination(state, port=port) for port, state in enumerate(states, 80)))
    up = {
        series: value
        for series, value in samples(text_of(shown)).items()
        if series[0] == f"{PREFIX}listener_up"
    }
    assert {min(labels): value for (_, labels), value in up.items()} == {
        'listener="80"': 1,
        'listener="81"': 1,
        'listener="82"': 0,
        'listener="83"': 0,
    }


def test_the_process_has_the_metrics_of_the_client_libraries() -> None:
    assert "\nprocess_resident_memory_bytes 42\n" in text_of(EXAMPLE)
    assert "\n# TYPE process_resident_memory_bytes gauge\n" in text_of(EXAMPLE)


def test_every_metric_has_a_help_text() -> None:
    told = set(re.findall(r"^# HELP (\w+) \S", text_of(EXAMPLE), re.MULTILINE))
    assert {name for name in told if name.startswith(PREFIX)} == {
        metric.full_name for metric in METRICS
    }


def test_prometheus_finds_nothing_to_criticise() -> None:
    if shutil.which("promtool") is None:
        do_without("promtool is missing (Debian: prometheus)")
    judged = subprocess.run(
        ["promtool", "check", "metrics"],
        input=text_of(EXAMPLE).encode(),
        capture_output=True,
        check=False,
    )
    assert (judged.returncode, judged.stdout, judged.stderr) == (0, b"", b"")
