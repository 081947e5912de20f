"""What `hold` reads of its environment, and what it says of what is wrong in it."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from egress_proxy.config.hold_variables import read_hold_settings
from egress_proxy.errors import ConfigurationError

VALID = {
    "EGRESS_HA": "lease",
    "EGRESS_SOURCE": "203.0.113.99/24",
    "EGRESS_GATEWAY": "203.0.113.1",
    "POD_NAME": "egress-router-7d9f-x2x4z",
    "POD_NAMESPACE": "egress",
    "POD_IP": "192.0.2.11",
}


def test_defaults() -> None:
    settings = read_hold_settings(VALID)
    assert (settings.lease, settings.duration_s, settings.handover_s) == ("egress-router", 2, 2.0)
    assert (settings.release_on_silence, settings.gateway_check) == (False, True)
    assert settings.drain_s == 25.0
    assert settings.pod_ip == ip_address("192.0.2.11")
    assert settings.admin_listen is not None
    assert settings.admin_listen.port == 9154


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        (
            "EGRESS_HA",
            "vrrp",
            "'vrrp': not a kind of high availability; write lease, or remove it",
        ),
        ("EGRESS_HA", "off", "not set; set it to lease in every container"),
        (
            "EGRESS_HA_LEASE",
            "Egress_Router",
            (
                "'Egress_Router': not a name that Kubernetes allows; write lower-case letters, "
                "digits "
                "and '-', for example egress-router"
            ),
        ),
        (
            "EGRESS_HA_LEASE_DURATION",
            "1500ms",
            (
                "'1500ms': not a number of whole seconds from 1 to 60; write for example 2s: the "
                "API "
                "server and the kernel count in seconds"
            ),
        ),
        (
            "EGRESS_HA_LEASE_DURATION",
            "61s",
            (
                "'61s': not a number of whole seconds from 1 to 60; write for example 2s: the "
                "API "
                "server and the kernel count in seconds"
            ),
        ),
        ("EGRESS_HA_API_SILENCE", "drop", "'drop': not a choice; write keep or release"),
        (
            "POD_NAME",
            "",
            "not set; set it to the pod's name (downward API: metadata.name)",
        ),
        (
            "POD_IP",
            "pod",
            "'pod': not an IP address; write for example 192.0.2.10",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_cure(name: str, value: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_hold_settings(VALID | {name: value})
    assert str(caught.value) == f"{name}: {text}"
    assert caught.value.exit_status == 2


def test_all_problems_are_said_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_hold_settings({"EGRESS_HA": "lease"})
    names = [problem.variable for problem in caught.value.problems]
    assert names == ["POD_NAME", "POD_NAMESPACE", "POD_IP", "EGRESS_SOURCE", "EGRESS_GATEWAY"]
