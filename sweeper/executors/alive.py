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
from enum import Enum

ASK_SECONDS = 3.0
"""Between two looks, and how long an answer may take."""
GONE_SECONDS = 15.0
"""Without a connection, after which a server counts as gone; Ray gives up on its head after 60."""
HUNG_SECONDS = 60.0
"""The same of one that takes connections and says nothing: on a machine with too much to do that may pass."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""How a client of gRPC begins (RFC 9113, 3.4), with settings of its own: none."""

Address = tuple[str, int]


class Reply(Enum):
    """What came back: no connection, one that the kernel took for a process that hangs, or a word."""

    NOTHING, SILENCE, WORD = range(3)


@contextlib.contextmanager
def watched(servers: Mapping[str, Address], lost: Callable[[str], None]) -> Iterator[None]:
    """Call `lost(name)` once, from a thread, when one of `servers` is not reached for `GONE_SECONDS`, or says nothing for
    `HUNG_SECONDS`."""
    ended = threading.Event()

    def watch() -> None:
        reached = dict.fromkeys(servers, time.monotonic())
        heard = dict(reached)
        while not ended.wait(ASK_SECONDS):
            for name, address in servers.items():
                reply, moment = reply_of(address), time.monotonic()
                reached[name] = moment if reply is not Reply.NOTHING else reached[name]
                heard[name] = moment if reply is Reply.WORD else heard[name]
                gone = moment - reached[name] > GONE_SECONDS or moment - heard[name] > HUNG_SECONDS
                if gone and not ended.is_set():
                    lost(name)
                    return

    threading.Thread(target=watch, name="looks after the cluster", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def reply_of(address: Address, seconds: float = ASK_SECONDS) -> Reply:
    """What a server of gRPC's says to a client within `seconds` of its connection."""
    try:
        connection = socket.create_connection(address, timeout=ASK_SECONDS)
    except OSError:
        return Reply.NOTHING
    with connection:
        connection.settimeout(seconds)
        try:
            connection.sendall(PREFACE)
            connection.recv(1)
        except TimeoutError:
            return Reply.SILENCE
        except OSError:  # it has hung up
            return Reply.WORD
    return Reply.WORD
