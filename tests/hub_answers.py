"""What the loopback Hub holds, and its answers: one function a route.

An answer is a function of the Hub and a request, without HTTP; `loopback_hub` brings the two
together. Users are known by their tokens; any other token is invalid.

What is simpler than on the real Hub: no xet, no multipart uploads, no quotas and no rules for
names; which file is LFS is decided by suffix, size and zero bytes. X-Error-Code is there on each
refusal, since over http:// the client cannot do without.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import parse_qs, unquote, urlencode

import yaml

if TYPE_CHECKING:
    from .loopback_hub import LoopbackHub, Request

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".npz", ".npy", ".parquet", ".arrow", ".png")
LFS_SIZE = 10 * 1024 * 1024
MAIN = "refs/heads/main"


class User(NamedTuple):
    name: str
    role: Literal["read", "write"]
    organizations: tuple[str, ...] = ()

    @property
    def namespaces(self) -> tuple[str, ...]:
        return (self.name, *self.organizations)


USERS = {
    "hf_write": User("alice", "write", ("acme",)),
    "hf_read": User("alice", "read", ("acme",)),
    "hf_other": User("bob", "write"),
}


class Reply(NamedTuple):
    status: int
    body: bytes = b""
    headers: dict[str, str] = {}  # noqa: RUF012 - never written


class Refusal(Exception):
    """The Hub says no; `code` is what the client turns into an exception class."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: str):
        super().__init__(message)
        self.body = json.dumps({"error": message, **body}).encode()
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class File(NamedTuple):
    """A file's names in the store: `oid` is git's, `sha256` is set for an LFS file."""

    oid: str
    size: int
    sha256: str | None = None

    @classmethod
    def of_lfs(cls, sha256: str, size: int) -> File:
        return cls(git_oid(lfs_pointer(sha256, size)), size, sha256)

    def entry(self, path: str) -> dict[str, Any]:
        """As trees and paths-info list it."""
        entry: dict[str, Any] = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        if self.sha256:
            pointer_size = len(lfs_pointer(self.sha256, self.size))
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": pointer_size}
        return entry


def lfs_pointer(sha256: str, size: int) -> bytes:
    lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{sha256}", f"size {size}")
    return "".join(line + "\n" for line in lines).encode()


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    return path.endswith(LFS_SUFFIXES) or size > LFS_SIZE or b"\0" in sample


class Commit(NamedTuple):
    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, File]


@dataclass
class Repo:
    """refs: "refs/heads/main", "refs/tags/v1", "refs/pr/1" -> commit; commits by their sha."""

    id: str
    kind: str = "models"
    private: bool = False
    gated: bool | str = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    @property
    def url_path(self) -> str:
        return self.id if self.kind == "models" else f"{self.kind}/{self.id}"

    def branch(self, rev: str) -> str:
        """The full name of what can be committed to: a branch or a pull request."""
        for name in (f"refs/heads/{rev}", rev):
            if name in self.refs and not name.startswith("refs/tags/"):
                return name
        raise Refusal(404, f"{rev} is not a branch", "RevisionNotFound")

    def at(self, rev: str) -> Commit:
        for name in (rev, f"refs/heads/{rev}", f"refs/tags/{rev}"):
            if name in self.refs:
                return self.commits[self.refs[name]]
        if rev in self.commits:
            return self.commits[rev]
        raise Refusal(404, f"Invalid rev id: {rev}", "RevisionNotFound")

    def commit(
        self, ref: str, files: dict[str, File], title: str, *, message: str = "", author: str = ""
    ) -> Commit:
        """A new commit on top of `ref`; dates and names repeat from run to run."""
        parent = self.refs.get(ref)
        day_one = datetime(2025, 1, 1, tzinfo=timezone.utc)
        date = (day_one + timedelta(seconds=len(self.commits))).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        content = json.dumps([self.id, len(self.commits), parent, title, files], sort_keys=True)
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, title, message, author, date, files)
        self.refs[ref] = sha
        return self.commits[sha]


@dataclass
class Call:
    """A request with the places of its route; its methods say what the user may do."""

    hub: LoopbackHub
    request: Request
    kind: str = "models"
    repo: str = ""
    rev: str = "main"
    path: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        self.kind = self.kind.rstrip("/") or "models"
        self.query = self.request.query
        self.user = self.request.user
        self.author = self.user.name if self.user else ""

    @property
    def json(self) -> Any:
        return json.loads(self.request.body or b"{}")

    def is_member(self, namespace: str) -> bool:
        return self.user is not None and namespace in self.user.namespaces

    def known(self) -> Repo:
        """The repository, if the user may know of it."""
        found = self.hub.repos.get((self.kind, self.repo))
        if found is None or (found.private and not self.is_member(found.namespace)):
            raise Refusal(404 if self.user else 401, "Repository not found", "RepoNotFound")
        return found

    def readable(self) -> Repo:
        """The repository, if the user may also read its files."""
        found = self.known()
        if found.gated and not self.is_member(found.namespace):
            message = f"Access to {self.kind[:-1]} {self.repo} is restricted."
            raise Refusal(403 if self.user else 401, message, "GatedRepo")
        return found

    def writable(self) -> Repo:
        found = self.known()
        self.check_writer(found.namespace)
        return found

    def proposable(self) -> Repo:
        """The repository, if the user may commit to it, or propose a commit as the query says."""
        if "create_pr" not in self.query:
            return self.writable()
        found = self.readable()
        self.check_writer(self.author)
        return found

    def check_writer(self, namespace: str) -> None:
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        if self.user.role != "write" or not self.is_member(namespace):
            rights = f"{self.author} with the role {self.user.role}"
            raise Refusal(403, f"You don't have the rights to write under {namespace} ({rights})")


ROUTES: list[tuple[str, re.Pattern[str], Callable[[Call], Reply]]] = []
_PLACES = {
    "{kind}": "(?P<kind>models|datasets|spaces)",
    "{prefix}": "(?P<kind>datasets/|spaces/|)",
    "{repo}": "(?P<repo>[^/]+(?:/[^/]+)?)",
    "{rev}": "(?P<rev>[^/]+)",
    "{name}": "(?P<name>[^/]+)",
    "{path}": "(?P<path>.+)",
}


def route(method: str, template: str) -> Callable:
    """The decorated function answers such paths; what stands in braces comes as `Call`'s fields."""
    for place, pattern in _PLACES.items():
        template = template.replace(place, pattern)

    def register(function: Callable[[Call], Reply]) -> Callable[[Call], Reply]:
        ROUTES.append((method, re.compile(template), function))
        return function

    return register


def answer(hub: LoopbackHub, request: Request) -> Reply:
    """By the first route that fits the quoted path: a revision may hold a slash."""
    if request.origin == "hub":
        request.user = _user(request)
    method = "GET" if request.method == "HEAD" else request.method
    for route_method, pattern, function in ROUTES:
        if route_method == method and (match := pattern.fullmatch(request.raw_path)):
            places = {key: unquote(value) for key, value in match.groupdict().items() if value}
            with hub.lock:
                return function(Call(hub, request, **places))
    raise Refusal(404, f"This Hub does not know {request.method} {request.raw_path}")


def _user(request: Request) -> User | None:
    token = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    if token and token not in USERS:
        raise Refusal(401, "Invalid credentials in Authorization header")
    return USERS.get(token)


def _json(data: object, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    return Reply(status, json.dumps(data).encode(), headers or {})


# users, cards, and repositories as a whole


@route("GET", "/api/whoami-v2")
def _whoami(call: Call) -> Reply:
    if call.user is None:
        raise Refusal(401, "Invalid username or password.")
    name, role, organizations = call.user
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
    orgs = [{"type": "org", "name": org} for org in organizations]
    return _json({"type": "user", "name": name, "fullname": name, "orgs": orgs, "auth": token})


@route("POST", "/api/validate-yaml")
def _validate_yaml(call: Call) -> Reply:
    header = re.match(r"\s*---\r?\n(.*?)\r?\n---", call.json["content"], re.DOTALL)
    if header is None:
        missing = {"message": "empty or missing yaml metadata in repo card"}
        return _json({"errors": [], "warnings": [missing]})
    errors = [{"message": error} for error in _card_errors(header[1])]
    return _json({"errors": errors, "warnings": []}, 400 if errors else 200)


def _card_errors(text: str) -> list[str]:
    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}".splitlines()[0]]
    if not isinstance(data, dict):
        return ["metadata is not a mapping"]
    types = {"tags": list, "datasets": (str, list), "base_model": (str, list), "license": str}
    return [
        f'"{key}" has a wrong type'
        for key, kind in types.items()
        if key in data and not isinstance(data[key], kind)
    ]


def _named_repo(call: Call) -> Call:
    """The repository that the body names, for create and delete."""
    kind = (call.json.get("type") or "model") + "s"
    namespace = call.json.get("organization") or call.author
    return replace(call, kind=kind, repo=f"{namespace}/{call.json['name']}")


@route("POST", "/api/repos/create")
def _create_repo(call: Call) -> Reply:
    wanted, target = call.json, _named_repo(call)
    call.check_writer(target.repo.split("/")[0])
    url = f"{call.hub.url}/{Repo(target.repo, target.kind).url_path}"
    if (target.kind, target.repo) in call.hub.repos:
        raise Refusal(409, "You already created this repo", url=url)  # exist_ok reads the url
    private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    call.hub.add_repo(target.repo, kind=target.kind, private=private)
    return _json({"url": url, "name": target.repo, "id": target.repo})


@route("DELETE", "/api/repos/delete")
def _delete_repo(call: Call) -> Reply:
    found = _named_repo(call).writable()
    del call.hub.repos[found.kind, found.id]
    return _json({})


@route("POST", "/api/repos/move")
def _move_repo(call: Call) -> Reply:
    kind, target = call.json["type"] + "s", call.json["toRepo"]
    found = replace(call, kind=kind, repo=call.json["fromRepo"]).writable()
    call.check_writer(target.split("/")[0])
    if (kind, target) in call.hub.repos:
        raise Refusal(409, f"{target} exists already")
    call.hub.repos[kind, target] = replace(found, id=target)
    del call.hub.repos[kind, found.id]
    return _json({})


@route("PUT", "/api/{kind}/{repo}/settings")
def _change_settings(call: Call) -> Reply:
    found = call.writable()
    found.gated = call.json.get("gated", found.gated)
    if "visibility" in call.json:
        found.private = call.json["visibility"] == "private"
    return _json({})


@route("GET", "/api/{kind}")
def _list_repos(call: Call) -> Reply:
    listed = [
        _description(repo, "main")
        for repo in call.hub.repos.values()
        if repo.kind == call.kind
        and call.query.get("author", repo.namespace) == repo.namespace
        and call.query.get("search", "") in repo.id
        and (not repo.private or call.is_member(repo.namespace))
    ]
    return _json(listed)


# one repository, read


@route("GET", "/api/{kind}/{repo}/auth-check")
def _may_read(call: Call) -> Reply:
    call.readable()
    return _json({})


@route("GET", "/api/{kind}/{repo}/auth-check/write")
def _may_write(call: Call) -> Reply:
    call.writable()
    return _json({})


@route("GET", "/api/{kind}/{repo}/refs")
def _list_refs(call: Call) -> Reply:
    refs = call.known().refs
    prefixes = {"branches": "refs/heads/", "tags": "refs/tags/"}
    if "include_prs" in call.query:
        prefixes["pullRequests"] = "refs/pr/"
    lists: dict[str, list] = {"converts": []}
    for kind, prefix in prefixes.items():
        lists[kind] = [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": sha}
            for ref, sha in refs.items()
            if ref.startswith(prefix)
        ]
    return _json(lists)


@route("GET", "/api/{kind}/{repo}/commits/{rev}")
def _list_commits(call: Call) -> Reply:
    found, history = call.known(), []
    commit: Commit | None = found.at(call.rev)
    while commit is not None:
        described = {"id": commit.sha, "title": commit.title, "message": commit.message}
        history.append(described | {"date": commit.date, "authors": [{"user": commit.author}]})
        commit = found.commits[commit.parent] if commit.parent else None
    return _json(history)


@route("POST", "/api/{kind}/{repo}/paths-info/{rev}")
def _describe_paths(call: Call) -> Reply:
    entries = _entries(call.readable().at(call.rev).files)
    asked = parse_qs(call.request.body.decode()).get("paths", [])
    return _json([entries[path] for path in asked if path in entries])


@route("GET", "/api/{kind}/{repo}/tree/{rev}(?:/{path})?")
def _list_tree(call: Call) -> Reply:
    entries = _entries(call.readable().at(call.rev).files)
    inside = call.path.rstrip("/") + "/" if call.path else ""
    listed = [entry for name, entry in sorted(entries.items()) if name.startswith(inside)]
    if inside and not listed:
        raise Refusal(404, f"{call.path} does not exist on {call.rev}", "EntryNotFound")
    if call.query.get("recursive", "").lower() != "true":
        listed = [entry for entry in listed if "/" not in entry["path"].removeprefix(inside)]
    start = int(call.query.get("cursor", 0))
    end = start + call.hub.page_size
    if end >= len(listed):
        return _json(listed[start:])
    query = urlencode(call.query | {"cursor": end})
    link = f'<{call.hub.url}{call.request.raw_path}?{query}>; rel="next"'
    return _json(listed[start:end], headers={"Link": link})


def _entries(files: dict[str, File]) -> dict[str, dict[str, Any]]:
    """Files and the folders they lie in, by path."""
    entries = {path: file.entry(path) for path, file in files.items()}
    for path in files:
        while path := path.rpartition("/")[0]:
            oid = hashlib.sha1(path.encode()).hexdigest()
            entries[path] = {"type": "directory", "path": path, "size": 0, "oid": oid}
    return entries


@route("GET", "/api/{kind}/{repo}(?:/revision/{rev})?")
def _describe_repo(call: Call) -> Reply:
    with_blobs = call.query.get("blobs", "").lower() == "true"
    return _json(_description(call.known(), call.rev, with_blobs))


def _description(repo: Repo, rev: str, with_blobs: bool = False) -> dict[str, Any]:
    commit = repo.at(rev)
    siblings = []
    for path, file in sorted(commit.files.items()):
        details: dict[str, Any] = {"blobId": file.oid, "size": file.size} if with_blobs else {}
        if with_blobs and file.sha256:
            size = len(lfs_pointer(file.sha256, file.size))
            details["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": size}
        siblings.append({"rfilename": path, **details})
    ids = {"id": repo.id, "modelId": repo.id, "author": repo.namespace, "sha": commit.sha}
    rights = {"private": repo.private, "gated": repo.gated, "disabled": False}
    counts = {"downloads": 0, "likes": 0, "tags": [], "spaces": []}
    created = next(iter(repo.commits.values())).date
    dates = {"lastModified": commit.date, "createdAt": created}
    return {**ids, **rights, **counts, **dates, "siblings": siblings}


@route("GET", "/{prefix}{repo}/resolve/{rev}/{path}")
def _resolve(call: Call) -> Reply:
    commit = call.readable().at(call.rev)
    headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    if call.path not in commit.files:
        refusal = Refusal(404, "Entry not found", "EntryNotFound")
        refusal.headers |= headers  # so that the client may remember that there is no such file
        raise refusal
    file = commit.files[call.path]
    if file.sha256 is None:
        return _ranged(call.request, call.hub.content(file), file.oid, headers)
    etag = f'"{file.sha256}"'
    location = f"{call.hub.cdn_url}/lfs/{file.sha256}?Signature=test"
    linked = {"ETag": etag, "X-Linked-Etag": etag, "X-Linked-Size": str(file.size)}
    return Reply(302, b"Found", headers | linked | {"Location": location})


def _ranged(request: Request, data: bytes, etag: str, headers: dict[str, str]) -> Reply:
    headers = {"Content-Type": "application/octet-stream", "ETag": f'"{etag}"'} | headers
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if match is None or match[0] == "bytes=-":
        return Reply(200, data, headers)
    first, last, size = match[1], match[2], len(data)
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= size:
        return Reply(416, b"", headers | {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Reply(206, data[start:stop], headers)


# one repository, written


@route("POST", "/api/{kind}/{repo}/branch/{name}")
def _create_branch(call: Call) -> Reply:
    found = call.writable()
    start = found.at(call.json.get("startingPoint") or "main").sha
    return _add_ref(found, f"refs/heads/{call.name}", start)


@route("POST", "/api/{kind}/{repo}/tag/{rev}")
def _create_tag(call: Call) -> Reply:
    found = call.writable()
    return _add_ref(found, f"refs/tags/{call.json['tag']}", found.at(call.rev).sha)


def _add_ref(repo: Repo, ref: str, sha: str) -> Reply:
    if ref in repo.refs:
        raise Refusal(409, f"Reference already exists: {ref}")
    repo.refs[ref] = sha
    return _json({})


@route("DELETE", "/api/{kind}/{repo}/branch/{name}")
def _delete_branch(call: Call) -> Reply:
    if call.name == "main":
        raise Refusal(403, "Cannot delete main")
    return _delete_ref(call.writable(), f"refs/heads/{call.name}")


@route("DELETE", "/api/{kind}/{repo}/tag/{name}")
def _delete_tag(call: Call) -> Reply:
    return _delete_ref(call.writable(), f"refs/tags/{call.name}")


def _delete_ref(repo: Repo, ref: str) -> Reply:
    if repo.refs.pop(ref, None) is None:
        raise Refusal(404, f"There is no {ref}", "RevisionNotFound")
    return _json({})


@route("POST", "/api/{kind}/{repo}/preupload/{rev}")
def _preupload(call: Call) -> Reply:
    present = call.proposable().at(call.rev).files
    answers = []
    for wanted in call.json["files"]:
        path, sample = wanted["path"], base64.b64decode(wanted["sample"])
        mode = "lfs" if is_lfs(path, wanted["size"], sample) else "regular"
        file = present.get(path)
        oid = (file.sha256 or file.oid) if file else None  # the client leaves out what is there
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return _json({"files": answers})


@route("POST", r"/{prefix}{repo}\.git/info/lfs/objects/batch")
def _lfs_batch(call: Call) -> Reply:
    """Also for a pull request: whoever may write anywhere."""
    found, objects = call.known(), []
    call.check_writer(call.author)
    for wanted in call.json["objects"]:
        item: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
        if not call.hub.has_lfs(wanted["oid"], wanted["size"]):
            upload = {"href": f"{call.hub.cdn_url}/upload/{wanted['oid']}", "header": {}}
            verify = {"href": f"{call.hub.url}/{found.url_path}.git/info/lfs/verify"}
            item["actions"] = {"upload": upload, "verify": verify}
        objects.append(item)
    return _json({"transfer": "basic", "objects": objects})


@route("POST", r"/{prefix}{repo}\.git/info/lfs/verify")
def _lfs_verify(call: Call) -> Reply:
    if not call.hub.has_lfs(call.json["oid"], call.json["size"]):
        raise Refusal(404, f"LFS object {call.json['oid']} was not uploaded")
    return _json({})


@route("POST", "/api/{kind}/{repo}/commit/{rev}")
def _commit(call: Call) -> Reply:
    found = call.proposable()
    lines = [json.loads(line) for line in call.request.body.splitlines() if line.strip()]
    summary, ref = lines[0]["value"], found.branch(call.rev)
    head = found.at(ref)
    if not head.sha.startswith(summary.get("parentCommit") or ""):
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    files = dict(head.files)
    for line in lines[1:]:  # a refusal leaves the repository as it was
        _apply(call.hub, files, line["key"], line["value"])
    url = f"{call.hub.url}/{found.url_path}"
    body: dict[str, Any] = {"success": True}
    if "create_pr" in call.query:
        number = 1 + sum(name.startswith("refs/pr/") for name in found.refs)
        ref = f"refs/pr/{number}"
        found.refs[ref] = head.sha
        body["pullRequestUrl"] = f"{url}/discussions/{number}"
    message = summary.get("description") or ""
    commit = found.commit(ref, files, summary["summary"], message=message, author=call.author)
    body |= {"commitOid": commit.sha, "commitUrl": f"{url}/commit/{commit.sha}"}
    return _json(body)


def _apply(hub: LoopbackHub, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
    """One line of a commit."""
    path = value["path"]
    if key == "file":
        files[path] = hub.store_blob(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        if not (hub.folder / value["oid"]).is_file():
            raise Refusal(400, f"LFS object {value['oid']} for {path} was not uploaded")
        files[path] = File.of_lfs(value["oid"], (hub.folder / value["oid"]).stat().st_size)
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    elif key == "deletedFolder":
        for name in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
            del files[name]
    else:
        raise Refusal(400, f"unknown change {key}")


# the CDN: it knows hashes, no users


@route("PUT", "/upload/{name}")
def _take_lfs(call: Call) -> Reply:
    if hashlib.sha256(call.request.body).hexdigest() != call.name:
        raise Refusal(400, "The SHA256 you specified did not match what was received")
    call.hub.store_lfs(call.request.body)
    return Reply(200)


@route("GET", "/lfs/{name}")
def _give_lfs(call: Call) -> Reply:
    data = (call.hub.folder / call.name).read_bytes()
    return _ranged(call.request, data, call.name, {"Accept-Ranges": "bytes"})
