"""A process that changes the addresses of many ports as the daemon does, until it is killed."""

from __future__ import annotations

import sys
from ipaddress import ip_address

from egress_proxy.nft.rules_writer import put_table
from egress_proxy.nft.ruleset import Ruleset, Translation
from egress_proxy.nft.session_rules import SessionRules
from tests.support.lab import RESERVED

PORTS = range(1001, 1201)


def rules(outside: str) -> Ruleset:
    """Many ports, so that a transaction takes a while."""
    return Ruleset(
        egress="macvlan0",
        sources=(ip_address(RESERVED.v4),),
        translations=tuple(
            Translation("tcp", port, (ip_address(outside),), 9, mark=port) for port in PORTS
        ),
        sessions=SessionRules(connect_timeout_s=10, idle_timeout_s=0, half_close_timeout_s=0),
    )


def main() -> None:
    tables = [rules(outside).table() for outside in sys.argv[1:]]
    in_force = tables[0]
    put_table(None, in_force)
    print('{"event": "swapping"}', flush=True)  # noqa: T201 - the test waits for it
    while True:
        for table in reversed(tables):
            put_table(in_force, table)
            in_force = table


if __name__ == "__main__":
    main()
