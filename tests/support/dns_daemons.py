"""Real name servers from Debian, in a namespace: dnsmasq by itself, or behind unbound.

dnsmasq knows the records and nobody else to ask; unbound is sent to it for one zone, as a
delegation would do. Both are asked on port 53 of one address.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from tests.support.network import Namespace

ZONE = "example.com"
# Seconds: short, and far below what the proxy takes as the shortest.
TTL_S = 1
_BEHIND_PORT = 5353

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
    do-not-query-localhost: no
    cache-max-negative-ttl: {ttl}
    infra-host-ttl: {ttl}
stub-zone:
    name: "{zone}"
    stub-addr: 127.0.0.1@{port}
"""


def find(daemon: str) -> str | None:
    """The path of `daemon`; daemons are not on an ordinary user's PATH."""
    return shutil.which(daemon) or shutil.which(daemon, path="/usr/sbin:/sbin")


class DnsDaemons:
    """Serves `records`, names with one IPv4 address each, on `address`; `kind` is who answers.

    Leaving the ``with`` block ends it, and another one may be started in its place.
    """

    def __init__(
        self,
        kind: str,
        namespace: Namespace,
        address: str,
        records: Mapping[str, str],
        directory: Path,
    ) -> None:
        with ExitStack() as stack:
            front = kind == "dnsmasq"
            where = (address, 53) if front else ("127.0.0.1", _BEHIND_PORT)
            self.processes = [
                stack.enter_context(namespace.start(*_dnsmasq(where, records), env={}))
            ]
            if not front:
                conf = directory / "unbound.conf"
                conf.write_text(
                    _UNBOUND_CONF.format(
                        address=address,
                        directory=directory,
                        ttl=TTL_S,
                        zone=ZONE,
                        port=_BEHIND_PORT,
                    )
                )
                unbound = find("unbound")
                assert unbound is not None
                self.processes.append(
                    stack.enter_context(namespace.start(unbound, "-c", str(conf), env={}))
                )
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def _dnsmasq(where: tuple[str, int], records: Mapping[str, str]) -> list[str]:
    dnsmasq = find("dnsmasq")
    assert dnsmasq is not None
    address, port = where
    return [
        dnsmasq,
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--log-facility=-",
        "--user=root",
        "--group=root",
        "--pid-file=",
        f"--listen-address={address}",
        "--bind-interfaces",
        f"--port={port}",
        f"--local=/{ZONE}/",
        *(f"--host-record={name},{to},{TTL_S}" for name, to in records.items()),
    ]
