"""What imports leave behind: told when a fork would share or lose it, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from limetaskd.worker.leftovers import Leftovers
leftovers = Leftovers()
with leftovers:
    module = {"__name__": "module"}
    exec(sys.argv[1], module)
print("; ".join(leftovers.problems()))
"""


def problems(source: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, source], check=True, timeout=60, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import multiprocessing; kept = multiprocessing.Lock()", "memory"),
        ("import multiprocessing; kept = multiprocessing.Value('i')", "memory"),
        ("import mmap; kept = mmap.mmap(-1, 100)", "memory"),
        ("import select; kept = select.epoll()", "eventpoll"),
        ("import os; os.eventfd(0)", "eventfd"),
        ("import os; os.pipe()", "pipe:"),
        ("import sqlite3, tempfile; d = tempfile.mkdtemp(); import os; kept = "
         "sqlite3.connect(d + '/x.sqlite'); os.unlink(d + '/x.sqlite'); os.rmdir(d)", "x.sqlite"),
        ("import socket; kept = socket.socketpair()", "2 sockets"),
        ("import _thread, time; up = _thread.allocate_lock(); up.acquire(); "
         "_thread.start_new_thread(lambda: (up.release(), time.sleep(60)), ()); up.acquire()", "1 that `threading`"),
        ("import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True, name='p').start()",
         "threads (p)"),
        ("import tempfile; kept = tempfile.TemporaryDirectory()", "TemporaryDirectory._cleanup"),
        ("import atexit, shutil; atexit.register(shutil.rmtree, '/nonexistent', ignore_errors=True)", "shutil.rmtree"),
        ("import atexit, functools, os; atexit.register(functools.partial(os.getenv, 'x'))", "os.getenv"),
    ],
)  # fmt: skip
def test_what_workers_would_share_or_lose_is_named(source: str, reason: str) -> None:
    assert reason in problems(source)


@pytest.mark.parametrize(
    "source",
    [
        "import logging, os; kept = logging.FileHandler(os.devnull)",
        "import os; kept = open(os.devnull, 'w')",
        "import tempfile, os; p = tempfile.mkstemp(); os.close(p[0]); kept = open(p[1], 'a'); "
        "os.unlink(p[1])",
        "import os; kept = open(os.__file__)",
        "import multiprocessing.pool, concurrent.futures.process, asyncio, sqlite3, ssl, email, decimal",
        "import sqlite3; kept = sqlite3.connect(':memory:')",
        "import atexit; atexit.register(print, end='')",
        "import tempfile\nwith tempfile.TemporaryDirectory(): pass",
        "import weakref\nclass C: pass\nkept = C()\nweakref.finalize(kept, len, ())",
    ],
)
def test_what_does_no_harm_is_no_reason(source: str) -> None:
    assert problems(source) == ""


def test_generators_begin_anew_unless_they_were_seeded_with_a_value() -> None:
    program = """if True:
        import os, random
        from limetaskd.worker.leftovers import Leftovers
        leftovers = Leftovers()
        class Own(random.Random):
            __hash__ = None
            def __eq__(self, other): return True
        with leftovers:
            drawn, own, chosen, again = random.Random(), Own(), random.Random(7), random.Random(7)
            again.seed()
            system = random.SystemRandom()
        later = random.Random()
        def draw():
            leftovers.seed()
            return [g.random() for g in (drawn, own, again, chosen, later, random)]
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, repr(draw()).encode())
            os._exit(0)
        ours, theirs = draw(), eval(os.read(read, 10_000))
        assert [a == b for a, b in zip(ours, theirs)] == [False, False, False, True, True, False], (ours, theirs)
        assert random.Random.seed.__module__ == "random"
        """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
