"""What a browser sends to a page's server: the right Host and Origin, unless told otherwise."""

from __future__ import annotations

import http.client
import json
import re
from typing import Any

Answer = tuple[int, Any, http.client.HTTPMessage]


class Visitor:
    """One browser at an address."""

    def __init__(self, address: str) -> None:
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/(.+)/", address)
        assert found, address
        self.port, self.token = int(found[1]), found[2]

    def ask(self, path: str, body: object = None, *, raw: str | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        given = {"Host": f"127.0.0.1:{self.port}"}
        if body is not None:
            given |= {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        text = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", raw or f"/{self.token}/{path}", text, given)
        answer = connection.getresponse()
        data = answer.read()
        kind = answer.headers.get_content_type()
        connection.close()
        return answer.status, json.loads(data) if kind == "application/json" else data, answer.headers


REFUSED: list[tuple[int, dict[str, Any]]] = [
    (403, {"path": "", "raw": "/"}),
    (403, {"path": "", "raw": "/wrong/state"}),
    (403, {"path": "state", "Sec_Fetch_Site": "cross-site"}),
    (421, {"path": "state", "Host": "attacker.example:8741"}),
    (421, {"path": "state", "Host": "127.0.0.1.attacker.example"}),
    (404, {"path": "server.py"}),
    (404, {"path": "../server.py"}),
    (404, {"path": "%2e%2e/server.py"}),
    (403, {"path": "state", "body": [], "Origin": "http://attacker.example"}),
    (403, {"path": "state", "body": [], "Origin": "null"}),
    (415, {"path": "state", "body": [], "Content_Type": "text/plain"}),
    (404, {"path": "state", "body": []}),
    (413, {"path": "state", "body": ["x" * 2**20]}),
]
"""What every such server refuses: status, and what is asked."""
