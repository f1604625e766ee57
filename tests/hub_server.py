"""A small Hugging Face Hub on loopback, so that tests push and pull with the real `huggingface_hub` client.

    with LoopbackHub(folder, tokens={"hf_abc": "write"}) as hub:
        api = HfApi(endpoint=hub.url, token="hf_abc")

`RepositoryStore` keeps repositories on disk: content-addressed objects, and one JSON file per repository with its
branches, tags and commits, each commit a full snapshot of path -> `File`. `HubHandler` turns HTTP requests into calls
on the store through the table of `@route` methods. `LoopbackHub` runs both in a thread and can be told to fail.

Differences from the Hub: every valid token reads every private repository, large files are answered directly instead
of by a redirect to a storage host, cards are not parsed, listings carry no last commits (`expand`), and there are no
pull requests and no Xet storage. An endpoint that does not exist here answers 501, which the client never retries.
"""

import base64
import hashlib
import json
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

LFS_MINIMUM_SIZE = 10 * 1024 * 1024  # bytes; the Hub's own limit for files kept in git
LFS_SUFFIXES = {".arrow", ".bin", ".ckpt", ".h5", ".npy", ".npz", ".parquet", ".pt", ".pth", ".safetensors", ".zip"}
CHUNK_SIZE = 1 << 20  # bytes


class HubError(Exception):
    """An answer other than success. The client tells 404s apart by `code`, sent as `X-Error-Code`."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message.encode("ascii", "backslashreplace").decode()}
        self.headers |= ({"X-Error-Code": code} if code else {}) | (headers or {})


# ---------------------------------------------------------------------------------------------------------------------
# State on disk
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """One version of one file; `oid` is what git would call it, the name of the pointer file if it is an LFS file."""

    sha256: str
    size: int
    oid: str
    is_lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.oid

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    message: str
    date: str
    files: dict[str, File]

    def folders(self) -> set[str]:
        return {str(parent) for path in self.files for parent in PurePosixPath(path).parents} - {"."}

    def folder_oid(self, folder: str) -> str:
        inside = {path: file.oid for path, file in self.files.items() if path.startswith(f"{folder}/")}
        return hashlib.sha1(json.dumps(inside, sort_keys=True).encode()).hexdigest()


@dataclass
class Repository:
    kind: str  # "models", "datasets" or "spaces"
    repo_id: str
    private: bool
    created_at: str
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a full sha or its first seven characters or more name."""
        sha = self.branches.get(revision.removeprefix("refs/heads/")) or self.tags.get(revision)
        if sha is None and re.fullmatch("[0-9a-f]{7,40}", revision):
            sha = next((sha for sha in self.commits if sha.startswith(revision)), None)
        if sha is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def history(self, commit: Commit) -> Iterator[Commit]:
        """The commit and its ancestors, newest first."""
        while True:
            yield commit
            if commit.parent is None:
                return
            commit = self.commits[commit.parent]


class RepositoryStore:
    """Repositories in a folder. The folder outlives the server, a new store on it finds everything again."""

    def __init__(self, folder: Path):
        self.objects = folder / "objects"
        self.repositories = folder / "repositories"
        self.objects.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()  # one writer at a time

    # Objects

    def add_object(self, chunks: Iterable[bytes], expected_sha256: str | None = None) -> str:
        """Stores the bytes under their sha256 and returns it; a different one than expected is refused."""
        sha256 = hashlib.sha256()
        with tempfile.NamedTemporaryFile(dir=self.objects, delete=False) as temporary:
            for chunk in chunks:
                sha256.update(chunk)
                temporary.write(chunk)
        oid = sha256.hexdigest()
        if expected_sha256 not in (None, oid):
            os.unlink(temporary.name)
            raise HubError(400, f"The uploaded bytes have sha256 {oid}, not {expected_sha256}.")
        os.replace(temporary.name, self.objects / oid)
        return oid

    def file(self, sha256: str, is_lfs: bool) -> File:
        """The `File` of a stored object."""
        if not (self.objects / sha256).is_file():
            raise HubError(400, f"The LFS object {sha256} was never uploaded.")
        size = (self.objects / sha256).stat().st_size
        file = File(sha256, size, "", is_lfs)
        tracked = file.pointer if is_lfs else (self.objects / sha256).read_bytes()
        return replace(file, oid=hashlib.sha1(b"blob %d\0" % len(tracked) + tracked).hexdigest())

    # Repositories

    def _path(self, kind: str, repo_id: str) -> Path:
        return self.repositories / kind / f"{repo_id}.json"

    def _save(self, repository: Repository) -> None:
        path = self._path(repository.kind, repository.repo_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(repository)))
        os.replace(temporary, path)

    def create(self, kind: str, repo_id: str, private: bool) -> bool:
        """Creates a repository with its first commit; False if it exists already."""
        if not all(re.fullmatch(r"[A-Za-z0-9_][\w.-]*", part) for part in repo_id.split("/")):
            raise HubError(400, f"Invalid repository name: {repo_id}")
        with self._lock:
            if self._path(kind, repo_id).exists():
                return False
            repository = Repository(kind, repo_id, private, _now())
            attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LFS_SUFFIXES))
            first = {".gitattributes": self.file(self.add_object([attributes.encode()]), is_lfs=False)}
            self._append(repository, "main", first, title="initial commit")
            return True

    def delete(self, kind: str, repo_id: str) -> None:
        with self._lock:
            self.get(kind, repo_id)
            self._path(kind, repo_id).unlink()

    def get(self, kind: str, repo_id: str) -> Repository:
        try:
            state = json.loads(self._path(kind, repo_id).read_text())
        except FileNotFoundError:
            raise HubError(404, "Repository not found", "RepoNotFound") from None
        for sha, commit in state["commits"].items():
            files = {path: File(**file) for path, file in commit.pop("files").items()}
            state["commits"][sha] = Commit(**commit, files=files)
        return Repository(**state)

    def _append(
        self, repository: Repository, branch: str, files: dict[str, File], title: str, message: str = ""
    ) -> Commit:
        parent = repository.branches.get(branch)
        named = [repository.repo_id, parent, title, message, _now(), sorted((p, f.oid) for p, f in files.items())]
        sha = hashlib.sha1(json.dumps(named).encode()).hexdigest()
        commit = Commit(sha, parent, title, message, named[4], files)
        repository.commits[sha] = commit
        repository.branches[branch] = sha
        self._save(repository)
        return commit

    def commit(self, kind: str, repo_id: str, branch: str, lines: list[dict]) -> Commit:
        """Applies the lines of a commit request (header, file, lfsFile, deletedFile, deletedFolder), all or none."""
        with self._lock:
            repository = self.get(kind, repo_id)
            if branch not in repository.branches:
                raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            head = repository.resolve(branch)
            files = dict(head.files)
            header: dict = {}
            for line in lines:
                key, value = line["key"], line["value"]
                path = value.get("path", "").rstrip("/")
                if key == "header":
                    header = value
                elif key == "file":
                    files[path] = self.file(self.add_object([base64.b64decode(value["content"])]), is_lfs=False)
                elif key == "lfsFile":
                    files[path] = self.file(value["oid"], is_lfs=True)
                elif key == "deletedFile":
                    if files.pop(path, None) is None:
                        raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                elif key == "deletedFolder":
                    inside = [name for name in files if name.startswith(f"{path}/")]
                    if not inside:
                        raise HubError(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
                    for name in inside:
                        del files[name]
                else:
                    raise HubError(400, f"Unknown commit operation: {key}")
            if not head.sha.startswith(header.get("parentCommit") or ""):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            return self._append(repository, branch, files, header["summary"], header.get("description", ""))

    def add_reference(self, kind: str, repo_id: str, references: str, name: str, revision: str) -> None:
        """Points a new entry of `references`, "branches" or "tags", at a revision."""
        with self._lock:
            repository = self.get(kind, repo_id)
            if name in getattr(repository, references):
                raise HubError(409, f"Reference already exists: {name}")
            getattr(repository, references)[name] = repository.resolve(revision).sha
            self._save(repository)

    def delete_reference(self, kind: str, repo_id: str, references: str, name: str) -> None:
        with self._lock:
            repository = self.get(kind, repo_id)
            if getattr(repository, references).pop(name, None) is None:
                raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
            self._save(repository)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


# ---------------------------------------------------------------------------------------------------------------------
# HTTP
# ---------------------------------------------------------------------------------------------------------------------


class Reply(NamedTuple):
    """A status and JSON, or `length` bytes of a file from `start`."""

    status: int
    content: Any
    headers: dict[str, str] | None = None
    start: int = 0
    length: int = 0


class Route(NamedTuple):
    method: str
    pattern: re.Pattern
    answer: Callable
    needs_write: bool


ROUTES: list[Route] = []
PLACES = {
    "kind": "models|datasets|spaces",
    "prefix": "(?:datasets/|spaces/)?",  # of paths outside /api, where models have none
    "repo": "[^/]+(?:/[^/]+)?",
    "rev": "[^/]+",  # the client quotes slashes in revisions
    "name": "[^/]+",
    "path": ".+",
    "oid": "[0-9a-f]{64}",
}


def route(method: str, template: str, needs_write: bool = False) -> Callable:
    """Registers a method of `HubHandler` for a path template; each `{place}` becomes a keyword argument."""
    pattern = re.compile(re.sub(r"\{(\w+)\}", lambda place: f"(?P<{place[1]}>{PLACES[place[1]]})", template))

    def register(answer: Callable) -> Callable:
        ROUTES.append(Route(method, pattern, answer, needs_write))
        return answer

    return register


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every kept-alive answer waits 40 ms for an acknowledgement

    # Dispatch

    @property
    def hub(self) -> "LoopbackHub":
        return self.server.hub

    def answer(self) -> None:
        self._unread = self._chunks()
        try:
            reply = self._reply()
        except HubError as error:
            reply = Reply(error.status, {"error": str(error)}, error.headers)
        for _ in self._unread:  # what is left of the request's body would be taken for the next request
            continue
        self.hub.requests.append(LoggedRequest(self.command, self.path, "Authorization" in self.headers, reply.status))
        self._send(reply)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def _reply(self) -> Reply:
        self.hub.raise_planned_failure(self.command, self.path)
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        role = self._role()
        wanted = "GET" if self.command == "HEAD" else self.command
        for method, pattern, answer, needs_write in ROUTES:
            match = pattern.fullmatch(url.path)
            if match and method == wanted:
                if needs_write:
                    self._require_write(role)
                places = {place: unquote(text) for place, text in match.groupdict().items() if text is not None}
                reply = answer(self, **places)
                return reply if isinstance(reply, Reply) else Reply(200, reply)
        raise HubError(501, f"The loopback Hub has no {self.command} {url.path}")

    def _role(self) -> str | None:
        """The token's role, "read" or "write"; None without a token."""
        header = self.headers.get("Authorization")
        if header is None:
            return None
        role = self.hub.tokens.get(header.removeprefix("Bearer "))
        if role is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return role

    def _require_write(self, role: str | None) -> None:
        if role is None:
            raise HubError(401, "Invalid username or password.")
        if role != "write":
            raise HubError(403, "You don't have the rights to write with this token")

    def _repository(self, kind: str, repo: str) -> Repository:
        """The repository if the request may see it. As on the Hub, strangers cannot tell private from missing."""
        try:
            repository = self.hub.store.get(kind, repo)
        except HubError:
            repository = None
        if repository is not None and not (repository.private and self._role() is None):
            return repository
        # On https addresses the client itself takes any 401 for a missing repository; on http it needs the code.
        if self._role() is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")

    def _chunks(self) -> Iterator[bytes]:
        """The request's body, sized or chunked, as it arrives."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left and (chunk := self.rfile.read(min(left, CHUNK_SIZE))):
            left -= len(chunk)
            yield chunk

    def _body(self) -> bytes:
        return b"".join(self._unread)

    def _json(self) -> dict:
        return json.loads(self._body() or b"{}")

    def _send(self, reply: Reply) -> None:
        is_file = isinstance(reply.content, Path)
        body = b"" if is_file else json.dumps(reply.content).encode()
        self.send_response(reply.status)
        self.send_header("Content-Type", "application/octet-stream" if is_file else "application/json")
        for name, value in (reply.headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(reply.length if is_file else len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if is_file:
            with open(reply.content, "rb") as file:
                file.seek(reply.start)
                left = reply.length
                while left and (chunk := file.read(min(left, CHUNK_SIZE))):
                    left -= len(chunk)
                    self.wfile.write(chunk)
        else:
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on standard error: tests read `LoopbackHub.requests`."""

    # Account and repositories

    @route("GET", "/api/whoami-v2")
    def who_am_i(self):
        role = self._role()
        if role is None:
            raise HubError(401, "Invalid username or password.")
        access_token = {"displayName": "loopback", "role": role}
        auth = {"type": "access_token", "accessToken": access_token}
        return {"type": "user", "name": self.hub.user, "fullname": self.hub.user, "orgs": [], "auth": auth}

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self):
        has_metadata = re.match(r"---\r?\n.*?\n---", self._json()["content"], re.DOTALL)
        warning = {"message": "empty or missing yaml metadata in repo card"}
        return {"errors": [], "warnings": [] if has_metadata else [warning]}

    @route("POST", "/api/repos/create", needs_write=True)
    def create_repository(self):
        request = self._json()
        kind = request.get("type", "model") + "s"
        repo_id = f"{request.get('organization') or self.hub.user}/{request['name']}"
        url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{repo_id}"
        private = request.get("visibility") == "private" or request.get("private", False)
        if not self.hub.store.create(kind, repo_id, private):
            return Reply(409, {"error": f"You already created this {kind[:-1]} repo", "url": url})
        return {"name": repo_id, "url": url}

    @route("DELETE", "/api/repos/delete", needs_write=True)
    def delete_repository(self):
        request = self._json()
        repo_id = f"{request.get('organization') or self.hub.user}/{request['name']}"
        self.hub.store.delete(request.get("type", "model") + "s", repo_id)
        return {}

    # Uploads

    @route("POST", "/api/{kind}/{repo}/preupload/{rev}", needs_write=True)
    def preupload(self, kind, repo, rev):
        present = self._repository(kind, repo).resolve(rev).files

        def decide(file: dict) -> dict:
            is_lfs = (
                file["size"] > LFS_MINIMUM_SIZE
                or PurePosixPath(file["path"]).suffix in LFS_SUFFIXES
                or b"\0" in base64.b64decode(file["sample"])
            )
            answer = {"path": file["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
            return answer | ({"oid": present[file["path"]].etag} if file["path"] in present else {})

        return {"files": [decide(file) for file in self._json()["files"]]}

    @route("POST", r"/{prefix}{repo}\.git/info/lfs/objects/batch", needs_write=True)
    def lfs_batch(self, prefix, repo):
        self._repository(prefix.rstrip("/") or "models", repo)

        def actions(oid: str) -> dict:
            if (self.hub.store.objects / oid).exists():
                return {}
            href = f"{self.hub.url}/lfs/{oid}"
            return {"actions": {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}}

        objects = [{"oid": o["oid"], "size": o["size"], **actions(o["oid"])} for o in self._json()["objects"]]
        return {"transfer": "basic", "objects": objects}

    @route("PUT", "/lfs/{oid}")
    def lfs_upload(self, oid):
        self.hub.store.add_object(self._unread, expected_sha256=oid)
        return {}

    @route("POST", "/lfs/{oid}/verify", needs_write=True)
    def lfs_verify(self, oid):
        if self.hub.store.file(oid, is_lfs=True).size != self._json()["size"]:
            raise HubError(400, f"The LFS object {oid} has another size.")
        return {}

    @route("POST", "/api/{kind}/{repo}/commit/{rev}", needs_write=True)
    def commit(self, kind, repo, rev):
        self._repository(kind, repo)
        lines = [json.loads(line) for line in self._body().splitlines() if line]
        sha = self.hub.store.commit(kind, repo, rev, lines).sha
        url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{repo}/commit/{sha}"
        return {"success": True, "commitOid": sha, "commitUrl": url}

    # Listings

    @route("GET", "/api/{kind}/{repo}/tree/{rev}(?:/{path})?")
    def tree(self, kind, repo, rev, path=""):
        commit = self._repository(kind, repo).resolve(rev)
        if path and path not in commit.folders():
            raise HubError(404, f"{path} does not exist on {rev}", "EntryNotFound")
        prefix = f"{path}/" if path else ""
        inside = [entry for entry in sorted({*commit.files, *commit.folders()}) if entry.startswith(prefix)]
        if self.query.get("recursive") != ["true"]:
            inside = [entry for entry in inside if "/" not in entry.removeprefix(prefix)]
        return self._entries(commit, inside)

    @route("POST", "/api/{kind}/{repo}/paths-info/{rev}")
    def paths_info(self, kind, repo, rev):
        paths = parse_qs(self._body().decode()).get("paths", [])
        return self._entries(self._repository(kind, repo).resolve(rev), paths)

    def _entries(self, commit: Commit, paths: list[str]) -> list[dict]:
        """Files and folders among `paths`, as /tree and /paths-info describe them; what does not exist is left out."""
        entries = []
        for path in paths:
            if file := commit.files.get(path):
                entry = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
                if file.is_lfs:
                    entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
            elif path in commit.folders():
                entry = {"type": "directory", "oid": commit.folder_oid(path), "size": 0, "path": path}
            else:
                continue
            entries.append(entry)
        return entries

    @route("GET", "/api/{kind}/{repo}/refs")
    def references(self, kind, repo):
        repository = self._repository(kind, repo)

        def listed(references: dict[str, str], namespace: str) -> list[dict]:
            return [{"name": n, "ref": f"refs/{namespace}/{n}", "targetCommit": sha} for n, sha in references.items()]

        branches, tags = listed(repository.branches, "heads"), listed(repository.tags, "tags")
        return {"branches": branches, "tags": tags, "converts": [], "pullRequests": []}

    @route("GET", "/api/{kind}/{repo}/commits/{rev}")
    def commits(self, kind, repo, rev):
        repository = self._repository(kind, repo)
        return [
            {"id": c.sha, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": self.hub.user}]}
            for c in repository.history(repository.resolve(rev))
        ]

    @route("POST", "/api/{kind}/{repo}/tag/{rev}", needs_write=True)
    def add_tag(self, kind, repo, rev):
        self.hub.store.add_reference(kind, repo, "tags", self._json()["tag"], rev)
        return {}

    @route("DELETE", "/api/{kind}/{repo}/tag/{name}", needs_write=True)
    def delete_tag(self, kind, repo, name):
        self.hub.store.delete_reference(kind, repo, "tags", name)
        return {}

    @route("POST", "/api/{kind}/{repo}/branch/{name}", needs_write=True)
    def add_branch(self, kind, repo, name):
        self.hub.store.add_reference(kind, repo, "branches", name, self._json().get("startingPoint", "main"))
        return {}

    @route("DELETE", "/api/{kind}/{repo}/branch/{name}", needs_write=True)
    def delete_branch(self, kind, repo, name):
        self.hub.store.delete_reference(kind, repo, "branches", name)
        return {}

    @route("GET", "/api/{kind}/{repo}(?:/revision/{rev})?")  # after the longer paths, which {repo} could swallow
    def information(self, kind, repo, rev="main"):
        repository = self._repository(kind, repo)
        commit = repository.resolve(rev)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        if "blobs" in self.query:
            for sibling in siblings:
                file = commit.files[sibling["rfilename"]]
                sibling |= {"size": file.size, "blobId": file.oid}
                if file.is_lfs:
                    sibling["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
        return {
            "id": repo,
            "author": repo.split("/")[0],
            "sha": commit.sha,
            "createdAt": repository.created_at,
            "lastModified": commit.date,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
        }

    # Downloads

    @route("GET", "/{prefix}{repo}/resolve/{rev}/{path}")
    def download(self, prefix, repo, rev, path):
        commit = self._repository(prefix.rstrip("/") or "models", repo).resolve(rev)
        headers = {"X-Repo-Commit": commit.sha}
        file = commit.files.get(path)
        if file is None:
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound", headers)
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.is_lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
        content = self.hub.store.objects / file.sha256
        if "Range" not in self.headers or self.command == "HEAD":
            return Reply(200, content, headers, 0, file.size)
        start, stop = byte_range(self.headers["Range"], file.size)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        return Reply(206, content, headers, start, stop - start)


def byte_range(header: str, size: int) -> tuple[int, int]:
    """Start and stop of `bytes=first-last`, `bytes=first-` or `bytes=-length` in a file of `size` bytes."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.replace(" ", ""))
    first, last = match.groups() if match else ("", "")
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
    else:
        start, stop = max(size - int(last or 0), 0), size
    if start >= stop:
        raise HubError(416, f"Unsatisfiable range {header}", headers={"Content-Range": f"bytes */{size}"})
    return start, stop


# ---------------------------------------------------------------------------------------------------------------------
# The server
# ---------------------------------------------------------------------------------------------------------------------


class LoggedRequest(NamedTuple):
    method: str
    path: str  # with its query
    authorized: bool  # whether a token came with it; the token itself is never kept
    status: int


@dataclass
class PlannedFailure:
    left: int
    status: int
    path_contains: str
    method: str | None


class HubSocket(ThreadingHTTPServer):
    """Listens for a `LoopbackHub`, and lets go of kept-alive connections when it closes."""

    def __init__(self, hub: "LoopbackHub"):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.hub = hub
        self._connections: set = set()

    def get_request(self):
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request):
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self):
        super().server_close()
        for connection in list(self._connections):
            self.shutdown_request(connection)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # a client may hang up in the middle of a file
            super().handle_error(request, client_address)


class LoopbackHub:
    """A Hub at `url`, from `start` (or `with`) to `stop`.

    Args:
        folder: where repositories are kept; an existing one is opened again.
        tokens: the valid tokens and their roles, "write" or "read". Any other token is refused with 401.
        user: the account behind the tokens, which owns repositories created without an organisation.

    `requests` lists every request answered so far as `LoggedRequest`.
    """

    def __init__(self, folder: str | os.PathLike, tokens: dict[str, str], user: str = "loopback"):
        self.store = RepositoryStore(Path(folder))
        self.tokens = dict(tokens)
        self.user = user
        self.requests: list[LoggedRequest] = []
        self._failures: list[PlannedFailure] = []
        self._lock = threading.Lock()

    def start(self) -> Self:
        self._socket = HubSocket(self)
        self.url = f"http://127.0.0.1:{self._socket.server_port}"
        self._thread = threading.Thread(target=self._socket.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        self._socket.shutdown()
        self._socket.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def fail_next(self, count: int, status: int = 500, path_contains: str = "", method: str | None = None) -> None:
        """Answers `status` to the next `count` requests of this method (None: any) whose path contains the text."""
        with self._lock:
            self._failures.append(PlannedFailure(count, status, path_contains, method))

    def raise_planned_failure(self, method: str, path: str) -> None:
        with self._lock:
            for failure in self._failures:
                if failure.left and failure.path_contains in path and failure.method in (None, method):
                    failure.left -= 1
                    raise HubError(failure.status, f"The loopback Hub was told to answer {failure.status}.")

    def reset(self) -> None:
        """Forgets the request log and the planned failures; repositories stay."""
        with self._lock:
            self.requests.clear()
            self._failures.clear()
