"""`leash.py PARENT COMMAND...` becomes COMMAND, which the kernel ends (SIGTERM) when process PARENT dies.

A program of its own, because code between fork and exec (preexec_fn) may hang where threads run. It is run with -I by
its path and imports nothing of ours: the working directory is a bundle, and nothing in there is to be imported.
"""

import ctypes
import os
import signal
import sys


def main(parent: str, *words: str) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, which outlives exec
    if os.getppid() == int(parent):
        os.execvp(words[0], words)  # noqa: S606


if __name__ == "__main__":
    main(*sys.argv[1:])
