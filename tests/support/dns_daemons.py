"""Real name servers from Debian, in a namespace: dnsmasq alone, or delegated to by unbound.

unbound knows the parent zone and nothing else: an NS record and its glue there refer it to dnsmasq,
which knows the records and nobody else to ask. unbound stays, with all that it remembers, when
dnsmasq goes and comes back with other records.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.support.network import Namespace
    from tests.support.processes import Process

ZONE = "example.com"
# Seconds: short, and far below what the proxy takes as the shortest.
TTL_S = 1

_PARENT = "com"
_PARENT_ZONE = """\
$ORIGIN {parent}.
$TTL 3600
@ SOA ns.invalid. admin.invalid. 1 3600 600 86400 {ttl}
@ NS ns.invalid.
{zone}. NS ns.{zone}.
ns.{zone}. A {delegated}
"""
_UNBOUND_CONF = """\
server:
    interface: {address}
    access-control: 0.0.0.0/0 allow
    do-daemonize: no
    do-ip6: no
    use-syslog: no
    username: ""
    chroot: ""
    directory: "{directory}"
    pidfile: ""
    module-config: "iterator"
    cache-max-negative-ttl: {ttl}
    infra-host-ttl: {ttl}
auth-zone:
    name: "{parent}"
    zonefile: "parent.zone"
    for-downstream: no
"""


def find(daemon: str) -> str | None:
    """The path of `daemon`; daemons are not on an ordinary user's PATH."""
    return shutil.which(daemon) or shutil.which(daemon, path="/usr/sbin:/sbin")


class DnsDaemons(ExitStack):
    """Asked on port 53 of `address`, as long as the ``with`` block lasts; `kind` is who answers.

    dnsmasq listens on port 53 of `delegated`, if it is not who answers.
    """

    def __init__(
        self, kind: str, namespace: Namespace, address: str, delegated: str, directory: Path
    ) -> None:
        super().__init__()
        self._namespace = namespace
        self._knowing = address
        if kind == "unbound":
            self._knowing = delegated
            values = {
                "address": address,
                "delegated": delegated,
                "directory": directory,
                "parent": _PARENT,
                "ttl": TTL_S,
                "zone": ZONE,
            }
            (directory / "parent.zone").write_text(_PARENT_ZONE.format_map(values))
            conf = directory / "unbound.conf"
            conf.write_text(_UNBOUND_CONF.format_map(values))
            unbound = find("unbound")
            assert unbound is not None
            self.enter_context(namespace.start(unbound, "-c", str(conf), env={}))

    def serving(self, records: Mapping[str, str]) -> Process:
        """The server that knows `records`, names with one IPv4 address each.

        Leaving its ``with`` block ends it, and another one may be started in its place.
        """
        dnsmasq = find("dnsmasq")
        assert dnsmasq is not None
        return self._namespace.start(
            dnsmasq,
            # In the foreground, and as who it is: root of a user namespace can't give up groups.
            "--no-daemon",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--log-facility=-",
            f"--listen-address={self._knowing}",
            "--bind-interfaces",
            f"--local=/{ZONE}/",
            *(f"--host-record={name},{to},{TTL_S}" for name, to in records.items()),
            env={},
        )
