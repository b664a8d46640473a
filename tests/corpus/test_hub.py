"""Datasets of a hub by their commit: the real client against a server on loopback that speaks the hub's file API."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from finetune.checks import check
from finetune.config import load

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "README.md": b"# Talks",
    "talks.py": b"raise SystemExit('code of a dataset was run')",
    "data/train-00000.jsonl": b'{"a": "one"}\n{"a": "two"}\n',
    "data/train-00001.jsonl": b'{"a": "three"}\n',
    "data/test.jsonl": b'{"a": "four"}\n',
}
CHILD = """
import json, sys
from pathlib import Path
from finetune.config.data import Source
from finetune.corpus.read import find_documents, list_files, pieces, rows
from finetune.errors import RecipeError
hub = {"dataset": "owner/talks", "revision": sys.argv[1], "files": sys.argv[3:]}
sources = {"s": Source(hub=hub)}
try:
    documents = find_documents(sources, Path("."), fetch=sys.argv[2] == "fetch")
except RecipeError as error:
    print(json.dumps({"problem": [error.problems[0].path, error.problems[0].fix]}))
    raise SystemExit()
files, bad = list_files(sources, documents)["s"], []
parts = [piece for file in files for piece in pieces(file, sources["s"], "s")]
found = [row for part in parts for row in rows(part, sources["s"], "s", bad)]
print(json.dumps({"rows": [[row["a"], row["_file"]] for row in found], "files": documents.facts["files"]}))
"""


class Hub(BaseHTTPRequestHandler):
    asked: list[str] = []

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(f"{self.command} {path}")
        tree, resolve = f"/api/datasets/owner/talks/tree/{COMMIT}", f"/datasets/owner/talks/resolve/{COMMIT}/"
        if path == tree:
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in FILES.items()
            ]
            self.answer(json.dumps(listed).encode())
        elif path.startswith(resolve) and (name := path.removeprefix(resolve)) in FILES:
            self.answer(FILES[name], ETag=f'"{hashlib.sha1(FILES[name]).hexdigest()}"', **{"X-Repo-Commit": COMMIT})
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def answer(self, data: bytes, **headers: str) -> None:
        self.send_response(200)
        for key, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@contextmanager
def serving() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def read(home: Path, endpoint: str, *words: str, offline: bool = False) -> dict[str, list[list[str]]]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HTTP", "http"))}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": str(int(offline))}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", CHILD, *words]
    outcome = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert outcome.returncode == 0, outcome.stderr
    found: dict[str, list[list[str]]] = json.loads(outcome.stdout)
    return found


def test_a_dataset_is_fetched_by_commit_once_and_read_offline_afterwards(tmp_path: Path) -> None:
    glob = "data/train-*.jsonl"
    expected = [
        [text, f"owner/talks/data/train-{n}.jsonl"]
        for text, n in (("one", "00000"), ("two", "00000"), ("three", "00001"))
    ]
    with serving() as endpoint:
        assert "problem" in read(tmp_path, endpoint, COMMIT, "look", glob), "a plan downloads nothing"
        assert not Hub.asked
        first = read(tmp_path, endpoint, COMMIT, "fetch", glob)
        assert not any("talks.py" in asked or "test.jsonl" in asked for asked in Hub.asked)
        before = len(Hub.asked)
        again = read(tmp_path, endpoint, COMMIT, "look", glob)
        assert len(Hub.asked) == before, "what is in the cache is asked for again"
    assert first["rows"] == again["rows"] == expected
    offline = read(tmp_path, endpoint, COMMIT, "fetch", glob, offline=True)
    assert offline == first
    missing = read(tmp_path, endpoint, COMMIT, "fetch", "data/test.jsonl", offline=True)
    assert missing["problem"][0] == "sources.s.hub.dataset"
    assert f"--revision {COMMIT}" in str(missing["problem"][1])


def test_a_commit_that_is_not_there_is_an_error_with_what_to_type(tmp_path: Path) -> None:
    with serving() as endpoint:
        found = read(tmp_path, endpoint, "f" * 40, "fetch", "*.jsonl")
    assert found["problem"][0] == "sources.s.hub.dataset"
    assert "hf download owner/talks --repo-type dataset" in str(found["problem"][1])


def test_a_branch_is_no_commit() -> None:
    talks = "+sources.talks={hub: {dataset: owner/talks, revision: main, files: [x.jsonl]}, path: x.jsonl}"
    problems = {problem.path: problem for problem in check(load(["recipe=legal", talks]))}
    assert "40 hex digits" in problems["sources.talks.hub.revision"].rule
    assert "one of the three" in problems["sources.talks"].rule
