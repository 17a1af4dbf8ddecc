"""A hub on this machine that answers as Hugging Face's does: model info, search, downloads, and commits."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

COMMIT = "a" * 40
WRITE_TOKEN, READ_TOKEN = "hf_write" + "w" * 20, "hf_read" + "r" * 20


class _Hub(BaseHTTPRequestHandler):
    """Models in `folder/OWNER/NAME`, other revisions in `folder/OWNER/NAME@REVISION`. Uploads need `WRITE_TOKEN`.

    `me/gated` is unknown to everybody who has not accepted its terms; of `me/walled` only the files are.
    """

    folder: Path
    asked: list[str]
    private: set[str]

    def log_message(self, *_: object) -> None:
        """Do not log requests."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append(f"POST {self.path}")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token != WRITE_TOKEN:
            self._send(403 if token == READ_TOKEN else 401, b'{"error": "no"}', {})
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._send(200, b'{"errors": [], "warnings": []}', {})
        elif found := re.fullmatch(r"/api/models/(\w+/[\w.-]+)/preupload/main", self.path):
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._send(200, json.dumps({"files": files}).encode(), {})
        elif found := re.fullmatch(r"/api/models/(\w+/[\w.-]+)/commit/main", self.path):
            self._commit(self.folder / found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._send(404, b"{}", {})

    def _create(self, given: dict[str, Any]) -> None:
        name = f"{given.get('organization') or 'me'}/{given['name']}"
        if (self.folder / name).is_dir():
            self._send(409, json.dumps({"url": f"{self._url()}/{name}"}).encode(), {})
            return
        (self.folder / name).mkdir(parents=True)
        if given.get("private") or given.get("visibility") == "private":
            self.private.add(name)
        self._send(200, json.dumps({"url": f"{self._url()}/{name}"}).encode(), {})

    def _commit(self, model: Path, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            path = model / line["value"].get("path", "")
            if line["key"] == "file":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(line["value"]["content"]))
            elif line["key"] == "deletedFile":
                path.unlink()
        url = f"{self._url()}/{model.parent.name}/{model.name}/commit/{COMMIT}"
        self._send(200, json.dumps({"success": True, "commitUrl": url, "commitOid": COMMIT}).encode(), {})

    def _answer(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        path, _, query = self.path.partition("?")
        info = re.fullmatch(r"/api/models/(\w+/[\w.-]+)(?:/(tree|revision)/([^/]+).*)?", path)
        resolved = re.fullmatch(r"/(\w+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
        if path == "/api/models":
            self._send(200, json.dumps(self._found(query)).encode(), {})
        elif path.startswith("/api/models/me/gated") or path.startswith("/me/walled/resolve"):
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Accept the terms"})
        elif info and (self.folder / info[1]).is_dir():
            self._inform(info[1], info[3] or "main", is_tree=info[2] == "tree")
        elif resolved and (file := self._at(resolved[1], resolved[2])[0] / resolved[3]).is_file():
            content = file.read_bytes()
            commit = self._at(resolved[1], resolved[2])[1]
            self._send(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit})
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _found(self, query: str) -> list[dict[str, Any]]:
        wanted = parse_qs(query).get("search", [""])[0]
        names = sorted(path.relative_to(self.folder).as_posix() for path in self.folder.glob("*/*") if path.is_dir())
        return [{"id": name, "modelId": name} for name in names if wanted in name and "@" not in name]

    def _at(self, name: str, revision: str) -> tuple[Path, str]:
        """The folder and the commit of a revision."""
        others = sorted(self.folder.glob(f"{name}@*"))
        commits = {path: f"{number:x}" * 40 for number, path in enumerate(others, start=11)}
        for path, commit in commits.items():
            if revision in {commit, path.name.partition("@")[2]}:
                return path, commit
        return self.folder / name, COMMIT

    def _inform(self, name: str, revision: str, *, is_tree: bool) -> None:
        model, commit = self._at(name, revision)
        if commit == COMMIT and revision not in {"main", COMMIT}:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        files = {path.relative_to(model).as_posix(): path for path in sorted(model.rglob("*")) if path.is_file()}
        tree = [{"type": "file", "oid": "b" * 40, "size": path.stat().st_size, "path": n} for n, path in files.items()]
        siblings = [{"rfilename": file} for file in files]
        about = {"id": name, "sha": commit, "siblings": siblings, "tags": [], "private": name in self.private}
        self._send(200, json.dumps(tree if is_tree else about).encode(), {})

    def _url(self) -> str:
        return f"http://{self.headers['Host']}"

    def _send(self, code: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class HubServer:
    """A hub whose models are the folders `folder/OWNER/NAME`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        handler = type("Handler", (_Hub,), {"folder": folder, "asked": self.asked, "private": set()})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop the server."""
        self.http.shutdown()
        self.http.server_close()
