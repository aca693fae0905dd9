"""Rewards behind HTTP, so that they run beside a trainer, not in it: on another card, another machine, in another venv.

    GET  /rewards       what there is: name, identity, parts, bounds, whether values may be remembered and prompts refused
    POST /score         a question of `wire`; 422 with a sentence where the reward has no answer
    POST /unanswerable  {"reward", "prompts"}; the prompts of which the reward can say nothing

One reward answers one question at a time, different rewards at once. Loopback is open; anything else needs a key.
"""

from __future__ import annotations

import hmac
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pleinair.records.errors import ConfigError, PleinairError
from pleinair.records.rewards import Reward
from pleinair.rewards.answers import check_question
from pleinair.rewards.identity import Selective, bounds_of, identity_of, is_pointwise, parts_of, unanswerable_by
from pleinair.rewards.wire import from_body, prompts_of, to_answer

HOST = "127.0.0.1"
MOST_BODY_BYTES = 1 << 29
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ServedRewards:
    """Rewards by name; any thread may ask."""

    def __init__(self, rewards: Sequence[Reward]) -> None:
        """Raises ConfigError for none, or two of one name."""
        self._rewards = {reward.name: reward for reward in rewards}
        if len(self._rewards) != len(rewards) or not rewards:
            raise ConfigError(
                f"{len(rewards)} rewards to serve, of {len(self._rewards)} names: give one or more, each its own"
            )
        self._turns = {name: threading.Lock() for name in self._rewards}

    def described(self) -> dict[str, Any]:
        """What there is."""
        return {
            "rewards": [
                {
                    "name": name,
                    "identity": identity_of(reward),
                    "parts": sorted(parts_of(reward)),
                    "pointwise": is_pointwise(reward),
                    "bounds": bounds_of(reward),
                    "selective": isinstance(reward, Selective),
                }
                for name, reward in self._rewards.items()
            ]
        }

    def answered(self, body: bytes) -> dict[str, Any]:
        """The answer to a question. Raises ValueError or KeyError for one that is none, and what the reward raises."""
        question = from_body(body)
        check_question(question.prompts, question.pictures, question.context)
        reward = self._rewards[question.reward]
        with self._turns[question.reward]:
            answer = to_answer(reward.score(question.prompts, question.pictures, question.context))
        return {**answer, "identity": identity_of(reward)}

    def unanswerable(self, body: bytes) -> dict[str, Any]:
        """The prompts that a reward refuses. Raises ValueError or KeyError for a question that is none."""
        name, prompts = prompts_of(body)
        reward = self._rewards[name]
        with self._turns[name]:
            return {"unanswerable": unanswerable_by(reward, prompts), "identity": identity_of(reward)}


class _Handler(BaseHTTPRequestHandler):
    """One question, one connection."""

    server_version = "pleinair-rewards"
    sys_version = ""
    timeout = 120.0

    def __init__(self, rewards: ServedRewards, key: str, *connection: Any) -> None:
        self.rewards, self.key = rewards, key
        super().__init__(*connection)

    def do_GET(self) -> None:
        if self._let_in("/rewards"):
            self._send(HTTPStatus.OK, self.rewards.described())

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MOST_BODY_BYTES:
            self._send(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"a body of {length or 'unknown'} bytes is refused"}
            )
            return
        body = self.rfile.read(int(length))
        if self._let_in("/score", "/unanswerable"):
            answered = self.rewards.answered if self.path == "/score" else self.rewards.unanswerable
            self._send(*self._answer(answered, body))

    def _answer(self, answered: Callable[[bytes], dict[str, Any]], body: bytes) -> tuple[HTTPStatus, dict[str, Any]]:
        try:
            return HTTPStatus.OK, answered(body)
        except KeyError as unknown:
            return HTTPStatus.NOT_FOUND, {"error": f"there is no reward {unknown}: GET /rewards lists those there are"}
        except (PleinairError, ValueError) as refused:
            return HTTPStatus.UNPROCESSABLE_ENTITY, {"error": str(refused)}
        except Exception as broken:
            # The server goes on, and the asker, who may try again, learns what happened.
            said = f"the reward broke with {type(broken).__name__}: {broken}"
            print(f"rewards: {said}", file=sys.stderr, flush=True)
            return HTTPStatus.INTERNAL_SERVER_ERROR, {"error": said}

    def _let_in(self, *paths: str) -> bool:
        given = self.headers.get("Authorization", "")
        if self.key and not hmac.compare_digest(given.encode(), f"Bearer {self.key}".encode()):
            self._send(HTTPStatus.UNAUTHORIZED, {"error": "the key is missing or another"})
            return False
        if self.path not in paths:
            self._send(HTTPStatus.NOT_FOUND, {"error": "nothing is here: GET /rewards, POST /score, /unanswerable"})
            return False
        return True

    def _send(self, status: HTTPStatus, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """A line per question would be noise."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """An asker that goes away is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def serving(rewards: Sequence[Reward], *, host: str = HOST, port: int = 0, key: str = "") -> Iterator[str]:
    """Serve inside the block, which is given the address. Raises ConfigError for a taken port, or no key where one is due."""
    if host not in _LOOPBACK and not key:
        raise ConfigError(f"rewards on {host} would be open to everyone who reaches it: give a key")
    try:
        server = _Server((host, port), partial(_Handler, ServedRewards(rewards), key))
    except OSError as error:
        raise ConfigError(f"{host}:{port} cannot be served on ({error.strerror}): give another port or host") from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="rewards", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
