"""The server as a process: what it says when it dies, and that it ends with the command that started it."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_serve import launcher

from finetune.errors import RecipeError
from finetune.serve.server import Server, version_of


def test_a_server_that_dies_is_told_with_its_own_words(tmp_path: Path) -> None:
    words = ["sh", "-c", "echo 'ValueError: no room for the cache'; exit 3"]
    with (
        (tmp_path / "log").open("w+") as log,
        Server(words, tmp_path, host="127.0.0.1", port=9, log=log) as server,
        pytest.raises(RecipeError, match=r"vllm=3.*no room for the cache"),
    ):
        server.wait()


@pytest.mark.parametrize("compiled", [True, False])
def test_only_a_cpu_is_spared_the_compiler(tmp_path: Path, compiled: bool) -> None:
    words = ["sh", "-c", "echo dynamo=$TORCHDYNAMO_DISABLE offline=$HF_HUB_OFFLINE"]
    with (tmp_path / "log").open("w+") as log:
        with Server(words, tmp_path, host="127.0.0.1", port=9, log=log, compiled=compiled) as server, pytest.raises(
            RecipeError, match="it said nothing of an error"
        ):
            server.wait()
        log.seek(0)
        assert log.read() == f"dynamo={'' if compiled else '1'} offline=1\n"


HOSTILE = ("json", "ctypes", "importlib", "multiprocessing")
WORKER = """
import ctypes, importlib, json, multiprocessing
if __name__ == "__main__":
    worker = multiprocessing.get_context("spawn").Process(target=json.dumps, args=({},))
    worker.start()
    worker.join()
    print("worker", worker.exitcode, flush=True)
"""


def test_no_module_that_lies_in_a_bundle_is_imported_by_the_server_or_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, program = tmp_path / "bundle", tmp_path / "program.py"
    bundle.mkdir()
    program.write_text(WORKER)
    for name in HOSTILE:
        (bundle / f"{name}.py").write_text("open('owned', 'w').close()\nraise SystemExit(9)\n")
    monkeypatch.chdir(bundle)
    assert subprocess.run([sys.executable, "-c", "import json"], check=False).returncode == 9, "they are hostile"
    (bundle / "owned").unlink()
    assert version_of(launcher(tmp_path / "environment", "0.32.0")) == "0.32.0"
    with (tmp_path / "log").open("w+") as log:
        words = [sys.executable, "-c", "import runpy; runpy.run_path('../program.py', run_name='__main__')"]
        with Server(words, bundle, host="127.0.0.1", port=9, log=log) as server, pytest.raises(RecipeError):
            server.wait()
        log.seek(0)
        assert "worker 0" in log.read()
    assert not (bundle / "owned").exists()


def test_a_server_that_ignores_sigint_is_ended_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.serve.server._LAST_SECONDS", 0.5)
    words = ["sh", "-c", "trap '' INT; echo $$ > pid; while :; do sleep 0.1; done"]
    with Server(words, tmp_path, host="127.0.0.1", port=9, log=None):
        while not (tmp_path / "pid").exists():
            pass
    pid = (tmp_path / "pid").read_text().strip()
    assert not runs(pid)


STARTER = """
import sys
from pathlib import Path
from finetune.serve.server import Server
words = ["sh", "-c", "echo $$ > pid; exec sleep 100"]
with Server(words, Path(sys.argv[1]), host="127.0.0.1", port=9, log=None) as server:
    raise SystemExit(server.stay())
"""


def runs(pid: str) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGKILL, -9)]
)
def test_a_server_ends_with_the_command_however_that_ends(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """SIGHUP is a closed terminal; SIGKILL the kernel that ran out of memory: GPUs must not stay taken."""
    # Tests that were started by nohup hand on an ignored SIGHUP, and Server respects that.
    command = ["env", "--default-signal=HUP", sys.executable, "-c", STARTER, str(tmp_path)]
    process = subprocess.Popen(command)
    pid = appeared(tmp_path / "pid")
    process.send_signal(number)
    assert process.wait(20) == code
    for _ in range(100):
        if not runs(pid):
            break
        threading.Event().wait(0.05)
    assert not runs(pid)


def test_under_nohup_a_closed_terminal_ends_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(["nohup", sys.executable, "-c", STARTER, str(tmp_path)], stdout=subprocess.DEVNULL)
    pid = appeared(tmp_path / "pid")
    process.send_signal(signal.SIGHUP)
    threading.Event().wait(0.3)
    assert process.poll() is None
    assert runs(pid)
    process.terminate()
    assert process.wait(20) == 0
    assert not runs(pid)


def appeared(file: Path) -> str:
    while not (file.is_file() and file.read_text().strip()):
        threading.Event().wait(0.02)
    return file.read_text().strip()


def test_nothing_out_of_a_bundle_is_imported_on_the_way_to_the_server(tmp_path: Path) -> None:
    """The working directory is the bundle: a ctypes.py in there would be code from outside."""
    for name in ("ctypes", "signal", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the bundle')\n")
    with (tmp_path / "log").open("w+") as log:
        with Server(["sh", "-c", "echo started"], tmp_path, host="127.0.0.1", port=9, log=log) as server:
            assert server.stay() == 0
        log.seek(0)
        assert log.read() == "started\n"
