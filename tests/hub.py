"""A small hub on this machine: the routes that upload and download a model, and its failures."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub.utils.sha import git_hash

LARGE = 1 << 12
"""Files from this size on are uploaded apart from the commit, as large files of the hub are."""

USERS = {"hf_me": ("me", "write"), "hf_reader": ("me", "read"), "hf_you": ("you", "write")}
"""The user and the role of each token; both users are in the organization `team`, `me` may write
there."""

Answer = tuple[int, Any]


@dataclass
class Repo:
    """A repository: its commits, each with all its files."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    messages: list[str] = field(default_factory=lambda: ["initial commit"])
    parents: list[str | None] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the last commit."""
        return self.commits[-1]

    @property
    def sha(self) -> str:
        """The name of the last commit."""
        return f"{len(self.commits):040}"


@dataclass
class Fault:
    """What the hub does instead of answering requests that match, a number of times."""

    request: str
    status: int
    """The status to answer with; 0 closes the connection after half of the request."""
    times: int
    body: Mapping[str, Any]


class Hub:
    """The state of the hub, and its address."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        """Large files by their sha256."""
        self.requests: list[str] = []
        """Method and path of every request."""
        self.faults: list[Fault] = []
        self.ignored: list[str] = []
        """Files that a .gitignore of the repository excludes."""
        self.arrived = threading.Event()
        """Set while a request waits for `released`."""
        self.released = threading.Event()
        self.url = ""

    def fails(self, request: str, status: int, times: int = 99, **body: Any) -> None:
        """Makes requests that match this pattern of METHOD PATH fail."""
        self.faults.append(Fault(request, status, times, body))

    @property
    def changes(self) -> list[str]:
        """The requests that may have changed something."""
        return [each for each in self.requests if not each.startswith(("GET", "HEAD"))]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers until the end."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing."""

    def _any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        for fault in self.hub.faults:
            if fault.times and re.search(fault.request, request):
                fault.times -= 1
                return self._fail(fault)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        for pattern, route in ROUTES.items():
            if found := re.fullmatch(pattern, request):
                status, content = route(self, *found.groups())
                return self._reply(status, content) if status else None
        return self._reply(404, {"error": "no such route"})

    do_GET = do_HEAD = do_POST = do_PUT = _any  # noqa: N815

    def _fail(self, fault: Fault) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if fault.status < 0:  # waits with half of the request
            self.rfile.read(length // 2)
            self.hub.arrived.set()
            self.hub.released.wait()
        elif fault.status:
            self.rfile.read(length)
            self._reply(fault.status, fault.body)
            return
        else:
            self.rfile.read(length // 2)
        self.close_connection = True

    def _reply(self, status: int, content: Any, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if isinstance(content, Mapping) and "code" in content:
            self.send_header("X-Error-Code", content["code"])
        if isinstance(content, Mapping) and "error" in content:
            self.send_header("X-Error-Message", str(content["error"]))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _user(self) -> tuple[str, str] | None:
        return USERS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _may_write(self, name: str) -> bool:
        user = self._user()
        own = name.partition("/")[0]
        return user is not None and user[1] == "write" and own in (user[0], "team")

    def whoami(self) -> Answer:
        """The user of the token."""
        if (user := self._user()) is None:
            return 401, {"error": "Invalid credentials in Authorization header"}
        token = {"accessToken": {"role": user[1]}}
        return 200, {"name": user[0], "orgs": [{"name": "team"}], "auth": token}

    def create(self) -> Answer:
        """Creates a repository."""
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or (self._user() or ('', ''))[0]}/{asked['name']}"
        if not self._may_write(name):
            return 403, {"error": "You don't have the rights to create a model here"}
        if name in self.hub.repos:
            return 409, {"error": "You already created this model repo"}
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repos[name] = Repo(private)
        return 200, {"url": f"{self.hub.url}/{name}"}

    def info(self, name: str, revision: str | None = None) -> Answer:
        """What a repository holds."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._may_write(name)):
            return 404, {"error": "Repository not found", "code": "RepoNotFound"}
        files = [_sibling(path, content) for path, content in repo.files.items()]
        return 200, {"id": name, "private": repo.private, "sha": repo.sha, "siblings": files}

    def validate(self) -> Answer:
        """Checks the metadata of a card."""
        assert json.loads(self.body)["content"].startswith("---\n")
        return 200, {"errors": [], "warnings": []}

    def preupload(self, name: str) -> Answer:
        """How each file is uploaded, and the file that is there."""
        if not self._may_write(name):
            return 403, {"error": "no write access"}
        files = self.hub.repos[name].files
        return 200, {
            "files": [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["size"] >= LARGE else "regular",
                    "shouldIgnore": each["path"] in self.hub.ignored,
                    **({"oid": _oid(files[each["path"]])} if each["path"] in files else {}),
                }
                for each in json.loads(self.body)["files"]
            ]
        }

    def batch(self, _name: str) -> Answer:
        """Where to put large files that are not there."""
        objects = json.loads(self.body)["objects"]
        for each in objects:
            if each["oid"] not in self.hub.large:
                each["actions"] = {"upload": {"href": f"{self.hub.url}/large/{each['oid']}"}}
        return 200, {"transfer": "basic", "objects": objects}

    def put(self, oid: str) -> Answer:
        """Takes a large file."""
        if hashlib.sha256(self.body).hexdigest() != oid:
            return 400, {"error": "other content"}
        self.hub.large[oid] = self.body
        return 200, {}

    def commit(self, name: str) -> Answer:
        """Makes one commit of new files."""
        repo, files = self.hub.repos[name], dict(self.hub.repos[name].files)
        header, *lines = [json.loads(line) for line in self.body.splitlines()]
        if header["value"].get("parentCommit", repo.sha) != repo.sha:
            return 412, {"error": "A commit has happened since. Please refresh and try again."}
        for line in lines:
            value = line["value"]
            large = line["key"] == "lfsFile"
            files[value["path"]] = (
                self.hub.large[value["oid"]] if large else base64.b64decode(value["content"])
            )
        repo.commits.append(files)
        repo.messages.append(header["value"]["summary"])
        repo.parents.append(header["value"].get("parentCommit"))
        url = f"{self.hub.url}/{name}/commit/{repo.sha}"
        return 200, {"commitUrl": url, "commitOid": repo.sha}

    def tree(self, name: str) -> Answer:
        """The files of a repository."""
        status, found = self.info(name)
        if status != 200:
            return status, found
        return 200, [
            {"type": "file", "path": each["rfilename"], "size": each["size"], "oid": each["blobId"]}
            for each in found["siblings"]
        ]

    def download(self, name: str, path: str) -> Answer:
        """A file of a repository."""
        status, found = self.info(name)
        if status != 200:
            return status, found
        repo = self.hub.repos[name]
        if path not in repo.files:
            return 404, {"error": "Entry not found", "code": "EntryNotFound"}
        self._reply(200, repo.files[path], ETag=_oid(repo.files[path]), X_Repo_Commit=repo.sha)
        return 0, None


def _oid(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if len(content) >= LARGE else git_hash(content)


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    found = {"rfilename": path, "size": len(content), "blobId": git_hash(content)}
    if len(content) < LARGE:
        return found
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = {"sha256": sha256, "size": len(content), "pointerSize": 130}
    return {**found, "blobId": git_hash(sha256.encode()), "lfs": pointer}


_REPO = r"((?:[\w.-]+/)?[\w.-]+)"
ROUTES: dict[str, Callable[..., Answer]] = {
    "GET /api/whoami-v2": _Handler.whoami,
    "POST /api/repos/create": _Handler.create,
    "POST /api/validate-yaml": _Handler.validate,
    rf"POST /api/models/{_REPO}/preupload/main": _Handler.preupload,
    rf"POST /api/models/{_REPO}/commit/main": _Handler.commit,
    rf"GET /api/models/{_REPO}/tree/\w+": _Handler.tree,
    rf"GET /api/models/{_REPO}(?:/revision/(\w+))?": _Handler.info,
    rf"POST /{_REPO}\.git/info/lfs/objects/batch": _Handler.batch,
    r"PUT /large/(\w+)": _Handler.put,
    rf"(?:GET|HEAD) /{_REPO}/resolve/\w+/(.+)": _Handler.download,
}
