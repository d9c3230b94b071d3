"""Chromium as a person uses it: a window of any width, a mouse and a keyboard, over its debugging pipe."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--remote-debugging-pipe"]
KEYS = {"Enter": 13, "Escape": 27, " ": 32, "Tab": 9, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Browser:
    """A tab of a Chromium of its own.

    Args:
        profile: a folder for it.
        width: of the window, in pixels.
        height: of the window.
        dark: whether the user prefers dark pages.
    """

    def __init__(self, profile: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        (read, to_browser), (from_browser, write) = os.pipe(), os.pipe()
        start = f'exec chromium "$@" 3<&{read} 4>&{write} 2>{profile}.log'
        self.process = subprocess.Popen(
            ["bash", "-c", start, "chromium", *OPTIONS, f"--user-data-dir={profile}"], pass_fds=(read, write)
        )
        os.close(read)
        os.close(write)
        self._out, self._in = os.fdopen(to_browser, "wb", buffering=0), os.fdopen(from_browser, "rb")
        self._count, self._session = 0, ""
        self.faults = list[str]()  # exceptions and errors of the page
        self.requests = list[str]()
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._ask(f"{domain}.enable")
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._out.close()
        self._in.close()
        self.process.kill()
        self.process.wait()

    def open(self, address: str) -> None:
        """Go to a page, and wait until it has loaded."""
        self._ask("Page.navigate", url="about:blank")
        self._ask("Page.navigate", url=address)
        while self.evaluate("document.readyState") != "complete" or self.evaluate("location.href") == "about:blank":
            pass

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page, or of what it promises."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true; one that is not within a minute never will be."""
        became = self.evaluate(
            "new Promise(resolve => { const end = performance.now() + 60000; const look = () => "
            f"({expression}) ? resolve(true) : performance.now() > end ? resolve(false) : setTimeout(look, 20);"
            "look(); })"
        )
        assert became, expression

    def click(self, selector: str, number: int = 0) -> None:
        """Click in the middle of an element."""
        x, y = self.evaluate(
            f"(() => {{ const one = document.querySelectorAll({json.dumps(selector)})[{number}];"
            "one.scrollIntoView({block: 'center'}); const box = one.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        self.point(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, selector: str, *places: tuple[float, float]) -> None:
        """Press the mouse at the first of some places of an element, which it is 1 by 1 of, and draw it to the last."""
        left, top, width, height = self.evaluate(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            "one.scrollIntoView({block: 'center'}); const box = one.getBoundingClientRect();"
            "return [box.x, box.y, box.width, box.height]; })()"
        )
        kinds = ["mousePressed", *["mouseMoved"] * (len(places) - 1)]
        for kind, (x, y) in zip([*kinds, "mouseReleased"], [*places, places[-1]], strict=True):
            where = {"x": left + x * width, "y": top + y * height}
            held = 0 if kind == "mouseReleased" else 1
            self._ask("Input.dispatchMouseEvent", type=kind, **where, button="left", buttons=held, clickCount=1)

    def change(self, selector: str, value: str, number: int = 0) -> None:
        """Give a field, a slider or a list another value."""
        self.evaluate(
            f"(() => {{ const one = document.querySelectorAll({json.dumps(selector)})[{number}];"
            f"one.value = {json.dumps(value)};"
            "for (const what of ['input', 'change']) one.dispatchEvent(new Event(what)); })()"
        )

    def choose_file(self, selector: str, path: Path) -> None:
        """Choose a file in a field for one."""
        found = self._ask("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")["result"]
        self._ask("DOM.setFileInputFiles", files=[str(path)], objectId=found["objectId"])

    def save_into(self, folder: Path) -> None:
        """Where downloads go."""
        self._ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def point(self, x: float, y: float) -> None:
        """Move the mouse there."""
        self._ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def focus(self, selector: str, number: int = 0) -> None:
        """Put the keyboard on an element."""
        self.evaluate(f"document.querySelectorAll({json.dumps(selector)})[{number}].focus()")

    def press(self, *keys: str) -> None:
        """Press keys by their names."""
        for key in keys:
            what = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
            text = {"Enter": "\r", " ": " "}.get(key)
            self._ask("Input.dispatchKeyEvent", type="keyDown", **what, **({"text": text} if text else {}))
            self._ask("Input.dispatchKeyEvent", type="keyUp", **what)

    def type(self, text: str) -> None:
        """Type into what has the keyboard."""
        self._ask("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        import base64

        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        answer = self._ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _note(self, event: str, what: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            details = what["exceptionDetails"]
            self.faults.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Log.entryAdded" and what["entry"]["level"] == "error":
            self.faults.append(f"{what['entry']['text']} {what['entry'].get('url', '')}")
        elif event == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])

    def _read(self) -> bytes:
        content = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            content += byte
        return bytes(content)
