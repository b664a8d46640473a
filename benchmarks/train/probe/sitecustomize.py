"""The clock of the benchmark: on PYTHONPATH it is read by every Python process before the program, ours and a peer's.

All contenders end in transformers' Trainer. Its events are written to the file BENCH_CLOCK, one JSON line each, with
the time of day, the CPU seconds and the peak memory of the process, and the process ends after BENCH_STOP steps.
"""

import importlib.abc
import importlib.util
import json
import os
import resource
import sys
import time

COUNTED = {"labels": 0, "supervised": 0, "places": 0}


def write(event, step, folder):
    used = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = {
        "event": event, "step": step, "time": time.time(), "pid": os.getpid(),
        "cpu": used.ru_utime + used.ru_stime + children.ru_utime + children.ru_stime,
        "peak_kib": used.ru_maxrss, "output_dir": folder, **COUNTED,
    }
    with open(os.environ["BENCH_CLOCK"], "a", encoding="utf-8") as file:  # noqa: PTH123 - nothing more is imported
        file.write(json.dumps(line) + "\n")


def watch_events(module):
    handler = module.CallbackHandler
    for event in ("on_init_end", "on_train_begin", "on_step_end"):
        setattr(handler, event, followed(event, getattr(handler, event)))


def followed(event, inner):
    def call(self, args, state, control, **kwargs):
        result = inner(self, args, state, control, **kwargs)
        write(event, state.global_step, str(args.output_dir))
        if event == "on_step_end" and state.global_step >= int(os.environ.get("BENCH_STOP") or sys.maxsize):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        return result

    return call


def count_tokens(module):
    inner = module.Trainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        labels = inputs.get("labels") if hasattr(inputs, "get") else None
        if labels is not None:
            COUNTED["labels"] += labels.size(0)
            COUNTED["supervised"] += int((labels[:, 1:] != -100).sum())
            COUNTED["places"] += labels.numel()
        return inner(self, model, inputs, *args, **kwargs)

    module.Trainer.training_step = training_step


class After(importlib.abc.MetaPathFinder):
    """Runs a function on a module right after it was imported."""

    watched = {"transformers.trainer_callback": watch_events, "transformers.trainer": count_tokens}

    def find_spec(self, name, path=None, target=None):
        if name not in self.watched:
            return None
        then = self.watched.pop(name)
        spec = importlib.util.find_spec(name)
        inner = spec.loader.exec_module

        def exec_module(module):
            inner(module)
            then(module)

        spec.loader.exec_module = exec_module
        return spec


if "BENCH_CLOCK" in os.environ:
    sys.meta_path.insert(0, After())
