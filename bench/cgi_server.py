"""Serve git http-backend where there is no lighttpd: python bench/cgi_server.py PORT ROOT BACKEND.

It costs more than lighttpd does, so it is for runs that look whether all works, not for figures.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

PREFIX = "/git"


class Handler(BaseHTTPRequestHandler):
    """Runs the program for each request, and closes the connection behind its answer."""

    def do_GET(self) -> None:
        """Answer a GET."""
        self._serve(b"")

    def do_POST(self) -> None:
        """Answer a POST."""
        self._serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _serve(self, body: bytes) -> None:
        at = urlsplit(self.path)
        root, program = sys.argv[2], sys.argv[3]
        more = {
            "GIT_PROJECT_ROOT": root,
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "PATH_INFO": unquote(at.path).removeprefix(PREFIX),
            "QUERY_STRING": at.query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_ADDR": "127.0.0.1",
        }
        with subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **more}
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            feeder = threading.Thread(target=self._feed, args=(process, body))
            feeder.start()
            status, headers = "200 OK", []
            while (line := process.stdout.readline().strip()) != b"":
                name, _, value = line.decode().partition(": ")
                if name == "Status":
                    status = value
                else:
                    headers.append((name, value))
            self.send_response_only(int(status.split()[0]))
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Connection", "close")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while piece := process.stdout.read1(1 << 16):  # type: ignore[attr-defined]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
            feeder.join()
        self.close_connection = True

    @staticmethod
    def _feed(process: subprocess.Popen[bytes], body: bytes) -> None:
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> None:
    """Serve until stopped."""
    Handler.protocol_version = "HTTP/1.1"
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()


if __name__ == "__main__":
    main()
