"""Foreign hosts, cross-site writes, scripts in the text, paths that leave the folder: refused, each of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from monosem.app.security import Guard, allowed_host

from .study import ATTACK, client

PAGES = ["/", "/run/topk-k4", "/run/topk-k4/feature/1", "/search", "/run/none", "/assets/app.js"]


def writing_app(calls: list[str]) -> TestClient:
    def write(request: Request) -> PlainTextResponse:
        calls.append(request.method)
        return PlainTextResponse("done")

    app = Starlette(routes=[Route("/write", write, methods=["GET", "POST", "PUT", "DELETE"])])
    return TestClient(Guard(app), base_url="http://127.0.0.1:8137")


@pytest.mark.parametrize(
    ("header", "bound", "allowed"),
    [
        ("127.0.0.1:8137", "127.0.0.1", True),
        ("localhost", "127.0.0.1", True),
        ("LOCALHOST:1", "127.0.0.1", True),
        ("[::1]:8137", "127.0.0.1", True),
        ("evil.example", "127.0.0.1", False),
        ("127.0.0.1.evil.example", "127.0.0.1", False),
        ("evil.example:8137", "0.0.0.0", False),
        ("192.168.1.7:8137", "127.0.0.1", False),
        ("192.168.1.7:8137", "0.0.0.0", True),
        ("[fe80::1]:8137", "::", True),
        ("lab-box:8137", "lab-box", True),
        ("", "127.0.0.1", False),
        ("", "0.0.0.0", False),
    ],
)
def test_only_meant_names_are_answered_to(header: str, bound: str, allowed: bool) -> None:
    assert allowed_host(header, bound) is allowed


@pytest.mark.parametrize("page", PAGES)
def test_a_rebound_name_reads_nothing(folder: Path, page: str) -> None:
    answer = client(folder).get(page, headers={"host": "evil.example:8137"})
    assert answer.status_code == 403
    assert "topk" not in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://localhost:8137", "https://127.0.0.1:8137"]
)
def test_cross_site_writes_are_refused(method: str, origin: str | None) -> None:
    calls: list[str] = []
    headers = {} if origin is None else {"origin": origin}
    assert writing_app(calls).request(method, "/write", headers=headers).status_code == 403
    assert calls == []


def test_writes_of_our_own_pages_pass() -> None:
    calls: list[str] = []
    app = writing_app(calls)
    assert app.post("/write", headers={"origin": "http://127.0.0.1:8137"}).status_code == 200
    local = {"origin": "http://localhost:8137", "host": "localhost:8137"}
    assert app.post("/write", headers=local).status_code == 200
    assert calls == ["POST", "POST"]


@pytest.mark.parametrize("page", PAGES)
def test_every_answer_carries_the_policy(folder: Path, page: str) -> None:
    headers = client(folder).get(page).headers
    assert "script-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"


def test_the_report_may_run_its_own_scripts_and_reach_nothing(folder: Path) -> None:
    policy = client(folder).get("/report.html").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'unsafe-inline'")
    assert "connect-src" not in policy


@pytest.mark.parametrize(
    "page",
    [
        f"/run/topk-k4/feature/{ATTACK}",
        "/run/topk-k4",
        f"/run/gated-l1_2/feature/{59 - ATTACK}/near",
        "/run/topk-k4/feature/3",
    ],
)
def test_a_script_in_the_text_renders_as_text(folder: Path, page: str) -> None:
    text = client(folder).get(page).text
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>" not in text


def test_a_script_in_a_document_and_in_a_search_renders_as_text(folder: Path) -> None:
    found = client(folder).get(f"/run/topk-k4/feature/{ATTACK}")
    address = re.search(r'href="([^"]+/document/[^"]+)"', found.text)
    assert address
    document = client(folder).get(address[1]).text
    assert "&lt;script&gt;alert(1)" in document
    assert "<script>" not in document
    attack = '"><script>alert(2)</script>'
    searched = client(folder, lambda _run, text: [(text, [(1, 2.0)])]).get("/search", params={"text": attack}).text
    assert "&lt;script&gt;alert(2)" in searched
    assert "<script>" not in searched


def test_control_and_direction_characters_are_shown_not_obeyed(folder: Path) -> None:
    text = client(folder).get("/run/topk-k4/feature/3").text
    assert "\u202e" not in text
    assert "↵" in text


@pytest.mark.parametrize(
    "path",
    [
        "/run/..%2f..%2fetc",
        "/run/%2e%2e",
        "/run/%2e%2e/feature/1",
        "/run/topk-k4%00/feature/1",
        "/run/topk-k4/feature/-1",
        "/run/topk-k4/feature/60",
        "/run/topk-k4/feature/99999999999999999999",
        "/run/topk-k4/feature/1/document/99999",
        "/run/none/feature/1",
        "/run/topk-k4/feature/x",
        "/assets/../study.py",
        "/assets/%2e%2e/security.py",
        "/assets/..%2fsecurity.py",
        "/assets/",
        "/study.toml",
    ],
)
def test_what_is_not_there_is_a_clean_404(folder: Path, path: str) -> None:
    answer = client(folder).get(path)
    assert answer.status_code == 404
    assert "Traceback" not in answer.text
    assert str(folder) not in answer.text
    assert "import" not in answer.text


def test_pages_hold_no_inline_script_style_or_foreign_address(folder: Path) -> None:
    for page in (*PAGES[:4], "/run/topk-k4/feature/1/near"):
        text = client(folder).get(page).text
        assert re.findall(r"<script(?![^>]+src=)", text) == []
        assert re.findall(r"<style|\sstyle=|\son[a-z]+=|hx-on", text) == []
        assert re.findall(r'(?:href|src|action)="(?:https?:)?//', text) == []
