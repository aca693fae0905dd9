"""Pictures from the web: real HTTP on this machine, polite, capped, and never led to an address nobody allowed."""

from __future__ import annotations

import http.server
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pleinair.curation.web import FetchPolicy, WebPicture, fetch_picture
from pleinair.curation.web.addresses import parse_url, why_not
from pleinair.curation.web.consent import consent_of_licence
from pleinair.curation.web.turns import hold_back, turn
from pleinair.records.errors import ConfigError, ImageError, SourceError
from tests.curation.web_site import Route, Site, answer, png


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    made.routes["/a.png"] = answer()
    yield made
    made.close()


def fetched(site: Site, path: str, folder: Path, **policy: Any) -> WebPicture:
    return fetch_picture(site.url + path, folder, replace(site.policy, **policy))


def test_a_picture_is_fetched_under_our_name_and_nobody_having_spoken_is_no_consent(site: Site, tmp_path: Path) -> None:
    found = fetched(site, "/a.png", tmp_path)
    assert (found.data, found.drop, found.consent.decision) == (png(), "", "unknown")
    (agent,) = site.agents
    assert agent.startswith("pleinair (")
    assert "mailto:test@lab.example" in agent
    assert site.hosts == {f"127.0.0.1:{site.port}"}


def test_nothing_is_fetched_without_a_name(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fetch.contact is empty"):
        fetched(site, "/a.png", tmp_path, contact="")
    assert site.log == []


DISGUISES = (
    "http://127.0.0.1:{port}/a.png",
    "http://2130706433:{port}/a.png",
    "http://0x7f.1:{port}/a.png",
    "http://0x7f000001:{port}/a.png",
    "http://0177.0.0.1:{port}/a.png",
    "http://127.1:{port}/a.png",
    "http://127.0.0.1.:{port}/a.png",
    "http://0:{port}/a.png",
    "http://0.0.0.0:{port}/a.png",
    "http://127.8.9.1:{port}/a.png",
    "http://localhost:{port}/a.png",
    "http://LOCALHOST.:{port}/a.png",
    "http://[::1]:{port}/a.png",
    "http://[::]:{port}/a.png",
    "http://[::ffff:127.0.0.1]:{port}/a.png",
    "http://[::ffff:7f00:1]:{port}/a.png",
    "http://[::127.0.0.1]:{port}/a.png",
    "http://[64:ff9b::7f00:1]:{port}/a.png",
    "http://[2002:7f00:1::]:{port}/a.png",
    "http://\uff11\uff12\uff17.0.0.1:{port}/a.png",
    "http://127\u30020\u30020\u30021:{port}/a.png",
    "http://\u2460\u2461\u2466.0.0.1:{port}/a.png",
    "http://example.com@127.0.0.1:{port}/a.png",
    "http://127.0.0.1:{port}\\@example.com/a.png",
    "http://127.0.0.1%00.example.com:{port}/a.png",
    "http://127.0.0.1:{port}/\r\nHost: example.com",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/a.png",
    "http:///a.png",
)


@pytest.mark.parametrize("url", DISGUISES)
def test_an_address_of_this_machine_is_refused_in_every_disguise(site: Site, tmp_path: Path, url: str) -> None:
    policy = replace(site.policy, allow_networks=())
    found = fetch_picture(url.format(port=site.port), tmp_path, policy)
    assert found.data is None
    assert found.drop.startswith("refused: ")
    assert site.log == []


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192",
     "168.63.129.16", "224.0.1.1", "240.0.0.1", "255.255.255.255", "198.18.0.1", "fe80::1", "fd00:ec2::254", "fec0::1",
     "ff0e::1", "2001:db8::1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:a9fe:a9fe::1", "::ffff:10.0.0.1",
     "2001:0:4136:e378:8000:63bf:f5ff:fffe", "fe80::1%eth0"],
)  # fmt: skip
def test_addresses_that_are_not_public_are_not_reached(address: str) -> None:
    assert why_not(address, FetchPolicy())


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_are(address: str) -> None:
    assert why_not(address, FetchPolicy()) == ""


def test_only_the_ports_of_the_web_are_reached_unless_allowed(site: Site, tmp_path: Path) -> None:
    found = fetched(site, "/a.png", tmp_path, allow_ports=(80, 443))
    assert f"port {site.port} is not among 80, 443" in found.drop
    assert site.log == []


def test_a_name_is_resolved_once_per_request_and_each_answer_is_judged(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the name points at the allowed address first, at another one from then on."""
    other, real, answers = Site("127.0.0.2"), socket.getaddrinfo, iter(["127.0.0.1", "127.0.0.1"])

    def rebinding(host: str, *arguments: Any, **more: Any) -> Any:
        return real(next(answers, "127.0.0.2") if host == "pictures.test" else host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    try:
        policy = replace(site.policy, allow_ports=(site.port, other.port))
        assert fetch_picture(f"http://pictures.test:{site.port}/a.png", tmp_path, policy).data == png()
        later = fetch_picture(f"http://pictures.test:{other.port}/a.png", tmp_path, policy)
        assert "pictures.test is 127.0.0.2, which is not a public address" in later.drop
        assert other.log == []
    finally:
        other.close()


@pytest.mark.parametrize(
    ("place", "reason"),
    [("file:///etc/passwd", "its scheme is file"), ("http://169.254.169.254/latest", "not a public address"),
     ("http://localhost:1/", "port 1 is not"), ("//2130706433/", "in disguise"), ("http://a@b/", "user name")],
)  # fmt: skip
def test_every_redirect_is_judged_like_a_first_address(site: Site, tmp_path: Path, place: str, reason: str) -> None:
    site.routes["/r"] = answer(302, Location=place)
    policy = replace(site.policy, allow_ports=(site.port, 80))
    found = fetch_picture(f"{site.url}/r", tmp_path, policy)
    assert found.drop.startswith("refused: ")
    assert reason in found.drop


def test_redirects_are_followed_to_the_picture_but_not_for_ever(site: Site, tmp_path: Path) -> None:
    site.routes["/r"] = answer(301, Location="/s")
    site.routes["/s"] = answer(307, Location=f"{site.url}/a.png")
    site.routes["/loop"] = answer(302, Location="/loop")
    assert fetched(site, "/r", tmp_path).data == png()
    assert fetched(site, "/loop", tmp_path).drop.startswith("redirects: ")
    assert site.log.count("/loop") == 6


def test_a_redirect_that_opts_out_is_not_followed(site: Site, tmp_path: Path) -> None:
    site.routes["/r"] = answer(302, Location="/a.png", X_Robots_Tag="noai")
    assert fetched(site, "/r", tmp_path).drop.startswith("consent: it is marked noai")
    assert site.asked == ["/r"]


def test_robots_txt_is_asked_once_and_obeyed(site: Site, tmp_path: Path) -> None:
    site.routes["/robots.txt"] = answer(body=b"User-agent: pleinair\nDisallow: /private/\nAllow: /")
    for path in ("/private/a.png", "/private/b.png"):
        found = fetched(site, path, tmp_path)
        assert found.drop == "consent: robots.txt disallows it (robots.txt, rules for pleinair)"
        assert found.consent.decision == "refused: robots.txt disallows it"
    assert fetched(site, "/a.png", tmp_path).data == png()
    assert site.log.count("/robots.txt") == 1
    assert site.asked == ["/a.png"]


@pytest.mark.parametrize(
    ("path", "text", "signal"),
    [
        ("/robots.txt", b"User-agent: GPTBot\nDisallow: /", "robots.txt, rules for GPTBot"),
        ("/robots.txt", b"User-agent: *\nDisallow: /*.png$", "robots.txt, rules for pleinair"),
        ("/robots.txt", b"User-agent: *\nContent-Signal: search=yes, ai-train=no\nAllow: /", "robots.txt: ai-train=no"),
        ("/ai.txt", b"User-Agent: *\nDisallow: *.png", "ai.txt, rules for pleinair"),
        ("/.well-known/tdmrep.json", b'[{"location": "/a", "tdm-reservation": 1}]', "tdm-reservation 1"),
        ("/.well-known/tdmrep.json", b"[{", "tdmrep.json: JSONDecodeError"),
    ],
)
def test_a_reserved_picture_is_never_asked_for(site: Site, tmp_path: Path, path: str, text: bytes, signal: str) -> None:
    site.routes[path] = answer(body=text)
    found = fetched(site, "/a.png", tmp_path)
    assert found.data is None
    assert found.drop.startswith("consent: ")
    assert signal in (found.consent.signal or "")
    assert site.asked == []


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({"X_Robots_Tag": "noai, noimageai"}, True),
        ({"X_Robots_Tag": "nofollow, NoImageAI"}, True),
        ({"X_Robots_Tag": "otherbot: noai"}, False),
        ({"X_Robots_Tag": "pleinair: noai"}, True),
        ({"X_Robots_Tag": "unavailable_after: 25 Jun 2030 15:00:00 PST, noai"}, True),
        ({"tdm_reservation": "1"}, True),
        ({"Content_Usage": "train-ai=n"}, True),
        ({"X_Robots_Tag": "nofollow"}, False),
    ],
)
def test_headers_that_opt_out_are_obeyed(site: Site, tmp_path: Path, headers: dict[str, str], refused: bool) -> None:
    site.routes["/a.png"] = answer(**headers)
    found = fetched(site, "/a.png", tmp_path)
    assert (found.data is None, found.consent.refused) == (refused, refused)


def test_a_host_that_allows_is_recorded_as_allowing(site: Site, tmp_path: Path) -> None:
    site.routes["/a.png"] = answer(tdm_reservation="0")
    assert fetched(site, "/a.png", tmp_path).consent.decision == "allowed"


def test_a_robots_txt_that_fails_closes_its_host(site: Site, tmp_path: Path) -> None:
    site.routes["/robots.txt"] = answer(500)
    found = fetched(site, "/a.png", tmp_path)
    assert found.drop.startswith("consent: robots.txt cannot be had")
    assert site.asked == []


def test_a_page_instead_of_a_picture_is_dropped_and_its_meta_is_recorded(site: Site, tmp_path: Path) -> None:
    page = b"<!doctype html><html><head><meta name='robots' content='noai'></head><svg></svg></html>"
    site.routes["/page.png"] = answer(body=page, Content_Type="image/png")
    found = fetched(site, "/page.png", tmp_path)
    assert found.drop.startswith("type: ")
    assert found.consent.signal == "<meta name=robots>: noai"


def test_what_is_no_picture_is_dropped_whatever_it_claims(site: Site, tmp_path: Path) -> None:
    site.routes["/x.png"] = answer(body=b"MZ\x90\x00 a program", Content_Type="image/png")
    assert fetched(site, "/x.png", tmp_path).drop.startswith("type: 14 bytes of image/png beginning b'MZ")
    assert fetched(site, "/gone.png", tmp_path).drop == "gone: the host answers 404"


def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"\x89PNG" * 2**14)
    except OSError:
        pass


def ending(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"\x89PNG" * 75_000)


def test_a_body_of_unsaid_length_is_kept_up_to_the_cap_and_no_byte_over_it(site: Site, tmp_path: Path) -> None:
    site.routes["/x.png"] = ending
    assert len(fetched(site, "/x.png", tmp_path, max_bytes=300_000).data or b"") == 300_000
    assert "goes on after 299999 bytes" in fetched(site, "/x.png", tmp_path, max_bytes=299_999).drop


def test_a_body_over_the_cap_is_left_whether_announced_or_not(site: Site, tmp_path: Path) -> None:
    site.routes["/endless.png"] = endless
    site.routes["/big.png"] = answer(Content_Length=str(10**12))
    assert "goes on after 200000 bytes" in fetched(site, "/endless.png", tmp_path, max_bytes=200_000).drop
    assert "says 1000000000000 bytes" in fetched(site, "/big.png", tmp_path).drop


def test_a_compressed_body_is_refused_before_it_can_unfold(site: Site, tmp_path: Path) -> None:
    site.routes["/bomb.png"] = answer(body=b"\x1f\x8b", Content_Encoding="gzip")
    assert fetched(site, "/bomb.png", tmp_path).drop.startswith("encoded: ")


def dripping(start: bytes) -> Route:
    def route(handler: http.server.BaseHTTPRequestHandler) -> None:
        try:
            handler.wfile.write(start)
            for _ in range(100):
                handler.wfile.write(b"x")
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    return route


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"])
def test_a_server_that_drips_is_left_at_the_deadline(site: Site, tmp_path: Path, start: bytes) -> None:
    site.routes["/slow.png"] = dripping(start)
    fetched(site, "/a.png", tmp_path)
    began = time.monotonic()
    with pytest.raises(SourceError, match=r"was not there after 0\.5 s"):
        fetched(site, "/slow.png", tmp_path, max_seconds=0.5)
    assert time.monotonic() - began < 2.0


def test_a_body_cut_short_is_tried_again_later_not_kept(site: Site, tmp_path: Path) -> None:
    site.routes["/cut.png"] = answer(Content_Length="100000")
    with pytest.raises(SourceError, match="cut off after"):
        fetched(site, "/cut.png", tmp_path)


def test_a_busy_host_is_asked_again_after_the_pause_it_names(site: Site, tmp_path: Path) -> None:
    answers = iter([answer(503, Retry_After="1"), answer()])
    site.routes["/busy.png"] = lambda handler: next(answers)(handler)
    fetched(site, "/a.png", tmp_path)
    began = time.monotonic()
    assert fetched(site, "/busy.png", tmp_path, attempts=2).data == png()
    assert time.monotonic() - began >= 1.0


def test_a_host_that_asks_for_a_long_pause_is_left_alone_by_everybody(site: Site, tmp_path: Path) -> None:
    site.routes["/busy.png"] = answer(429, Retry_After="3600")
    fetched(site, "/a.png", tmp_path)
    with pytest.raises(SourceError, match="answered 429"):
        fetched(site, "/busy.png", tmp_path, attempts=3)
    with pytest.raises(SourceError, match="asks to be left alone for 3[56]"):
        fetched(site, "/a.png", tmp_path)
    assert site.asked == ["/a.png", "/busy.png"]


def test_a_crawl_delay_wins_over_a_shorter_one_of_ours(site: Site, tmp_path: Path) -> None:
    site.routes["/robots.txt"] = answer(body=b"User-agent: *\nCrawl-delay: 0.4\nAllow: /")
    for _ in range(3):
        assert fetched(site, "/a.png", tmp_path, per_host=1).data == png()
    moments = [moment for moment, path in zip(site.times, site.log, strict=True) if path == "/a.png"]
    assert min(later - earlier for earlier, later in itertools.pairwise(moments)) >= 0.4


def test_no_more_requests_at_a_time_than_a_host_has_slots(tmp_path: Path) -> None:
    inside, most, lock = [0], [0], threading.Lock()

    def body() -> None:
        with turn(tmp_path, "h", per_host=2, delay_seconds=0.0, max_wait_seconds=5.0):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            with lock:
                inside[0] -= 1

    threads = [threading.Thread(target=body) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 2


def test_a_pause_of_one_host_is_not_anothers(tmp_path: Path) -> None:
    hold_back(tmp_path, "h", 100.0)
    with turn(tmp_path, "other", per_host=1, delay_seconds=0.0, max_wait_seconds=1.0):
        pass
    with pytest.raises(SourceError, match="h asks to be left alone"):
        turn(tmp_path, "h", per_host=1, delay_seconds=0.0, max_wait_seconds=1.0).__enter__()


def test_urls_are_normalised_and_names_in_other_scripts_become_ascii() -> None:
    assert (
        parse_url("https://B\u00fccher.Example./a b".replace(" ", "%20")).url == "https://xn--bcher-kva.example/a%20b"
    )
    assert parse_url("http://a.example:80?x=\u00e4#f").url == "http://a.example/?x=%C3%A4"
    with pytest.raises(ImageError, match="cannot be read"):
        parse_url("http://[::1")


@pytest.mark.parametrize(
    ("licence", "decision"),
    [("CC-BY-4.0", "allowed"), ("CC0-1.0", "allowed"), ("public domain", "allowed"), ("GPL-2+", "allowed"),
     ("CC-BY-NC-4.0", "unknown"), ("CC-BY-ND-4.0", "unknown"), ("all rights reserved", "unknown"), (None, "unknown")],
)  # fmt: skip
def test_only_an_open_licence_is_consent(licence: str | None, decision: str) -> None:
    assert consent_of_licence(licence).decision == decision
