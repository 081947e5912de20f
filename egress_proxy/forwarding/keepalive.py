"""TCP keepalive: detects a peer that has disappeared without a FIN or RST.

TCP_USER_TIMEOUT is not set: it would also end a live peer that reads slowly
(docs/decisions/002-no-user-timeout.md).
"""

from __future__ import annotations

import socket

# After 60 s of silence, four probes of 15 s (tcp(7)).
_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)


def keep_alive(sock: socket.SocketType) -> None:
    """Switch keepalive on; sockets accepted from a listening `sock` inherit it."""
    for option in _OPTIONS:
        sock.setsockopt(*option)
