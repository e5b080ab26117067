"""An OpenAI chat API that answers by the picture it is sent, and fails in all ways when told to."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

Asked = Mapping[str, Any]


def colour_of(asked: Asked) -> str:
    """The colour of the first picture that was sent: red, green or blue."""
    content = asked["messages"][-1]["content"]
    if isinstance(content, str):
        content = asked["messages"][0]["content"]
    for part in content if isinstance(content, list) else ():
        if part["type"] == "image_url":
            data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
            pixel = Image.open(io.BytesIO(data)).convert("RGB").resize((1, 1)).getpixel((0, 0))
            return ("red", "green", "blue")[max(range(3), key=lambda place: pixel[place])]
    return "nothing"


def say_colour(asked: Asked) -> str:
    """A caption."""
    return f"a {colour_of(asked)} picture"


@dataclass
class Server:
    """Listens on loopback. `faults` meet the next chat requests, in order, one each."""

    say: Callable[[Asked], str] = say_colour
    heeds: frozenset[str] = frozenset({"response_format", "logprobs", "chat_template_kwargs"})
    """Extensions that it follows; `refuses` are answered with 422, others ignored."""
    refuses: frozenset[str] = frozenset()
    probabilities: Mapping[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    key: str | None = None
    seen: list[dict[str, Any]] = field(default_factory=list)
    answered: int = 0
    most_at_once: int = 0
    linger_s: float = 0.0

    def __enter__(self) -> Server:
        handler = type("Handler", (_Handler,), {"server_of": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.busy = 0
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, asked: Asked) -> dict[str, Any]:
        """The reply to a request that nothing goes wrong with."""
        format_ = asked.get("response_format") if "response_format" in self.heeds else None
        text = self.say(asked)
        if format_ and not text.lstrip().startswith("{"):
            text = json.dumps({"ok": True})
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": text},
            "logprobs": None,
        }
        if asked.get("logprobs") and "logprobs" in self.heeds:
            rows = [
                {"token": word, "logprob": value, "bytes": None}
                for word, value in self.probabilities.items()
            ]
            first = text.split(" ")[0]
            choice["logprobs"] = {
                "content": [{"token": first, "logprob": -0.1, "bytes": None, "top_logprobs": rows}]
            }
        return {
            "id": "one",
            "object": "chat.completion",
            "created": 0,
            "model": "served-by-test",
            "choices": [choice],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }


class _Handler(BaseHTTPRequestHandler):
    server_of: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(200, json.dumps({"object": "list", "data": []}).encode())

    def do_POST(self) -> None:
        server = self.server_of
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            server.seen.append(asked)
            fault = server.faults.pop(0) if server.faults else ""
            server.busy += 1
            server.most_at_once = max(server.most_at_once, server.busy)
        try:
            self._answer(server, asked, fault)
        finally:
            with server.lock:
                server.busy -= 1

    def _answer(self, server: Server, asked: dict[str, Any], fault: str) -> None:
        if server.key is not None and self.headers["authorization"] != f"Bearer {server.key}":
            self._send(401, b'{"error": {"message": "no such key"}}')
            return
        if any(name in asked for name in server.refuses):
            self._send(422, b'{"error": {"message": "extra fields are not permitted"}}')
            return
        if fault.isdecimal():
            self._send(int(fault), b'{"error": {"message": "as told"}}', {"retry-after": "0"})
            return
        if fault == "hang":
            server.closing.wait(10)
            self.close_connection = True
            return
        time.sleep(server.linger_s)
        reply = server.answer(asked)
        choice = reply["choices"][0]
        if fault == "empty":
            choice["message"]["content"] = ""
        if fault == "cut":
            choice |= {"finish_reason": "length"}
        if fault == "think":
            choice["message"]["content"] = f"hm, let me see</think>\n{choice['message']['content']}"
        if fault == "no choice":
            reply["choices"] = []
        if fault == "no usage":
            reply["usage"] = None
        body = json.dumps(reply).encode()
        if fault == "half json":
            body = body[: len(body) // 2]
        if fault == "drop":
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        if fault == "slow":
            time.sleep(0.3)
        server.answered += 1
        self._send(200, body)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        told = {"content-length": str(len(body)), "content-type": "application/json"}
        for name, value in {**told, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Stay silent."""
