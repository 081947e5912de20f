"""What `run` does for one request, with the source that `hold` takes: for tests of the handover.

``proxy.py ADDRESS PORT SOURCE REMOTE REMOTE_PORT`` listens, lets a client wait until the source is
there (10 s at most, then it resets), connects from it and passes the answer on. After SIGTERM it
serves on for two seconds, as `run` does while endpoints are withdrawn.
"""

from __future__ import annotations

import errno
import signal
import socket
import struct
import sys
import threading
import time

CONNECT_TIMEOUT_S = 10.0
LINGER_S = 2.0
# The address is not there, or its route is not yet.
_NOT_YET = {errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EHOSTUNREACH}


def serve(client: socket.socket, source: str, remote: tuple[str, int]) -> None:
    with client:
        try:
            with _connect(source, remote) as upstream:
                answer = upstream.recv(1000)
            client.sendall(answer)
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _connect(source: str, remote: tuple[str, int]) -> socket.socket:
    given_up_at = time.monotonic() + CONNECT_TIMEOUT_S
    while True:
        try:
            return socket.create_connection(remote, 2, (source, 0))
        except OSError as error:
            if error.errno not in _NOT_YET or time.monotonic() > given_up_at:
                raise
        time.sleep(0.005)


def _end(listener: socket.socket) -> None:
    threading.Timer(LINGER_S, listener.shutdown, (socket.SHUT_RDWR,)).start()


def main(address: str, port: str, source: str, host: str, remote_port: str) -> None:
    listener = socket.create_server((address, int(port)), backlog=1000)
    signal.signal(signal.SIGTERM, lambda *_: _end(listener))
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=serve, args=(client, source, (host, int(remote_port)))).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
