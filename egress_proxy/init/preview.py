"""What init would do, as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from egress_proxy.errors import Problem
    from egress_proxy.init.settings import InitSettings
    from egress_proxy.init.state import Link, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """The observed state, the changes that init would make, and the problems.

    `steps` are commands of ip(8) and sysctl(8); there are none when everything is in place, or when
    the egress interface is missing. `problems` would make init fail; `warnings` would not.
    """

    settings: InitSettings
    state: State
    steps: tuple[str, ...]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]

    def __str__(self) -> str:
        """Several lines; `problems` and `warnings` are not among them."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        settings, state = self.settings, self.state
        for source in settings.sources:
            taker = "hold" if settings.shared else "init"
            yield f"{taker}: {source} on {settings.interface}, over {source.gateway}"
        yield from _section("interfaces", map(_link, state.links))
        yield from _section(
            "addresses",
            (assigned for assigned in state.addresses if not assigned.address.is_loopback),
        )
        yield from _section("routes", state.routes)
        yield from _section("rules to the reply table", state.rules)
        yield from _section("name servers", state.name_servers)
        yield from _section("steps", self.steps)


def _section(title: str, entries: Iterable[object]) -> Iterator[str]:
    yield f"{title}:"
    yield from [f"  {entry}" for entry in entries] or ["  none"]


def _link(link: Link) -> str:
    condition = "down" if not link.up else "up" if link.carrier else "up, no carrier"
    return f"{link.name}: {condition}"
