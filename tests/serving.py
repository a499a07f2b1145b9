"""A server in a thread or in a process of its own, on a free port, for tests."""

import socket
import subprocess
import sys
import threading
import time

import uvicorn

from pm.gate import patient


class Running:
    """An app, run by uvicorn in a thread."""

    def __init__(self, app):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self.server = uvicorn.Server(uvicorn.Config(app, http=patient(1.0), ws="none", log_level="warning"))
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


def start(model: str, *flags: str) -> tuple[subprocess.Popen, str]:
    """`python -m pm.serve` and its address."""
    process = subprocess.Popen([sys.executable, "-m", "pm.serve", "--model", str(model), "--port", "0", *flags],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert line.startswith("serving "), line + process.stderr.read()
    return process, line.split()[-1]
