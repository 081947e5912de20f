"""Packet sockets (packet(7)) that hear and send frames of one type on one interface."""

from __future__ import annotations

import socket


def open_packet_socket(interface: str, ethertype: int) -> socket.socket:
    """A non-blocking socket that hears from now on. Raises OSError, as without NET_RAW."""
    # Protocol 0 hears nothing until it is bound: without it, every interface would be claim.
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    try:
        opened.bind((interface, ethertype))
    except OSError:
        opened.close()
        raise
    opened.settimeout(0)
    return opened
