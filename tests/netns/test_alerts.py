"""The alerts on the metrics of a real run: silent while all is well, then each by its own trouble.

A scrape stands for minutes of Prometheus' time, which takes the same figures several times.
"""

from __future__ import annotations

import json
import re
from contextlib import ExitStack, suppress
from http.client import HTTPConnection
from typing import TYPE_CHECKING

from tests.support.alert_rules import ALERTS, RULE, promtool, write_rules
from tests.support.deployment import LEAST_PRIVILEGE, Deployment
from tests.support.dns import Name
from tests.support.lab import OUTSIDE, POD
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.lab import Lab

ADMIN_PORT, GOOD_PORT, BAD_PORT, UNKNOWN_PORT = 9153, 80, 9443, 9000
GOOD = f"{GOOD_PORT} {OUTSIDE.v4}\n{BAD_PORT} fails.example.com\n"
LIMIT = 10
STEP_S = 30
# Ten minutes is the longest that an alert waits (EgressNameStale); a rate looks back five or ten.
CALM, TROUBLE = 2, 6
STEPS, LOST_STEPS, DRAIN_STEPS, ABSENT_STEPS = 5, 4, 6, 22
# Not brought about here: rules_test.yaml has them. Five are of high availability.
ELSEWHERE = {
    "EgressLogDropped",
    "EgressDefect",
    "EgressNoActive",
    "EgressTwoActive",
    "EgressNoStandby",
    "EgressLeaseUnconfirmed",
    "EgressAddressConflict",
}


class History:
    """Scrapes, and what Prometheus is to say of them."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._scrapes: list[dict[str, str]] = []
        self._expected: list[dict[str, object]] = []
        self._used = set(re.findall(r"egress_proxy_\w+", RULE))

    def scrape(self, steps: int = STEPS) -> None:
        """Take the next figures, as soon as they are others than the last, for `steps` steps.

        The pod makes them once a second at most.
        """
        before = self._scrapes[-1] if self._scrapes else {}
        taken: dict[str, str] = {}

        def ask() -> bool:
            nonlocal taken
            taken = self._ask()
            return taken != before

        wait_until(ask)
        self._scrapes += [taken] * steps

    def _ask(self) -> dict[str, str]:
        """What `/metrics` says to a client of the cluster; only what the rules use."""
        with self._lab.client.connect(POD.v4, ADMIN_PORT) as sock:
            connection = HTTPConnection(POD.v4, ADMIN_PORT)
            connection.sock = sock
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        samples = re.findall(r"^(egress_proxy_\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE)
        return {
            f'{name}{{namespace="egress",pod="a-egress-router-1",{labels}}}': value
            for name, labels, value in samples
            if name in self._used
        }

    def miss(self, steps: int) -> None:
        """The pod does not answer for `steps` steps."""
        self._scrapes += [{}] * steps

    def expect(self, alerts: dict[str, int], **where: str) -> None:
        """So often each alert fires after the last scrape, and no other; where, by its labels."""
        at = f"{(len(self._scrapes) - 1) * STEP_S}s"
        firing = [
            {"labels": f'{{alertname="{alert}"}}', "value": count}
            for alert, count in alerts.items()
        ]
        self._expect(at, 'count by (alertname) (ALERTS{alertstate="firing"})', firing)
        for alert, labels in where.items():
            one = {"labels": "{}", "value": 1}
            self._expect(at, f'count(ALERTS{{alertname="{alert}",{labels}}})', [one])

    def _expect(self, at: str, expr: str, samples: list[dict[str, object]]) -> None:
        self._expected.append({"eval_time": at, "expr": expr, "exp_samples": samples})

    def write_test(self, directory: Path) -> None:
        series = {name for scrape in self._scrapes for name in scrape}
        test = {
            "interval": f"{STEP_S}s",
            "input_series": [
                {
                    "series": name,
                    "values": " ".join(scrape.get(name, "_") for scrape in self._scrapes),
                }
                for name in sorted(series)
            ],
            "promql_expr_test": self._expected,
        }
        file = {"rule_files": ["rules.yaml"], "evaluation_interval": "30s", "tests": [test]}
        # YAML is a superset of JSON.
        (directory / "real.yaml").write_text(json.dumps(file))


def exchange(deployment: Deployment) -> None:
    client, upstream = deployment.connect(GOOD_PORT)
    with client, upstream:
        upstream.sendall(b"answer")
        assert client.recv(6) == b"answer"


def fail(deployment: Deployment) -> None:
    """A client of the port that leads nowhere: it is reset, perhaps before it knows better."""
    with suppress(ConnectionError), deployment.lab.client.connect(POD.v4, BAD_PORT) as client:
        client.recv(1)


def test_alerts_of_a_real_run(lab: Lab, tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    destinations = tmp_path / "destinations"
    destinations.write_text(GOOD)
    history = History(lab)
    with Deployment(lab, LEAST_PRIVILEGE) as deployment, ExitStack() as sessions:
        deployment.dns.zone["fails.example.com"] = Name(a=(OUTSIDE.v4,))
        deployment.init()
        proxy = deployment.start(
            EGRESS_DNS_PROXY_DESTINATION="",
            EGRESS_DNS_PROXY_DESTINATION_FILE=str(destinations),
            EGRESS_DNS_PROXY_MAX_CONNECTIONS=str(LIMIT),
        )
        proxy.wait_for("daemon.ready", listeners=2)
        for _ in range(CALM):
            exchange(deployment)
            history.scrape()
        history.expect({})

        destinations.write_text(f"{GOOD}{UNKNOWN_PORT} never.example.com\n")
        proxy.wait_for("config.reloaded", added=[UNKNOWN_PORT])
        destinations.write_text(f"{GOOD_PORT} localhost\n")
        proxy.wait_for("config.rejected")
        del deployment.dns.zone["fails.example.com"]
        for _ in range(LIMIT - 1):
            for end in deployment.connect(GOOD_PORT):
                sessions.enter_context(end)
        fail(deployment)
        proxy.wait_for("destination.stale", destination="fails.example.com")
        for _ in range(TROUBLE):
            fail(deployment)
            proxy.wait_for("connection.closed", listener=BAD_PORT)
            history.scrape()
        trouble = {
            "EgressListenerDown": 1,
            "EgressDestinationDown": 1,
            "EgressNameStale": 1,
            "EgressConnectionLimitNear": 1,
            "EgressListenersPausing": 1,
            "EgressReloadRejected": 1,
        }
        history.expect(
            trouble,
            EgressListenerDown=f'listener="{UNKNOWN_PORT}"',
            EgressDestinationDown=f'destination="fails.example.com:{BAD_PORT}"',
            EgressNameStale='name="fails.example.com"',
        )

        lab.pod.netlink(lambda ip: ip.link("set", index=lab.pod.index("macvlan0"), state="down"))
        proxy.wait_for("source.lost")
        history.scrape(LOST_STEPS)
        trouble |= {"EgressSourceAddressGone": 1}
        history.expect(trouble)

        proxy.terminate()
        proxy.wait_for("daemon.draining")
        history.scrape(DRAIN_STEPS)
        # By now all ports have refused for two minutes, and no client has tried for five.
        drained = trouble | {"EgressDrainStuck": 1, "EgressListenerDown": 3}
        del drained["EgressDestinationDown"]
        history.expect(drained)
    history.miss(ABSENT_STEPS)
    history.expect({"EgressRouterAbsent": 1})

    write_rules(tmp_path)
    history.write_test(tmp_path)
    promtool(tmp_path, "test rules real.yaml")
    assert {*trouble, *drained, "EgressRouterAbsent"} == set(ALERTS) - ELSEWHERE
