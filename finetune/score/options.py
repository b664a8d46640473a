"""What `finetune score` can be told. Light to import, because `finetune --help` does."""

import argparse
from pathlib import Path


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", help="a model directory, a bundle, or http://HOST:PORT[#MODEL]")
    parser.add_argument("words", nargs="*", metavar="key=value", help="recipe=legal any.key=value")
    parser.add_argument("--config-dir", type=Path, help="folder with private recipes (*.yaml) and groups")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for scores.json and answers.jsonl (WORK/scores/NAME)")
    parser.add_argument("--few-shot", action="store_true", help="with the recipe's worked examples in each prompt")
    parser.add_argument("--vllm", action="store_true", help="serve the directory by our vLLM for as long as it takes")
    parser.add_argument("--model", default="model", metavar="NAME", help="another of a bundle's: model-w8a8")
    parser.add_argument("--port", type=int, default=8000, help="for --vllm (8000)")
    parser.add_argument("--latency", action="store_true", help="measure how fast it answers instead: latency.json")
    parser.add_argument("--requests", type=int, default=64, help="requests that --latency times (64)")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time (4)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds of silence until it counts as lost (120)")
    parser.add_argument("--tries", type=int, default=4, help="of each request to a server (4)")
