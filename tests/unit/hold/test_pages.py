"""What /livez, /readyz and /metrics of `hold` say of the elector's state."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address

from prometheus_client.parser import text_string_to_metric_families

from egress_proxy.hold.elector import start
from egress_proxy.hold.events import HoldActive
from egress_proxy.hold.objects import Lease
from egress_proxy.hold.pages import Counts, HoldPages, exposition
from egress_proxy.hold.states import Role, State

NOW = 100.0
STANDBY = start(NOW, carrier=True)
ACTIVE = replace(
    STANDBY,
    role=Role.ACTIVE,
    confirmed=True,
    own=Lease(name="egress-router", holder="a"),
    valid_until=NOW + 1.5,
    heard={IPv4Address("203.0.113.1"): NOW - 0.25},
)


def answer(state: State, path: str, now: float = NOW, method: str = "GET") -> tuple[int, str]:
    page = asyncio.run(HoldPages(lambda: (state, now), Counts()).answer(method, path))
    return page.status, page.body.decode()


def test_a_standby_is_ready_as_an_active_is() -> None:
    assert answer(STANDBY, "/readyz") == answer(ACTIVE, "/readyz") == (200, "ok\n")


def test_readiness_is_what_this_pod_could_not_do() -> None:
    assert answer(replace(STANDBY, carrier=False), "/readyz") == (
        503,
        "the egress interface has no carrier\n",
    )
    assert answer(replace(STANDBY, role=Role.BLOCKED), "/readyz")[0] == 503


def test_an_elector_that_does_not_run_is_not_alive() -> None:
    assert answer(STANDBY, "/livez", NOW + 4) == (200, "ok\n")
    assert answer(STANDBY, "/livez", NOW + 6)[0] == 503


def test_nothing_else_is_there_and_nothing_can_be_changed() -> None:
    assert answer(STANDBY, "/")[0] == 404
    assert answer(STANDBY, "/metrics", method="POST")[0] == 405


def samples(state: State, counts: Counts) -> dict[tuple[str, ...], float]:
    text = "".join(exposition(state, NOW, counts))
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_are_the_state_and_what_was_counted() -> None:
    counts = Counts()
    counts.observe(HoldActive(after="expiry", takeover_s=0.25))
    counts.renewals["doubtful"] += 1
    found = samples(ACTIVE, counts)
    assert found["egress_proxy_hold_state", "active"] == 1
    assert found["egress_proxy_hold_state", "standby"] == 0
    assert found["egress_proxy_hold_takeovers_total", "expiry"] == 1
    assert found["egress_proxy_hold_takeover_seconds_sum",] == 0.25
    assert found["egress_proxy_lease_renewals_total", "doubtful"] == 1
    assert found["egress_proxy_lease_valid_seconds",] == 1.5
    assert found["egress_proxy_gateway_heard_seconds", "203.0.113.1"] == 0.25


def test_an_active_without_renewals_is_unconfirmed() -> None:
    found = samples(replace(ACTIVE, confirmed=False), Counts())
    assert found["egress_proxy_hold_state", "unconfirmed"] == 1
    assert found["egress_proxy_hold_state", "active"] == 0
