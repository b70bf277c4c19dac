"""
A service over HTTP that takes its time, and can be switched off: its process is killed and started again.

    python -m benchmarks.flaky_service PORT SECONDS
"""

import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["main"]


class _Handler(BaseHTTPRequestHandler):
    seconds = 0.0

    def do_GET(self) -> None:  # http.server's name
        """Answer after a while."""
        time.sleep(self.seconds)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # what waits to be taken isn't refused


def main() -> None:
    """Serve until killed."""
    port, _Handler.seconds = int(sys.argv[1]), float(sys.argv[2])
    with _Server(("127.0.0.1", port), _Handler) as server:
        print(f"serves {port}", flush=True)  # noqa: T201  # whoever starts it waits for this line
        server.serve_forever()


if __name__ == "__main__":
    main()
