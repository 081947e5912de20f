"""Clients that wait for the source address."""

from __future__ import annotations

from egress_proxy.forwarding.source_gate import SourceGate


class Client:
    def __init__(self, gate: SourceGate, *, comes_back: bool = False) -> None:
        self.calls = 0
        self._gate = gate
        self._comes_back = comes_back

    def source_is_there(self) -> None:
        self.calls += 1
        if self._comes_back:
            self._gate.wait(self)


def test_each_who_waits_is_told_once() -> None:
    gate = SourceGate(is_open=False)
    first, second, gone = Client(gate), Client(gate), Client(gate)
    for client in (first, second, gone):
        gate.wait(client)
    gate.leave(gone)
    gate.open()
    gate.close()
    gate.open()
    assert [client.calls for client in (first, second, gone)] == [1, 1, 0]


def test_one_that_waits_again_is_told_the_next_time() -> None:
    gate = SourceGate(is_open=False)
    client = Client(gate, comes_back=True)
    gate.wait(client)
    gate.open()
    assert client.calls == 1
    gate.open()
    assert client.calls == 2
