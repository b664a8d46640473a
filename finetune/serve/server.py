"""One vLLM server as a child process: found, checked, started, waited for, and ended with whoever started it."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

from finetune.errors import RecipeError
from finetune.handoff.serving import TESTED

_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONSAFEPATH": "1"}
"""The last: the working directory is a bundle, and vLLM's workers must not import a json.py that lies in it."""
_NOT_COMPILED = {"TORCHDYNAMO_DISABLE": "1"}
"""For CPUs: --enforce-eager alone still compiles a helper at the first request, 12 s, and needs a C++ compiler."""
_LAST_SECONDS = 30
"""Time that vLLM has to end by itself after SIGINT."""
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A proxy of the environment knows nothing of this machine's own addresses."""


class AnswerError(Exception):
    """What came instead of an answer: an HTTP status with the server's words, a broken connection, silence."""


def find_vllm(given: Path | None, *, any_version: bool) -> Path:
    """The vllm command: `given`, else that of this clone's .venv-serve, else the one on PATH.

    Raises RecipeError when there is none, or when its version is not one that bundles were tested with.
    """
    own = Path(__file__).resolve().parents[2] / ".venv-serve" / "bin" / "vllm"
    on_path = shutil.which("vllm")
    found = given or (own if own.is_file() else Path(on_path) if on_path else None)
    if found is None or not found.is_file():
        raise RecipeError.one(
            "vllm", None if found is None else str(found), "there is no vllm command",
            "scripts/setup.sh serve (for CPUs), or install vLLM for your GPUs, or --vllm PATH",
        )  # fmt: skip
    version = version_of(found)
    if version not in TESTED and not any_version:
        raise RecipeError.one(
            "vllm", version, f"no bundle was tested with it, only with {', '.join(TESTED)}",
            "install one of these, or --any-version together with --check",
        )  # fmt: skip
    return found


def version_of(vllm: Path) -> str:
    """Version of the distribution `vllm` behind the launcher that pip wrote; asked without importing it (8 s)."""
    head = vllm.read_bytes()[:512].decode("utf-8", "replace")
    interpreter = re.search(r"(/[^\s\"']*python[0-9.]*)", head)
    program = "from importlib.metadata import version; print(version('vllm'))"
    if interpreter is not None:
        asked = subprocess.run(  # nothing is imported from where we happen to stand, which may be a bundle
            [interpreter[1], "-c", program], capture_output=True, text=True, check=False, timeout=60,
            cwd=Path(interpreter[1]).parent, env={**os.environ, "PYTHONSAFEPATH": "1"},
        )  # fmt: skip
        if asked.returncode == 0:
            return asked.stdout.strip().partition("+")[0]
    raise RecipeError.one("vllm", str(vllm), "no launcher of an installed vLLM", "--vllm PATH of one that pip wrote")


def free_port(host: str, port: int) -> None:
    """Raise RecipeError when somebody listens there already: vLLM says so only after loading the model."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET  # vLLM's choice
    try:
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4]
    except OSError as error:
        rule = f"no address of this machine ({error.strerror})"
        raise RecipeError.one("--host", host, rule, "--host 127.0.0.1") from error
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise RecipeError.one(
                "--port", port, f"{host} cannot listen there ({error.strerror})", f"--port {port + 1}"
            ) from error


def url_of(host: str, port: int) -> str:
    """Where a server that listens on `host` is asked from this machine."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


class Server:
    """`words` as a process that ends with the block: at SIGINT, SIGTERM and SIGHUP, and when this process is killed.

    SIGHUP stays ignored where it is (nohup). Only the main thread may start one: signals come to no other.
    """

    def __init__(
        self, words: list[str], folder: Path, *, host: str, port: int, log: IO[str] | None, compiled: bool = True
    ) -> None:
        self.url = url_of(host, port)
        self._log = log
        self._started = time.monotonic()
        environment = {**os.environ, **_ENVIRONMENT, **({} if compiled else _NOT_COMPILED)}
        # A shell that starts commands in the background has SIGINT ignored: it is asked for again.
        caught = [number for number in _ENDING if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, _interrupt) for number in caught}
        leash = [sys.executable, "-IS", str(Path(__file__).with_name("leash.py")), str(os.getpid())]
        # A session of its own: Ctrl-C reaches this process alone, which then ends the server once.
        self._process = subprocess.Popen(
            [*leash, *words], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT if log else None,
            start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(_LAST_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def wait(self) -> tuple[str, float]:
        """Until /health answers: (the version that the server says, seconds). RecipeError when it ended before."""
        while self._process.poll() is None:
            try:
                _read(f"{self.url}/health", None, 5)
            except AnswerError:
                time.sleep(0.3)
                continue
            try:
                return str(fetch(f"{self.url}/version").get("version")), time.monotonic() - self._started
            except AnswerError as error:
                raise RecipeError.one(
                    "vllm", self.url, f"it is ready and does not say its version ({error})", "read the lines of vLLM"
                ) from error
        raise RecipeError.one(
            "vllm", self._process.returncode, "the server ended before it was ready" + self._tail(),
            "mend what its lines say; they are printed without --check",
        )  # fmt: skip

    def stay(self) -> int:
        """Until the server ends, or somebody ends it (0)."""
        try:
            return self._process.wait()
        except KeyboardInterrupt:
            return 0

    def _tail(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if "Error" in line] or ["it said nothing of an error"]
        return f", and said: {lines[-1].strip()}"


def fetch(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON object from `url` (POST where there is a body), asked with VLLM_API_KEY. Raises AnswerError."""
    data = None if body is None else json.dumps(body).encode()
    text = _read(url, data, 600)
    try:
        found = json.loads(text)
    except ValueError as error:
        raise AnswerError(f"no JSON: {text[:200].decode('utf-8', 'replace')}") from error
    if not isinstance(found, dict):
        raise AnswerError(f"no JSON object: {text[:200].decode('utf-8', 'replace')}")
    return found


def _read(url: str, data: bytes | None, seconds: float) -> bytes:
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
    if key := os.environ.get("VLLM_API_KEY"):
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    try:
        try:
            with _OPENER.open(request, timeout=seconds) as answer:
                found: bytes = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise AnswerError(f"HTTP {error.code}: {error.read(400).decode('utf-8', 'replace')}") from error
    except (OSError, http.client.HTTPException) as error:
        raise AnswerError(f"no answer: {error!r}") from error
    return found


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
