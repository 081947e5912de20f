"""Packet sockets (packet(7)) that receive and send frames of one type on one interface."""

from __future__ import annotations

import socket


def open_packet_socket(interface: str, ethertype: int) -> socket.socket:
    """A non-blocking socket that receives from now on. Raises OSError, e.g. without NET_RAW."""
    # Protocol 0 receives nothing until the bind; another one would receive from every interface.
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    try:
        opened.bind((interface, ethertype))
    except OSError:
        opened.close()
        raise
    opened.settimeout(0)
    return opened
