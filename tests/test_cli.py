"""What a user types and reads: exit codes, one message, no traceback, nothing lost."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.errors import RecipeError
from finetune.memory import Gpu, Here
from finetune.train import ready, split_config_dir

ROOT = Path(__file__).resolve().parents[1]


def run(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    merged = {**os.environ, **environment}
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, check=False, env=merged)


@pytest.mark.parametrize("entry", [["-m", "finetune.cli", "train"], [str(ROOT / "finetune/train.py")]])
def test_a_users_mistake_is_one_message_exit_code_2_and_no_traceback(entry: list[str]) -> None:
    result = run(*entry, "recipe=legal", "model=smollm2_135m", "sft.batch_sise=8")
    assert result.returncode == 2
    assert "did you mean batch_size?" in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def test_several_mistakes_are_told_at_once() -> None:
    result = run("-m", "finetune.cli", "plan", "recipe=legal", "stages=[dpo,sft]", "dpo.trl.betta=1", "score.shots=4")
    assert result.returncode == 2
    assert "stages" in result.stderr
    assert "betta" in result.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["model=qwen3_32b", "machine=a100x8"], 0),
        (["model=smollm2_135m", "machine=cpu"], 0),
        (["model=qwen3_32b", "machine=cpu"], 2),
        (["model=qwen3_32b", "machine=cpu", "--json"], 2),
    ],
)
def test_a_plan_that_does_not_fit_is_printed_and_ends_with_exit_code_2(words: list[str], code: int) -> None:
    result = run("-m", "finetune.cli", "plan", "recipe=legal", *words)
    assert result.returncode == code, result.stderr
    assert ('"fits"' if "--json" in words else "GiB on each") in result.stdout


def test_a_plan_for_this_machine_counts_its_disk_and_one_for_another_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Here(gpus=(), cores=2, memory_gib=24.0, disk_free_gib=0.01)
    monkeypatch.setattr("finetune.memory.here", lambda work: full)
    assert main(["plan", "recipe=legal", "model=smollm2_135m", "machine=cpu"]) == 2
    assert main(["plan", "recipe=legal", "model=qwen3_32b", "machine=a100x8"]) == 0


def test_preparing_needs_no_gpu_for_a_machine_that_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    login = Here(gpus=(), cores=2, memory_gib=24.0, disk_free_gib=500.0)
    monkeypatch.setattr("finetune.memory.here", lambda work: login)
    words = ["recipe=legal", "machine=a100x8", f"work={tmp_path}"]
    assert ready(words, elsewhere=True).machine.processes == 8
    with pytest.raises(RecipeError, match="wants 8 GPUs"):
        ready(words)
    with pytest.raises(RecipeError, match="too large to train on a CPU"):  # before 65 GB are fetched for it
        ready(["recipe=legal", "machine=cpu", f"work={tmp_path}"], elsewhere=True)
    with pytest.raises(RecipeError, match="cannot be written"):
        ready(["recipe=legal", "machine=a100x8", "work=/proc/finetune"], elsewhere=True)


def test_preparing_alone_is_checked_for_the_machine_and_not_for_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Here(gpus=(Gpu("A100-80GB", 80.0),) * 8, cores=64, memory_gib=1024.0, disk_free_gib=1000.0)
    monkeypatch.setattr("finetune.memory.here", lambda work: node)
    words = ["recipe=legal", "model=smollm2_135m", "machine=auto", f"work={tmp_path}"]
    assert ready(words, elsewhere=True).machine.processes == 8
    with pytest.raises(RecipeError, match="one process sees 8 GPUs"):
        ready(words)
    words = ["recipe=legal", "model=tiny_qwen3", "machine=cpu_zero3x2", f"work={tmp_path}"]
    assert ready(words, elsewhere=True).machine.processes == 2


def test_without_a_gpu_the_main_job_shows_the_plan_and_what_to_type_instead(tmp_path: Path) -> None:
    began = time.monotonic()
    launcher = ["-m", "accelerate.commands.launch", str(ROOT / "finetune/train.py")]
    result = run(*launcher, "recipe=legal", f"work={tmp_path / 'w'}", HF_HOME=str(tmp_path / "hub"))
    assert result.returncode != 0
    assert "model=smollm2_135m" in result.stdout + result.stderr
    assert "GiB" in result.stdout
    ours = result.stderr.partition("Traceback")[0]
    assert not re.search(r"finetune/\w+\.py", result.stderr.replace(ours, "").replace("finetune/train.py", ""))
    assert not list((tmp_path / "hub").rglob("*.safetensors"))
    assert time.monotonic() - began < 60, "the promise is 10 s on a quiet machine"


def test_a_work_folder_that_cannot_be_written_is_told_before_anything_starts() -> None:
    result = run("-m", "finetune.cli", "train", "recipe=maintenance", "model=smollm2_135m", "work=/proc/finetune")
    assert result.returncode == 2
    assert "work=/proc/finetune" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_broken_document_is_told_with_its_line_and_nothing_made_is_lost(tmp_path: Path) -> None:
    data = tmp_path / "legal"
    data.mkdir()
    for file in (ROOT / "data/legal").iterdir():
        (data / file.name).write_bytes(file.read_bytes())
    shutil.copytree(ROOT / "data/LICENSES", tmp_path / "LICENSES")
    rules = (data / "coded_rules.jsonl").read_text().splitlines()
    rules[4] = rules[4][:-10]
    (data / "coded_rules.jsonl").write_text("\n".join(rules))
    words = ["recipe=legal", "model=smollm2_135m", f"data_root={data}", f"work={tmp_path / 'work'}"]
    for source in ("speeches", "countries", "replay"):
        name = "replay_speeches" if source == "replay" else source
        words.append(f"sources.{source}.path={ROOT}/data/general/{name}.jsonl")
    result = run("-m", "finetune.cli", "prepare", *words)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "coded_rules.jsonl:5" in result.stderr
    assert "Traceback" not in result.stderr


def test_verify_of_a_folder_that_is_no_checkpoint_is_an_answer(tmp_path: Path) -> None:
    result = run("-m", "finetune.cli", "verify", str(tmp_path))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_a_reader_who_closes_the_pipe_has_seen_enough_and_a_server_that_hangs_up_ends_nothing() -> None:
    """With SIGPIPE's default action `finetune score http://...` ended in silence when a server hung up."""
    reader, writer = os.pipe()
    os.close(reader)
    words = "import signal, sys; from finetune.cli import main; code = main(['config', 'recipe=legal']);"
    words += "assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN; sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_names_every_subcommand() -> None:
    result = run("-m", "finetune.cli", "--help")
    assert result.returncode == 0
    assert all(word in result.stdout for word in ("train", "plan", "prepare", "show", "config", "merge", "verify"))


@pytest.mark.parametrize("words", [["--config-dir", "mine", "a=1"], ["a=1", "--config-dir=mine"]])
def test_config_dir_is_taken_out_of_the_words(words: list[str]) -> None:
    assert split_config_dir(words) == (Path("mine"), ["a=1"])


def test_words_may_stand_on_both_sides_of_an_option(tmp_path: Path) -> None:
    words = ["recipe=legal", "--config-dir", str(tmp_path), "sft.max_steps=7"]
    result = run("-m", "finetune.cli", "config", *words, "model=smollm2_135m")
    assert result.returncode == 0, result.stderr
    assert "max_steps: 7" in result.stdout
    assert run("-m", "finetune.cli", "config", "recipe=legal", "--jsn").returncode == 2
