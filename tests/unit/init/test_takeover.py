"""The steps of one attempt and their undoing, against a kernel that refuses some."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from egress_proxy.errors import PlatformError
from egress_proxy.init.announce import DEFAULT_PACE
from egress_proxy.init.plan import make_plan
from egress_proxy.init.steps import PutAddress, PutRoute, PutRule
from egress_proxy.init.takeover import Takeover
from tests.unit.init.iproute import settings, state

if TYPE_CHECKING:
    from egress_proxy.events import Event
    from egress_proxy.init.steps import Change, Step

WANTED = settings("203.0.113.99/25", "203.0.113.1")
STEPS = make_plan(
    state(
        """
        address 192.0.2.10/24 dev eth0
        192.0.2.0/24 dev eth0 src 192.0.2.10
        default via 192.0.2.1 dev eth0
        """
    ),
    WANTED,
).steps


class Kernel:
    """Applies changes, in `applied`, but for those of `refusals`."""

    def __init__(self, refusals: dict[type[Change], int] | None = None) -> None:
        self.applied: list[Change] = []
        self.refusals = refusals or {}

    def apply(self, change: Change) -> None:
        number = self.refusals.get(type(change))
        if number is not None:
            raise OSError(number, os.strerror(number))
        self.applied.append(change)


class Log:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def observe(self, event: Event) -> None:
        self.events.append(event)


def takeover(kernel: Kernel) -> Takeover:
    return Takeover(cast("Any", kernel), WANTED, Log(), DEFAULT_PACE)


def apply(attempt: Takeover, steps: tuple[Step, ...] = STEPS) -> None:
    attempt._apply(steps)


def test_what_was_done_is_undone_last_first() -> None:
    kernel = Kernel()
    attempt = takeover(kernel)
    apply(attempt)
    assert len(STEPS) > 5
    assert kernel.applied == [step.change for step in STEPS]
    kernel.applied.clear()
    assert attempt.undo() == ()
    assert kernel.applied == [step.undo for step in reversed(STEPS)]
    # And only once.
    assert attempt.undo() == ()
    assert len(kernel.applied) == len(STEPS)


@pytest.mark.parametrize("kind", [PutAddress, PutRule])
def test_what_another_program_has_added_is_not_taken_back(kind: type[Change]) -> None:
    kernel = Kernel({kind: errno.EEXIST})
    attempt = takeover(kernel)
    apply(attempt)
    assert attempt.done == [step for step in STEPS if not isinstance(step.change, kind)]
    assert len(attempt.done) < len(STEPS)
    kernel.applied.clear()
    attempt.undo()
    assert kernel.applied == [
        step.undo for step in reversed(STEPS) if not isinstance(step.change, kind)
    ]


@pytest.mark.parametrize(
    ("kind", "number"),
    [(PutAddress, errno.EPERM), (PutRule, errno.ENOBUFS), (PutRoute, errno.EEXIST)],
)
def test_any_other_refusal_ends_the_attempt(kind: type[Change], number: int) -> None:
    kernel = Kernel({kind: number})
    attempt = takeover(kernel)
    with pytest.raises(PlatformError) as caught:
        apply(attempt)
    assert f"the kernel refuses '{next(s for s in STEPS if isinstance(s.change, kind))}'" in str(
        caught.value
    )
    first = next(i for i, step in enumerate(STEPS) if isinstance(step.change, kind))
    assert attempt.done == list(STEPS[:first])


def test_what_can_not_be_undone_is_returned_and_the_rest_is_undone() -> None:
    kernel = Kernel()
    attempt = takeover(kernel)
    apply(attempt)
    undone = {type(step.undo) for step in STEPS if isinstance(step.change, PutRule)}
    kernel.refusals = dict.fromkeys(undone, errno.ENOENT)
    kernel.applied.clear()
    left = attempt.undo()
    rules = [step for step in STEPS if isinstance(step.change, PutRule)]
    assert [problem.value for problem in left] == [str(step.undo) for step in reversed(rules)]
    assert len(kernel.applied) == len(STEPS) - len(rules)


def test_a_change_that_is_not_in_effect_at_the_end_is_reported() -> None:
    attempt = takeover(Kernel())
    with pytest.raises(PlatformError) as caught:
        attempt._read_back(replace(state(""), sysctls_writable=False))
    assert "was made, but is not in effect" in str(caught.value)
