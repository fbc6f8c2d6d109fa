"""What imports leave behind: told when a fork would share or lose it, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
        ("import subprocess; kept = subprocess.Popen(['sleep', '0'])", "started a process"),
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
        "import os; os.open(os.__file__, os.O_RDONLY | os.O_NOFOLLOW)",
        "import os; os.open('/', os.O_PATH)",
        "import multiprocessing.pool, concurrent.futures.process, asyncio, sqlite3, ssl, email, decimal",
        "import sqlite3; kept = sqlite3.connect(':memory:')",
        "import atexit; atexit.register(print, end='')",
        "import atexit, os; atexit.register(os.getenv, 'x'); atexit.unregister(os.getenv)",
        "import subprocess; subprocess.run(['sleep', '0'], check=True)",
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


def test_each_process_reads_a_file_that_the_imports_opened_from_its_own_place(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("".join(f"{number:04d}\n" for number in range(10_000)))
    program = """if True:
        import os, sys
        from limetaskd.worker.leftovers import Leftovers
        leftovers = Leftovers()
        with leftovers:
            rows = open(sys.argv[1], buffering=40)
            assert next(rows) == "0000\\n"
            gone = os.open(sys.argv[1] + ".gone", os.O_RDWR | os.O_CREAT)
            os.write(gone, b"abcdef")
            reader = os.open(sys.argv[1] + ".gone", os.O_RDONLY)
            os.close(gone)
            os.unlink(sys.argv[1] + ".gone")
            closed = os.open(sys.argv[1], os.O_RDONLY | os.O_NOFOLLOW)
            os.read(reader, 1)
        assert leftovers.problems() == []
        os.close(closed)
        read, write = os.pipe()
        if os.fork() == 0:
            assert leftovers.open_again() == []
            text = "".join(rows) + os.read(reader, 9).decode()
            os.write(write, repr((len(text), text[:5], text[-5:], os.get_inheritable(reader))).encode())
            os._exit(0)
        theirs = eval(os.read(read, 10_000))
        text = "".join(rows) + os.read(reader, 9).decode()
        assert theirs == (len(text), text[:5], text[-5:], False) == (9_999 * 5 + 5, "0001\\n", "bcdef", False), theirs
        """
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=60)


def test_the_look_at_files_of_modules_loads_no_lazy_one(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("raise SystemExit('loaded')\n")
    program = """if True:
        import importlib.util, sys
        sys.path.insert(0, sys.argv[1])
        spec = importlib.util.find_spec("late")
        loader = importlib.util.LazyLoader(spec.loader)
        spec.loader = loader
        sys.modules["late"] = module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        sys.modules["odd"] = 7
        from limetaskd.worker import sources
        assert sys.argv[1] + "/late.py" in sources.imported()
        """
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)


def test_a_file_that_can_be_opened_no_more_is_no_reason_to_die(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("rows")
    program = """if True:
        import os, sys
        from limetaskd.worker import leftovers
        found = leftovers.Leftovers()
        with found:
            kept = os.open(sys.argv[1], os.O_RDONLY)
        assert found.problems() == []

        def refuse(descriptor):
            raise PermissionError(13, "Permission denied")
        leftovers._open_once_more = refuse
        assert found.open_again() == [sys.argv[1] + ": Permission denied"]
        assert found.problems() == [f"the imports opened {sys.argv[1]}, which all workers would share"]
        """
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=60)
