"""The laboratory itself: who reaches whom, and what commands inside may do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.lab import POD

if TYPE_CHECKING:
    from tests.support.lab import Lab


def test_a_client_on_another_subnet_reaches_the_pod(lab: Lab) -> None:
    with (
        lab.pod.listen(POD.v4, 80) as listener,
        lab.client.connect(POD.v4, 80) as client,
        listener.accept()[0] as accepted,
    ):
        client.sendall(b"hello")
        assert accepted.recv(5) == b"hello"
