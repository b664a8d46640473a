"""`finetune serve BUNDLE`: vLLM on a bundle. Light to import, because `finetune --help` does."""

import argparse
from pathlib import Path


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--check", action="store_true", help="ask the golden prompts, compare, stop; exit code 0 or 1")
    parser.add_argument("--base", type=Path, metavar="DIR", help="serve adapter/ on this base instead of model/")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="number format (the bundle's)")
    parser.add_argument("--model", default="model", metavar="NAME", help="another of the bundle's: model-w4a16")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--vllm", type=Path, metavar="PATH", help="the vllm command (.venv-serve's, else on PATH)")
    parser.add_argument("--any-version", action="store_true", help="go on with a vLLM that no bundle was tested with")
    parser.add_argument("--log", type=Path, metavar="FILE", help="vLLM's own lines (terminal; with --check nowhere)")
    parser.add_argument("--flag", action="append", default=[], metavar="WORD", help="for vLLM: --flag=--seed=1")


def run(chosen: argparse.Namespace) -> int:
    from finetune.serve.start import run as start

    return start(chosen)
