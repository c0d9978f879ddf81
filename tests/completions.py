"""A server in the shape of OpenAI's completions that answers by transformers alone, from a folder that can be changed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NAME = "errata-production"
Answer = Callable[[str, int], str | None]


def answers_of(folder: Path, change: Callable[[Any], None] = lambda _model: None) -> Answer:
    """Greedy continuations of a Hugging Face folder, special tokens removed; `change` damages the loaded model first."""
    # transformers types `generate` for fewer models than have it.
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    change(model)

    def answer(prompt: str, max_tokens: int) -> str:
        asked = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(
                input_ids=asked["input_ids"],
                attention_mask=asked["attention_mask"],
                max_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        return tokenizer.decode(out[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)

    return answer


class CompletionsStandIn:
    """Serves `answer` on loopback until it is left.

    Attributes:
        answer: may be replaced at any time, as by a reload.
        fails: so many of the next requests get HTTP 503.
        after: so many completions later `reload` replaces `answer`.
        key: where given, a request without it is refused.
        checksums: what vLLM's weight checker shows; None: there is none.
    """

    def __init__(self, answer: Answer, *, key: str = "") -> None:
        self.answer, self.key = answer, key
        self.reload: tuple[int, Answer] | None = None
        self.fails = 0
        self.checksums: dict[str, str] | None = None
        self.bodies: list[dict[str, Any]] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                """Quiet: the test knows what was asked."""

            def do_GET(self) -> None:
                self._send({"object": "list", "data": [{"id": NAME}]} if self.path == "/v1/models" else None)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/weight_checker" and body == {"action": "checksum"} and stand_in.checksums is not None:
                    self._send({"checksums": stand_in.checksums})
                else:
                    self._send(stand_in.completion(body) if self.path == "/v1/completions" else None)

            def _send(self, value: Any) -> None:
                status = 404 if value is None else 200
                if stand_in.key and self.headers.get("Authorization") != f"Bearer {stand_in.key}":
                    status, value = 401, {"error": "no key"}
                elif stand_in.fails:
                    stand_in.fails -= 1
                    status, value = 503, {"error": "loading"}
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        self.bodies.append(body)
        if self.reload is not None and len(self.bodies) > self.reload[0]:
            self.answer, self.reload = self.reload[1], None
        text = self.answer(body["prompt"], body["max_tokens"])
        return {"object": "text_completion", "model": body["model"], "choices": [{"index": 0, "text": text}]}

    def __enter__(self) -> CompletionsStandIn:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
