"""Whether what a sweep runs on is still there: the servers of a Ray cluster, asked by their ports.

Ray's own client notices a dead head after a minute and then ends the process from below, without a report; a dead raylet of
this machine it does not notice at all. Asking needs no Ray, so that it works when Ray does not answer.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping

ASK_SECONDS = 3.0
"""Between two looks, and how long an answer may take."""
GONE_SECONDS = 15.0
"""Without an answer, after which a server counts as gone; Ray gives up on its head after 60."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""How a client of gRPC begins (RFC 9113, 3.4), with settings of its own: none."""

Address = tuple[str, int]


@contextlib.contextmanager
def watched(servers: Mapping[str, Address], lost: Callable[[str], None]) -> Iterator[None]:
    """Call `lost(name)` once, from a thread, when one of `servers` does not answer for `GONE_SECONDS`."""
    ended = threading.Event()

    def watch() -> None:
        seen = dict.fromkeys(servers, time.monotonic())
        while not ended.wait(ASK_SECONDS):
            for name, address in servers.items():
                if answers(address):
                    seen[name] = time.monotonic()
                elif time.monotonic() - seen[name] > GONE_SECONDS and not ended.is_set():
                    lost(name)
                    return

    threading.Thread(target=watch, name="looks after the cluster", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def answers(address: Address) -> bool:
    """Whether somebody accepts a connection there."""
    try:
        socket.create_connection(address, timeout=ASK_SECONDS).close()
    except OSError:
        return False
    return True


def speaks(address: Address, seconds: float) -> bool:
    """Whether a server says anything there: for one that hangs, the kernel still accepts connections."""
    try:
        with socket.create_connection(address, timeout=seconds) as connection:
            connection.sendall(PREFACE)
            connection.recv(1)
    except TimeoutError:
        return False
    except OSError:  # it has hung up, which is an answer
        return True
    return True
