"""One vLLM server as a child process: found, checked, started, waited for, and ended with whoever started it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

from finetune.errors import RecipeError
from finetune.handoff.serving import TESTED

_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
_NOT_COMPILED = {"TORCHDYNAMO_DISABLE": "1"}
"""For CPUs: --enforce-eager alone still compiles a helper at the first request, 12 s, and needs a C++ compiler."""
_LAST_SECONDS = 30
"""Time that vLLM has to end by itself after SIGINT."""


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
        asked = subprocess.run([interpreter[1], "-c", program], capture_output=True, text=True, check=False, timeout=60)
        if asked.returncode == 0:
            return asked.stdout.strip().partition("+")[0]
    raise RecipeError.one("vllm", str(vllm), "no launcher of an installed vLLM", "--vllm PATH of one that pip wrote")


def free_port(host: str, port: int) -> None:
    """Raise RecipeError when somebody listens there already: vLLM says so only after loading the model."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RecipeError.one(
                "--port", port, f"{host} cannot listen there ({error.strerror})", f"--port {port + 1}"
            ) from error


class Server:
    """`words` as a process that ends when the block does, or at SIGINT or SIGTERM to this process."""

    def __init__(
        self, words: list[str], folder: Path, *, host: str, port: int, log: IO[str] | None, compiled: bool = True
    ) -> None:
        self.url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"  # noqa: S104
        self._log = log
        self._started = time.monotonic()
        environment = {**os.environ, **_ENVIRONMENT, **({} if compiled else _NOT_COMPILED)}
        # A session of its own: Ctrl-C reaches this process alone, which then ends the server once.
        self._process = subprocess.Popen(
            words, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT if log else None,
            start_new_session=True,
        )  # fmt: skip
        # A shell that starts commands in the background has SIGINT ignored: it is asked for again.
        self._before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}

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
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()  # noqa: S310
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.3)
                continue
            return str(fetch(f"{self.url}/version")["version"]), time.monotonic() - self._started
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
    """JSON from `url` (POST where there is a body). Raises urllib.error.HTTPError with the server's status."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310
        found: dict[str, Any] = json.load(answer)
    return found


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
