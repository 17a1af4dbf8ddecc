"""A folder behind HTTP, for tests of what reads from far away."""

import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Files(SimpleHTTPRequestHandler):
    asked: list[str]

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()


class Server:
    """A folder behind HTTP."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []

        class Handler(_Files):
            asked = self.asked

            def __init__(self, *args: object) -> None:
                super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def fetched(self) -> list[str]:
        """The files that were asked for since the last call."""
        asked = [path.strip("/") for path in self.asked]
        self.asked.clear()
        return asked

    def close(self) -> None:
        """Answer no more."""
        self.http.shutdown()
        self.http.server_close()
