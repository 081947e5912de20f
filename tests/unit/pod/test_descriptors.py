"""How the limit of open files is shared out."""

from __future__ import annotations

import pytest

from egress_proxy.errors import PlatformError
from egress_proxy.pod.descriptors import DescriptorBudget, share_descriptors


@pytest.mark.parametrize(
    ("wanted", "limit", "listeners", "budget"),
    [
        # 64 for the process, 128 for pipes, 64 for races, one per listener; two per connection.
        (None, 1024, 2, DescriptorBudget(64, 64, 383)),
        (383, 1024, 2, DescriptorBudget(64, 64, 383)),
        (1000, 1_048_576, 10, DescriptorBudget(64, 256, 1000)),
        (None, 1_048_576, 10, DescriptorBudget(64, 256, 524_059)),
        # Headroom, pipes and races shrink first.
        (None, 256, 2, DescriptorBudget(16, 16, 71)),
        (None, 100, 2, DescriptorBudget(6, 6, 20)),
    ],
)
def test_the_shares(
    wanted: int | None, limit: int, listeners: int, budget: DescriptorBudget
) -> None:
    assert share_descriptors(limit, listeners, wanted) == budget


@pytest.mark.parametrize("limit", range(100, 2000, 7))
def test_no_more_descriptors_are_given_away_than_there_are(limit: int) -> None:
    budget = share_descriptors(limit, 4, None)
    given = 2 * budget.pipes + budget.extra_attempts + 2 * budget.connections + 4
    # 40 of 100 are left for the process itself, 64 of 160 and more.
    assert given <= limit - min(64, limit * 2 // 5)
    assert budget.connections >= 1


@pytest.mark.parametrize(
    ("wanted", "limit", "problem"),
    [
        (
            None,
            49,
            (
                "the limit of open files is 49, 53 are needed; "
                "raise the container's nofile limit (RLIMIT_NOFILE)"
            ),
        ),
        (
            384,
            1024,
            (
                "EGRESS_DNS_PROXY_MAX_CONNECTIONS: '384': "
                "the limit of open files is 1024, 1026 are needed; "
                "raise the container's nofile limit (RLIMIT_NOFILE)"
            ),
        ),
    ],
)
def test_too_few_descriptors(wanted: int | None, limit: int, problem: str) -> None:
    with pytest.raises(PlatformError) as caught:
        share_descriptors(limit, 2, wanted)
    assert str(caught.value) == problem
