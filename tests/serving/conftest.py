"""These tests start vLLM out of .venv-serve (scripts/test.sh serving sets it up) and are not collected without it."""

from pathlib import Path

VLLM = Path(__file__).resolve().parents[2] / ".venv-serve/bin/vllm"
collect_ignore_glob = [] if VLLM.is_file() else ["test_*.py"]
