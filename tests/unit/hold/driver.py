"""An elector that a test drives event by event."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from egress_proxy.hold import messages as m
from egress_proxy.hold.elector import advance, start
from egress_proxy.hold.objects import Lease
from egress_proxy.hold.states import Role
from tests.unit.hold.simulation import GATEWAY, SETTINGS

if TYPE_CHECKING:
    from egress_proxy.hold.states import State

T = TypeVar("T")

ME, OTHER = "a", "b"
STRANGER = "02:00:00:00:00:66"


class Driver:
    """An elector whose API server answers when the test says so; the gateway answers at once."""

    def __init__(self) -> None:
        self.settings = replace(SETTINGS, identity=ME)
        self.now = 100.0
        self.state: State = start(self.now, carrier=True)
        self.actions: list[m.Action] = []
        self.feed(m.Tick())

    def feed(self, event: m.Input) -> None:
        self.state, actions = advance(self.settings, self.state, event, self.now)
        self.actions.extend(actions)
        if any(isinstance(action, m.AskGateway) for action in actions):
            self.state, more = advance(self.settings, self.state, m.GatewayHeard(GATEWAY), self.now)
            self.actions.extend(more)

    def run(self, until: float) -> None:
        """Let the timers fire."""
        while self.state.wake_at <= until:
            self.now = max(self.now, self.state.wake_at)
            self.feed(m.Tick())
        self.now = until

    def answer(self, lease: Lease | None) -> None:
        self.feed(m.RequestDone(lease))

    def fail(self, failure: m.Failure) -> None:
        self.feed(m.RequestFailed(failure, "a test"))

    def take(self, kind: type[T]) -> list[T]:
        """The actions of that kind so far; all are forgotten."""
        found: list[T] = [action for action in self.actions if isinstance(action, kind)]
        self.actions.clear()
        return found

    def take_all(self) -> list[m.Action]:
        """All actions so far; they are forgotten."""
        found, self.actions = self.actions, []
        return found

    def become_active(self, version: int = 10) -> Lease:
        """Take the Lease, which there is none of yet, and the address. The Lease as it is then."""
        self.answer(None)
        [write] = self.take(m.Write)
        held = replace(write.lease, resource_version=str(version))
        self.answer(held)
        for _ in range(3):
            self.now += 0.1
            self.feed(m.Tick())
            for write in self.take(m.Write):
                version += 1
                held = replace(write.lease, resource_version=str(version))
                self.answer(held)
        assert self.state.role == Role.ACTIVE
        return held

    def next_write(self) -> m.Write:
        """The next one that the timers make."""
        self.actions.clear()
        while True:
            self.run(self.state.wake_at)
            writes = self.take(m.Write)
            if writes:
                return writes[0]


def foreign(version: int, transitions: int = 5) -> Lease:
    return Lease(
        name="",
        holder=OTHER,
        duration_s=2,
        transitions=transitions,
        resource_version=str(version),
    )
