"""A small Hugging Face hub on this machine: what huggingface_hub asks for when it downloads and uploads models.

Repositories are dicts of files by commit. Tokens: `hf_write` may do everything, `hf_read` may read private ones.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Files, branch: str = "main", message: str = "") -> str:
        """Put files on a branch, beside those that it has; return the commit."""
        whole = {**self.commits.get(self.branches.get(branch, ""), {}), **files}
        sha = hashlib.sha1(repr((len(self.commits), sorted(whole.items()))).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = whole, sha
        self.messages.append(message)
        return sha

    def at(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class Hub:
    """The server; `asked` are its requests in order, `listed` has lies about what is in a folder."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []
        self.listed: dict[str, list[dict[str, Any]]] = {}
        self.broken: int | None = None  # a status that every request is answered with
        self.bad_metadata = ""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def answer(self) -> None:
                hub.asked.append(f"{self.command} {unquote(self.path)}")
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                try:
                    status, headers, data = hub.answer(self.command, self.path, dict(self.headers), body)
                except Refusal as refusal:
                    status, data = refusal.status, json.dumps({"error": refusal.message}).encode()
                    headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    if value:
                        self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_HEAD = do_POST = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def repository(self, name: str, files: Files | None = None, **options: Any) -> Repository:
        repository = self.repositories[name] = Repository(**options)
        if files is not None:
            repository.commit(files)
        return repository

    def downloads(self) -> list[str]:
        """The paths of the files that were read."""
        return [line.split("/", 5)[5] for line in self.asked if line.startswith("GET ") and "/resolve/" in line]

    def answer(self, method: str, url: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self.broken:
            raise Refusal(self.broken, message="out of order")
        parts = [unquote(part) for part in urlsplit(url).path.strip("/").split("/")]
        token = headers.get("authorization", headers.get("Authorization", "")).removeprefix("Bearer ")
        if token not in ("", "hf_read", "hf_write"):
            raise Refusal(401, message="Invalid credentials in Authorization header")
        if parts[0] != "api":
            return self.resolve(parts, token)
        if parts[1:] == ["repos", "create"]:
            return self.create(json.loads(body), token)
        if parts[1:] == ["validate-yaml"]:
            errors = [{"message": self.bad_metadata}] if self.bad_metadata else []
            return self.json({"errors": errors, "warnings": []}, 400 if errors else 200)
        if parts[1] != "models" or len(parts) < 4:
            raise Refusal(404, message="no such page")
        repo = f"{parts[2]}/{parts[3]}"
        repository, verb, rest = self.open(repo, token), parts[4] if len(parts) > 4 else "", parts[5:]
        if method == "POST":
            return self.write(repository, repo, verb, "/".join(rest), token, body)
        revision = rest[0] if rest else "main"
        sha = self.find(repository, revision)
        if verb == "tree":
            recursive = parse_qs(urlsplit(url).query).get("recursive", ["false"])[0].lower() == "true"
            return self.json(self.tree(repository.commits[sha], "/".join(rest[1:]), recursive))
        return self.json({"id": repo, "sha": sha, "private": repository.private, "siblings": [], "tags": []})

    @staticmethod
    def json(value: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
        return status, {"Content-Type": "application/json"}, json.dumps(value).encode()

    def open(self, repo: str, token: str) -> Repository:
        repository = self.repositories.get(repo)
        if repository is None or (repository.private and not token):
            raise Refusal(404 if token else 401, "RepoNotFound", "Repository not found")
        if repository.gated:
            raise Refusal(403, "GatedRepo", f"Access to model {repo} is restricted")
        return repository

    @staticmethod
    def find(repository: Repository, revision: str) -> str:
        sha = repository.at(revision)
        if sha is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def tree(self, files: Files, folder: str, recursive: bool) -> list[dict[str, Any]]:
        if folder in self.listed:
            return self.listed[folder]
        within = f"{folder}/" if folder else ""
        found: dict[str, dict[str, Any]] = {}
        for path, data in sorted(files.items()):
            if not path.startswith(within):
                continue
            below = path.removeprefix(within)
            if "/" in below and not recursive:
                path = within + below.split("/")[0]
                found[path] = {"type": "directory", "path": path, "oid": "0" * 40}
            else:
                found[path] = {"type": "file", "path": path, "oid": etag(data), "size": len(data)}
        if folder and not found:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist")
        return list(found.values())

    def resolve(self, parts: list[str], token: str) -> tuple[int, dict[str, str], bytes]:
        repository = self.open("/".join(parts[:2]), token)
        sha = self.find(repository, parts[3])
        data = repository.commits[sha].get("/".join(parts[4:]))
        if data is None:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        return 200, {"ETag": f'"{etag(data)}"', "X-Repo-Commit": sha}, data

    def create(self, asked: dict[str, Any], token: str) -> tuple[int, dict[str, str], bytes]:
        repo = f"{asked['organization']}/{asked['name']}"
        if token != "hf_write":
            raise Refusal(403, message=f"You don't have the rights to create a model under {asked['organization']}")
        if repo in self.repositories:
            return self.json({"error": "You already created this model repo", "url": f"{self.url}/{repo}"}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repository(repo, {}, private=private)
        return self.json({"url": f"{self.url}/{repo}", "name": repo})

    def write(
        self, repository: Repository, repo: str, verb: str, revision: str, token: str, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if token != "hf_write":
            raise Refusal(403, message="You don't have write access to this repository")
        if verb == "branch":
            if revision in repository.branches:
                raise Refusal(409, message="Reference already exists")
            repository.branches[revision] = repository.branches["main"]
            return self.json({})
        self.find(repository, revision)
        if verb == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.json({"files": files})
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        sha = repository.commit(files, revision, lines[0]["value"]["summary"])
        return self.json({"commitUrl": f"{self.url}/{repo}/commit/{sha}", "commitOid": sha})


def etag(data: bytes) -> str:
    """The name that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
