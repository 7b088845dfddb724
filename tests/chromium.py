"""A page in a real browser, by the DevTools protocol over two pipes: what a person would do."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shlex
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from engine.report import browser

PATIENCE = 30.0  # seconds


class Page:
    """A context manager. `errors`: what its console said of errors, what was thrown, and addresses
    outside the file that it asked for. `opened`: seconds of its own thread until it was there,
    as a person's browser takes them only where it is not `watched`: a watched script runs slower.
    """

    def __init__(
        self,
        file: Path,
        width: int = 1200,
        height: int = 900,
        phone: bool = False,
        watched: bool = True,
    ):
        program = browser.find()
        if program is None:
            pytest.skip(f"no Chromium or Chrome on PATH: {', '.join(browser.NAMES[:6])}")
        self._program, self._file = program, file
        self._size, self._watched = (width, height, phone), watched
        self._numbers, self._rest = itertools.count(1), b""
        self.errors: list[str] = []

    def __enter__(self) -> Page:
        self._start()
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs, self._out = os.pipe()
        self._in, answers = os.pipe()
        command = [self._program, *browser.flags(self._profile.name), "--remote-debugging-pipe"]
        # it reads from 3 and writes to 4
        line = f"exec {shlex.join(command)} 3<&{theirs} 4>&{answers}"
        self._process = subprocess.Popen(
            ["bash", "-c", line],
            pass_fds=(theirs, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(answers)

    def _open(self) -> None:
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        if self._watched:
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        self.call("Performance.enable", timeDomain="threadTicks")
        width, height, phone = self._size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        self.call("Page.navigate", url=self._file.resolve().as_uri())
        self.until("document.readyState === 'complete'")
        self.opened = self.processor()
        self.until("[...document.querySelectorAll('.chart')].every(c => c.querySelector('svg'))")

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself
            os.write(self._out, b'{"id": 0, "method": "Browser.close"}\0')
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + PATIENCE
        while True:
            answer = self._next(end)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            found = os.read(self._in, 1 << 20)
            assert found, "the browser has ended"
            self._rest += found
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:300])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.errors.append(json.dumps(params["args"])[:300])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "data:", "blob:")):
                self.errors.append(f"asked for {url}")

    def processor(self) -> float:
        """Seconds of the page's own thread so far, whatever else the machine does."""
        metrics = self.call("Performance.getMetrics")["metrics"]
        return next(entry["value"] for entry in metrics if entry["name"] == "ThreadTime")

    def value(self, script: str) -> Any:
        """Of an expression, awaited."""
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, script: str) -> None:
        end = time.monotonic() + PATIENCE
        while not self.value(script):
            assert time.monotonic() < end, f"never came: {script}"
            time.sleep(0.02)

    def mouse(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def key(self, name: str) -> None:
        code = {"ArrowRight": 39, "ArrowLeft": 37, "End": 35, "Home": 36}[name]
        event = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **event)

    def picture(self, file: Path, whole: bool = True) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self) -> bytes:
        return base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"])
