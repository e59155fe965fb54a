"""A program in a process of its own, as its user starts it, with its output line by line."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import typing

_LONGEST = 30.0  # s: then it is killed, so that a test fails which waits for a line that never comes


class Program:
    """Python with these arguments, running until `end`, or the end of the block."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, *arguments]
        pipe = subprocess.PIPE
        before = signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # tests in the background ignore it: not so these
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)
        finally:
            signal.signal(signal.SIGINT, before)
        self._watchdog = threading.Timer(_LONGEST, self._process.kill)
        self._watchdog.start()

    def __enter__(self) -> typing.Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        self._process.kill()
        with self._process:  # closes the pipes, and waits
            pass

    def line(self) -> str:
        """What it prints next, without the end of the line."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def end(self, by: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Its status, the rest of its output, and its errors."""
        self._process.send_signal(by)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        output, errors = self._process.stdout.read(), self._process.stderr.read()  # communicate() forgets what is read
        return self._process.wait(), output, errors
