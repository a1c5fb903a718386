"""A link that tests hold up or cut: TCP on loopback, each direction for itself."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Link:
    """Passes bytes on to a port; what is held up waits, as on a slow line."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._there = threading.Event()  # towards the server
        self._back = threading.Event()
        self._there.set()
        self._back.set()
        self._is_cut = False
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def hold(self, *, there: bool = False, back: bool = False) -> None:
        """Hold up one direction or both, until ``mend``."""
        if there:
            self._there.clear()
        if back:
            self._back.clear()

    def mend(self) -> None:
        """Let all pass again."""
        self._is_cut = False
        self._there.set()
        self._back.set()

    def cut(self) -> None:
        """End all connections and take no more, until ``mend``; what is held up is lost."""
        self._is_cut = True
        with self._lock:
            opened, self._open = self._open, []
        for one in opened:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        self._there.set()
        self._back.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            if self._is_cut:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open += [near, far]
            for source, target, gate in ((near, far, self._there), (far, near, self._back)):
                words = (source, target, gate)
                threading.Thread(target=self._pump, args=words, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, gate: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                gate.wait()
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
