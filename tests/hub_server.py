"""A Hugging Face Hub on the loopback: the protocol of huggingface_hub 2.x over an in-memory store of commits.

    with serve_hub() as hub:
        subprocess.run([...], env=hub.environment(tmp_path))   # huggingface_hub reads its environment once, at import
        hub.files("org/model")                                 # {path: bytes} at the head of main
        hub.requests                                           # [(method, path), ...]
    hub.cut = lambda method, path: 0 if method == "PUT" else None    # the connection breaks off

Models, datasets and Spaces; branches, tags and old commits stay readable. What a test needs and this does not speak
(pull requests, gated repositories, Xet) is answered with 404 or 400, never with a guess.
"""

import base64
import fnmatch
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

USER = {
    "type": "user",
    "name": "tester",
    "orgs": [{"type": "org", "name": "org"}],
    "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}},
}
LFS_PATTERNS = (
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.onnx",
    "*.npz",
    "*.parquet",
    "*.arrow",
    "*.zip",
)
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS).encode()
DATE = "2025-01-01T00:00:00.000Z"


class HubError(Exception):
    """An error answer: status, `X-Error-Code` (which the client turns into an exception class) and message."""

    def __init__(self, status: int, code: str | None, message: str, body: dict | None = None):
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **(body or {})}


@dataclass(frozen=True)
class Blob:
    """Content of a file; `lfs` files are known by their sha256, the others by git's sha1."""

    data: bytes
    lfs: bool = False

    @cached_property
    def oid(self) -> str:
        if self.lfs:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    def entry(self, path: str) -> dict:
        entry = {"type": "file", "oid": self.oid, "size": len(self.data), "path": path}
        return entry | ({"lfs": {"oid": self.oid, "size": len(self.data), "pointerSize": 134}} if self.lfs else {})


@dataclass(frozen=True)
class Commit:
    """A state of all files, and how it came about."""

    files: dict[str, Blob]
    title: str
    parent: str | None = None


@dataclass
class Repo:
    """Commits by id, and the branches and tags that point to them."""

    id: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str:
        """Commit id of a branch, a tag or a commit id."""
        revision = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def files(self, revision: str) -> dict[str, Blob]:
        return self.commits[self.resolve(revision)].files

    def commit(self, branch: str, files: dict[str, Blob], title: str) -> str:
        """Make `files` the state of the branch; returns the commit's id."""
        parent = self.branches.get(branch)
        state = [str(len(self.commits)), str(parent), title, *(f"{path} {files[path].oid}" for path in sorted(files))]
        sha = hashlib.sha1("\n".join(state).encode()).hexdigest()
        self.commits[sha] = Commit(files, title, parent)
        self.branches[branch] = sha
        return sha

    def lfs_patterns(self, revision: str) -> list[str]:
        attributes = self.files(revision).get(".gitattributes", Blob(b"")).data.decode()
        return [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]


@dataclass
class Hub:
    """The store and the address under which it is served.

    `requests` are (method, path), `ranges` (path, Range header) of all that was asked. `cut(method, path)` may say
    after how many bytes of its body an answer is broken off (0: the request is not even carried out).
    """

    url: str = ""
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    ranges: list[tuple[str, str]] = field(default_factory=list)
    cut: Callable[[str, str], int | None] = lambda method, path: None
    lock: Any = field(default_factory=threading.RLock)

    def environment(self, home: str | os.PathLike, **more: str) -> dict[str, str]:
        """Environment of a client process whose caches are under `home`; settings of this machine do not leak in."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        hub = {"HF_ENDPOINT": self.url, "HF_TOKEN": "hf_test", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        return mine | hub | quiet | more

    def repo(self, repo_id: str, kind: str | None = "models") -> Repo:
        """A repository; `kind` is models, datasets or spaces."""
        if (kind or "models", repo_id) not in self.repos:
            raise HubError(404, "RepoNotFound", f"Repository not found: {repo_id}")
        return self.repos[kind or "models", repo_id]

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a model repository holds."""
        return {path: blob.data for path, blob in self.repo(repo_id).files(revision).items()}


@dataclass
class Request:
    """What a route is given: the body, the query and the parts of the path."""

    hub: Hub
    body: bytes
    query: dict[str, str]
    range: str | None
    kind: str = "models"
    id: str = ""
    rev: str = "main"
    path: str = ""

    @property
    def json(self) -> dict:
        return json.loads(self.body or b"{}")

    @property
    def repo(self) -> Repo:
        return self.hub.repo(self.id, self.kind)

    @property
    def is_private(self) -> bool:
        found = self.hub.repos.get((self.kind, self.id))
        return found is not None and found.private


@dataclass
class Answer:
    """Bytes and headers, where JSON will not do."""

    data: bytes
    headers: dict[str, str]
    status: int = 200


Route = Callable[[Request], Any]
ROUTES: list[tuple[str, re.Pattern, Route]] = []
API = r"/api/(?P<kind>models|datasets|spaces)/(?P<id>[^/]+(?:/[^/]+)??)"
WEB = r"(?:/(?P<kind>datasets|spaces))?/(?P<id>[^/]+(?:/[^/]+)??)"
REV = r"(?P<rev>refs%2F[^/]+|[^/]+)"


def route(methods: str, pattern: str) -> Callable[[Route], Route]:
    """Answer these methods on paths that match; the groups kind, id, rev and path go into the request."""

    def add(function: Route) -> Route:
        ROUTES.extend((method, re.compile(pattern), function) for method in methods.split())
        return function

    return add


@route("GET", "/api/whoami-v2")
def whoami(request: Request) -> dict:
    return USER


@route("POST", "/api/validate-yaml")
def validate_yaml(request: Request) -> dict:
    warning = {"message": "empty or missing yaml metadata in repo card"}
    return {"errors": [], "warnings": [] if request.json["content"].startswith("---\n") else [warning]}


@route("POST", "/api/repos/create")
def create_repo(request: Request) -> dict:
    wish, hub = request.json, request.hub
    kind = wish.get("type", "model") + "s"
    repo_id = f"{wish.get('organization') or USER['name']}/{wish['name']}"
    url = f"{hub.url}/{'' if kind == 'models' else kind + '/'}{repo_id}"
    if (kind, repo_id) in hub.repos:
        raise HubError(409, None, "You already created this repo", {"url": url})
    repo = Repo(repo_id, private=bool(wish.get("private")) or wish.get("visibility") == "private")
    repo.commit("main", {".gitattributes": Blob(GITATTRIBUTES)}, "initial commit")
    hub.repos[kind, repo_id] = repo
    return {"url": url, "id": repo_id}


@route("GET", API)
@route("GET", rf"{API}/revision/{REV}")
def info(request: Request) -> dict:
    repo = request.repo
    siblings = [
        {"rfilename": path} | ({"size": len(blob.data), "blobId": blob.oid} if "blobs" in request.query else {})
        for path, blob in sorted(repo.files(request.rev).items())
    ]
    facts = {"id": repo.id, "author": repo.id.split("/")[0], "sha": repo.resolve(request.rev), "siblings": siblings}
    counts = {"tags": [], "downloads": 0, "likes": 0, "lastModified": DATE, "createdAt": DATE}
    return facts | counts | {"private": repo.private, "gated": False, "disabled": False}


@route("GET", f"{API}/refs")
def refs(request: Request) -> dict:
    def listed(found: dict[str, str], folder: str) -> list[dict]:
        return [{"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": sha} for name, sha in found.items()]

    return {
        "branches": listed(request.repo.branches, "heads"),
        "tags": listed(request.repo.tags, "tags"),
        "converts": [],
    }


@route("POST", rf"{API}/branch/(?P<path>[^/]+)")
def branch(request: Request) -> dict:
    start = request.repo.resolve(request.json.get("startingPoint", "main"))
    return _create(request.repo.branches, request.path, start)


@route("POST", rf"{API}/tag/{REV}")
def tag(request: Request) -> dict:
    return _create(request.repo.tags, request.json["tag"], request.repo.resolve(request.rev))


@route("GET", rf"{API}/tree/{REV}(?:/(?P<path>.+))?")
def tree(request: Request) -> list:
    files, folder = request.repo.files(request.rev), request.path.strip("/")
    inside = {path: blob for path, blob in sorted(files.items()) if not folder or path.startswith(f"{folder}/")}
    if folder and not inside:
        raise HubError(404, "EntryNotFound", f"{folder} does not exist on {request.rev!r}")
    recursive = request.query.get("recursive", "false").lower() in ("true", "1")
    folders = {str(parent) for path in inside for parent in PurePosixPath(path).parents} - {".", folder}
    folders -= {str(parent) for parent in PurePosixPath(folder).parents}
    entries = [blob.entry(path) for path, blob in inside.items()] + [_folder(path) for path in sorted(folders)]
    depth = folder.count("/") + 1 if folder else 0
    return [entry for entry in entries if recursive or entry["path"].count("/") == depth]


@route("POST", rf"{API}/paths-info/{REV}")
def paths_info(request: Request) -> list:
    files = request.repo.files(request.rev)
    found = []
    for path in parse_qs(request.body.decode()).get("paths", []):
        if path in files:
            found.append(files[path].entry(path))
        elif any(name.startswith(f"{path}/") for name in files):
            found.append(_folder(path))
    return found


@route("POST", rf"{API}/preupload/{REV}")
def preupload(request: Request) -> dict:
    files, patterns = request.repo.files(request.rev), request.repo.lfs_patterns(request.rev)

    def mode(path: str, sample: str) -> str:
        name = PurePosixPath(path).name
        matches = any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
        return "lfs" if matches or b"\0" in base64.b64decode(sample) else "regular"

    answers = [
        {
            "path": file["path"],
            "uploadMode": mode(file["path"], file["sample"]),
            "shouldIgnore": False,
            "oid": files[file["path"]].oid if file["path"] in files else None,
        }
        for file in request.json["files"]
    ]
    return {"files": answers}


@route("POST", rf"{WEB}\.git/info/lfs/objects/batch")
def lfs_batch(request: Request) -> dict:
    request.repo.resolve(request.json.get("ref", {}).get("name", "main"))
    objects = []
    for wanted in request.json["objects"]:
        href = f"{request.hub.url}/lfs/{wanted['oid']}"
        actions = {"upload": {"href": href, "header": {}}, "verify": {"href": f"{href}/verify", "header": {}}}
        objects.append(wanted if wanted["oid"] in request.hub.uploads else wanted | {"actions": actions})
    return {"transfer": "basic", "objects": objects}


@route("PUT", r"/lfs/(?P<path>[0-9a-f]{64})")
def lfs_put(request: Request) -> dict:
    if hashlib.sha256(request.body).hexdigest() != request.path:
        raise HubError(400, None, f"the body is not {request.path}")
    request.hub.uploads[request.path] = request.body
    return {}


@route("POST", r"/lfs/(?P<path>[0-9a-f]{64})/verify")
def lfs_verify(request: Request) -> dict:
    if len(request.hub.uploads.get(request.path, b"")) != request.json["size"]:
        raise HubError(404, None, f"{request.path} was not uploaded whole")
    return {}


@route("POST", rf"{API}/commit/{REV}")
def commit(request: Request) -> dict:
    repo, lines = request.repo, [json.loads(line) for line in request.body.splitlines()]
    if request.rev not in repo.branches:
        raise HubError(404, "RevisionNotFound", f"{request.rev} is not a branch")
    if "create_pr" in request.query:
        raise HubError(400, None, "pull requests are not part of this double")
    header = next(line["value"] for line in lines if line["key"] == "header")
    if header.get("parentCommit", repo.branches[request.rev]) != repo.branches[request.rev]:
        raise HubError(412, None, "A commit has happened since. Please refresh and try again.")
    files = dict(repo.files(request.rev))
    for line in lines:
        _apply(line["key"], line["value"], files, request.hub.uploads)
    sha = repo.commit(request.rev, files, header["summary"])
    return {"success": True, "commitOid": sha, "commitUrl": f"{request.hub.url}/{repo.id}/commit/{sha}"}


@route("GET HEAD", rf"{WEB}/resolve/{REV}/(?P<path>.+)")
def resolve(request: Request) -> Answer:
    files = request.repo.files(request.rev)
    if request.path not in files:
        raise HubError(404, "EntryNotFound", f"{request.path} does not exist on {request.rev!r}")
    blob = files[request.path]
    headers = {"X-Repo-Commit": request.repo.resolve(request.rev), "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.oid}"', "X-Linked-Size": str(len(blob.data))}
    if request.range is None:
        return Answer(blob.data, headers)
    first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", request.range).groups()
    start, stop = int(first), min(int(last) + 1 if last else len(blob.data), len(blob.data))
    if start >= stop:
        raise HubError(416, None, f"{request.range} of {len(blob.data)} bytes")
    return Answer(
        blob.data[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(blob.data)}"}, 206
    )


def _apply(key: str, value: dict, files: dict[str, Blob], uploads: dict[str, bytes]) -> None:
    """One line of a commit."""
    path = value.get("path", "").rstrip("/")
    if key == "file":
        files[path] = Blob(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        if value["oid"] not in uploads:
            raise HubError(400, None, f"{path}: {value['oid']} was not uploaded")
        files[path] = Blob(uploads[value["oid"]], lfs=True)
    elif key in ("deletedFile", "deletedFolder"):
        gone = [name for name in files if name == path or (key == "deletedFolder" and name.startswith(f"{path}/"))]
        if not gone:
            raise HubError(404, "EntryNotFound", "A file with this name doesn't exist")
        for name in gone:
            del files[name]
    elif key != "header":
        raise HubError(400, None, f"unknown key of a commit: {key}")


def _folder(path: str) -> dict:
    return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}


def _create(refs: dict[str, str], name: str, sha: str) -> dict:
    if name in refs:
        raise HubError(409, None, f"Reference already exists: {name}")
    refs[name] = sha
    return {}


class _Handler(BaseHTTPRequestHandler):
    """Finds the route, runs it under the lock, writes the answer."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def answer(self) -> None:
        address, body = urlsplit(self.path), self.read_body()
        asked = (self.command, unquote(address.path))
        self.hub.requests.append(asked)
        if self.headers["Range"]:
            self.hub.ranges.append((asked[1], self.headers["Range"]))
        cut = self.hub.cut(*asked)
        if cut == 0:
            self.close_connection = True
            return
        try:
            with self.hub.lock:
                found = self.run(
                    address.path, {key: last for key, (*_, last) in parse_qs(address.query).items()}, body
                )
        except HubError as error:
            headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
            found = Answer(json.dumps(error.body).encode(), headers, error.status)
        if not isinstance(found, Answer):
            found = Answer(json.dumps(found).encode(), {"Content-Type": "application/json"})
        self.send_response(found.status)
        for name, value in {**found.headers, "Content-Length": str(len(found.data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(found.data[:cut])
            self.close_connection = self.close_connection or cut is not None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def run(self, path: str, query: dict[str, str], body: bytes) -> Any:
        for method, pattern, function in ROUTES:
            if method == self.command and (match := pattern.fullmatch(path)):
                parts = {name: unquote(part) for name, part in match.groupdict().items() if part is not None}
                if method not in ("GET", "HEAD", "PUT") and "Authorization" not in self.headers:
                    raise HubError(401, None, "Invalid username or password.")
                request = Request(self.hub, body, query, self.headers["Range"], **parts)
                if "id" in parts and request.is_private and "Authorization" not in self.headers:
                    raise HubError(401, "RepoNotFound", "Invalid username or password.")
                return function(request)
        raise HubError(404, None, f"this double has no {self.command} {path}")

    def read_body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, *args) -> None:
        """Quiet: `Hub.requests` has it all."""


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """An empty Hub on a free port of the loopback, gone when the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
