"""A server on this machine that answers as the Hugging Face Hub does, as far as its library asks."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from typing import Any
from urllib.parse import unquote

WRONG_TOKEN = "Bearer hf_wrong"


class StandIn:
    """Repositories in memory, with one branch, ``main``.

    Attributes:
        url: address of the server.
        repos: name -> file -> content of the last commit.
        commit: the last one, of any repository.
        tokens: what ``Authorization`` said in requests that change something.
        asked: method and path of every request.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}
        self.commit = ""
        self.tokens: set[str] = set()
        self.asked: list[str] = []
        owner = self

        class Handler(_Handler):
            hub = owner

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)

    def put(self, repo: str, files: dict[str, bytes]) -> None:
        """Commit files."""
        self.repos[repo] = {**self.repos.get(repo, {}), **files}
        self.commit = hashlib.sha1(repr(sorted(self.repos[repo].items())).encode()).hexdigest()
        self.commits[repo, self.commit] = dict(self.repos[repo])

    def __enter__(self) -> StandIn:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: StandIn

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _send(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        if self.headers.get("Authorization") == WRONG_TOKEN:
            self._send(401)
            return
        if "/resolve/" not in self.path:  # other things that the library is curious about
            self._send(404)
            return
        owner, name, _, revision, file = unquote(self.path).strip("/").split("/", 4)
        repo = f"{owner}/{name}"
        if repo not in self.hub.repos:
            self._send(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            return
        files = self.hub.repos[repo]
        commit = next(reversed([c for r, c in self.hub.commits if r == repo]), "0" * 40)
        if revision != "main":
            if (repo, revision) not in self.hub.commits:
                self._send(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
                return
            files, commit = self.hub.commits[repo, revision], revision
        if file not in files:
            self._send(
                404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=commit
            )
            return
        etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
        self._send(200, files[file], ETag=etag, X_Repo_Commit=commit)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        data = self._body()
        token = str(self.headers.get("Authorization"))
        if token == WRONG_TOKEN:
            self._send(401)
            return
        self.hub.tokens.add(token)
        if self.path == "/api/repos/create":
            asked = json.loads(data)
            repo = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.hub.repos.setdefault(repo, {})
            self._json({"url": f"{self.hub.url}/{repo}"})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            wanted = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for f in json.loads(data)["files"]
            ]
            self._json({"files": wanted})
        elif "/commit/" in self.path:
            lines: list[dict[str, Any]] = [json.loads(line) for line in data.splitlines() if line.strip()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            repo = "/".join(self.path.split("/")[3:5])
            self.hub.put(repo, files)
            url = f"{self.hub.url}/{repo}/commit/{self.hub.commit}"
            self._json({"commitUrl": url, "commitOid": self.hub.commit, "success": True})
        else:
            self._send(404)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), Content_Type="application/json")
