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
