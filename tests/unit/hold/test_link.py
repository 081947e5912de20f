"""Whether the egress interface carries frames, from what the kernel answers."""

from __future__ import annotations

import asyncio
import errno
import struct
from typing import TYPE_CHECKING, cast

import pytest

from egress_proxy.hold.link import LinkMonitor, has_carrier, read_mac

if TYPE_CHECKING:
    import socket

UP, BROADCAST, RUNNING, MULTICAST = 0x1, 0x2, 0x40, 0x1000
GET_FLAGS, GET_HARDWARE_ADDRESS = 0x8913, 0x8927


def ifreq(content: bytes) -> bytes:
    """As the kernel fills it in (netdevice(7)): the name, then a union of 24 octets."""
    return struct.pack("=16s24s", b"net1", content)


@pytest.mark.parametrize(
    ("flags", "carrier"),
    [
        (UP | BROADCAST | RUNNING | MULTICAST, True),
        (UP | BROADCAST | MULTICAST, False),
        (BROADCAST | RUNNING, False),
        (0, False),
    ],
)
def test_frames_are_carried_while_the_interface_is_up_and_running(
    flags: int, *, carrier: bool
) -> None:
    asked: list[tuple[str, int]] = []

    def ask(interface: str, request: int) -> bytes:
        asked.append((interface, request))
        return ifreq(struct.pack("=H", flags))

    assert has_carrier("net1", ask) is carrier
    assert asked == [("net1", GET_FLAGS)]


def gone(interface: str, _request: int) -> bytes:
    raise OSError(errno.ENODEV, "No such device", interface)


def test_an_interface_that_is_gone_carries_nothing_and_has_no_address() -> None:
    assert not has_carrier("net1", gone)
    with pytest.raises(OSError, match="No such device"):
        read_mac("net1", gone)


def test_the_ethernet_address_follows_the_family() -> None:
    mac = bytes.fromhex("02000000000a")
    # ARPHRD_ETHER (linux/if_arp.h); what follows the six octets is not part of the address.
    answer = ifreq(struct.pack("=H6s8s", 1, mac, b"\xff" * 8))
    answers = {("net1", GET_HARDWARE_ADDRESS): answer}
    assert read_mac("net1", lambda *asked: answers[asked]) == mac


class News:
    """A netlink socket: messages, and the error after the last one."""

    def __init__(self, messages: int, error: OSError) -> None:
        self.messages = messages
        self.error = error

    def recv(self, _size: int) -> bytes:
        if not self.messages:
            raise self.error
        self.messages -= 1
        return b"\0" * 32


@pytest.mark.parametrize(
    "error",
    [
        BlockingIOError(errno.EAGAIN, "nothing more"),
        OSError(errno.ENOBUFS, "messages were lost"),
    ],
    ids=str,
)
def test_a_change_is_reported_once_whatever_the_messages_are(error: OSError) -> None:
    state = {"net1": True}
    changes: list[bool] = []
    loop = asyncio.new_event_loop()
    loop.close()
    monitor = LinkMonitor(loop, "net1", changes.append, state.__getitem__)
    assert monitor.carrier

    def heard(messages: int) -> None:
        news = News(messages, error)
        monitor._changed(cast("socket.socket", news))
        assert news.messages == 0

    heard(3)
    assert changes == []
    state["net1"] = False
    heard(3)
    heard(1)
    assert (changes, monitor.carrier) == ([False], False)
    state["net1"] = True
    heard(0)
    assert (changes, monitor.carrier) == ([False, True], True)
