"""Sockets that a migration goes to, and files with what came through them.

`Listener` is the other end of a multifd migration: it takes every connection and
keeps its bytes. The connections come in any order. The main channel is the one that
begins like a stream; the others begin with a packet of 64 bytes that has the number
of the channel at CHANNEL_ID.

`Relay` stands between two QEMUs. It passes on both directions and keeps what comes
from the one that sends its guest.
"""

import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from . import StreamError
from .process import Deadline

SOCKET = "migration.sock"
INCOMING = "incoming.sock"

STREAM_MAGIC = b"QEVM"
MULTIFD_MAGIC = bytes.fromhex("11223344")
CHANNEL_ID = 24
CHUNK = 1 << 20
ACCEPT_SECONDS = 0.2
END_SECONDS = 60


@contextmanager
def listen(directory: Path, pace: int | None = None):
    """A `Listener` for the length of a with block."""
    listener = Listener(directory, pace)
    try:
        yield listener
    finally:
        listener.close()


class Listener:
    """Takes connections at SOCKET of a directory until it is closed.

    With a `pace`, it takes so many bytes a second of each, and not more.
    """

    def __init__(self, directory: Path, pace: int | None):
        self._directory = directory
        self._pace = pace
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(directory / SOCKET))
        self._server.listen(32)
        self._server.settimeout(ACCEPT_SECONDS)
        self._closing = False
        self._connections: list[tuple[Path, threading.Thread]] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Takes no more connections. Those there are go on to their end."""
        self._closing = True
        self._acceptor.join()
        self._server.close()

    def collect(self, entry: dict) -> list[Path]:
        """The main channel and the others in order, once QEMU has ended."""
        self.close()
        deadline = Deadline(END_SECONDS)
        while any(thread.is_alive() for _, thread in self._connections):
            deadline.poll("the connections to end")
        main, channels = [], {}
        for path, _ in self._connections:
            start = path.open("rb").read(CHANNEL_ID + 1)
            if start.startswith(STREAM_MAGIC):
                main.append(path)
            elif start.startswith(MULTIFD_MAGIC) and len(start) > CHANNEL_ID:
                channels[start[CHANNEL_ID]] = path
            else:
                raise StreamError(f"a connection that begins with {start.hex()}")
        if len(main) != 1 or len(channels) != len(self._connections) - 1:
            raise StreamError("not one main channel and others of different numbers")
        return main + [channels[number] for number in sorted(channels)]

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._server.accept()
            except TimeoutError:
                continue
            connection.settimeout(None)
            path = self._directory / f"connection-{len(self._connections)}"
            thread = threading.Thread(
                target=_keep, args=(connection, None, path, self._pace), daemon=True
            )
            self._connections.append((path, thread))
            thread.start()


class Relay:
    """Takes one connection at SOCKET of a directory and passes it on to another."""

    def __init__(self, directory: Path, incoming: Path, kept: Path):
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(directory / SOCKET))
        self._server.listen(1)
        self._threads = [
            threading.Thread(target=self._pass_on, args=(incoming, kept), daemon=True)
        ]
        self._threads[0].start()

    def finish(self) -> None:
        """Waits for both directions to end."""
        deadline = Deadline(END_SECONDS)
        while any(thread.is_alive() for thread in self._threads):
            deadline.poll("the connection to end")
        self._server.close()

    def _pass_on(self, incoming: Path, kept: Path) -> None:
        source, _ = self._server.accept()
        destination = socket.socket(socket.AF_UNIX)
        destination.connect(str(incoming))
        back = threading.Thread(
            target=_keep, args=(destination, source, None), daemon=True
        )
        self._threads.append(back)
        back.start()
        _keep(source, destination, kept)


def _keep(
    source: socket.socket,
    sink: socket.socket | None,
    path: Path | None,
    pace: int | None = None,
) -> None:
    """Moves bytes until the source ends; to a socket, to a file, or to both."""
    file = path.open("wb") if path else None
    try:
        while data := source.recv(CHUNK):
            if file:
                file.write(data)
            if sink:
                sink.sendall(data)
            if pace:
                time.sleep(len(data) / pace)
    except OSError:
        pass  # a peer that is gone ends the connection as its end does
    finally:
        if file:
            file.close()
        if sink:
            _half_close(sink)


def _half_close(sink: socket.socket) -> None:
    try:
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
