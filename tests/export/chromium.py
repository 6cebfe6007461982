"""A headless Chromium, driven through its debugging pipe with the standard library alone."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SWITCHES = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
    "about:blank",
]
# The browser reads commands from descriptor 3 and answers on 4.
PLUMBING = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_chromium():
    """The path of a Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of a fresh profile. Use as a context manager."""

    def __init__(self, folder, width=420, height=900, switches=()):
        self.numbers = itertools.count(1)
        to_browser, self.commands = os.pipe()
        self.replies, from_browser = os.pipe()
        switches = [
            *SWITCHES[:-1],
            *switches,
            f"--user-data-dir={folder}",
            f"--window-size={width},{height}",
            SWITCHES[-1],
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PLUMBING, str(to_browser), str(from_browser), find_chromium(), *switches],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        os.set_blocking(self.replies, False)
        self.rest = b""
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)
        os.close(self.commands)
        os.close(self.replies)

    session = None

    def call(self, method, **params):
        """Calls a method of the debugging protocol and returns its result."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            while b"\0" in self.rest:
                text, self.rest = self.rest.split(b"\0", 1)
                reply = json.loads(text)
                if reply.get("id") == number:
                    if "error" in reply:
                        raise RuntimeError(reply["error"])
                    return reply["result"]
            try:
                self.rest += os.read(self.replies, 1 << 20)
            except BlockingIOError:
                time.sleep(0.02)
        raise TimeoutError(method)

    def evaluate(self, expression):
        """The value of a JavaScript expression, which may be a promise."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def wait_for(self, expression, seconds=60):
        """Waits until an expression is true, and returns its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{expression}; the page says {self.evaluate('document.body.innerText')!r}")
            time.sleep(0.1)
        return value
