"""What imports leave behind that a fork would share between processes, copy or lose.

Under exec each worker makes these for itself. What cannot be told apart after a fork is a reason not to fork; what was
drawn from the operating system's randomness is drawn again.
"""

from __future__ import annotations

import _thread
import atexit
import fcntl
import functools
import gc
import os
import random
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

_NAMED = 3  # of what was found, in a reason
_MEMORY_DEVICES = 1  # the major number of /dev/null, /dev/zero, /dev/urandom: nothing is shared by writing to them
# A function of these that was registered for the exit removes or ends something outside of the process. Of others it
# is not known; most only tidy up memory (signals of Celery, say), and run in each worker as they do under exec.
_REMOVING = frozenset({"os", "pathlib", "posix", "shutil", "subprocess", "tempfile"})
# A thread that was started just now counts once it runs.
_THREAD_BEGINS_S = 0.01
# A value that somebody chose is shorter than what numpy draws when it gets none.
_CHOSEN_BITS = 64


class Leftovers:
    """Use it as a context around the imports; ask it afterwards."""

    def __init__(self) -> None:
        self._descriptors = set(_descriptors())
        self._mappings = shared_mappings()
        self._finalizers = set(_exit_finalizers())
        self._exit_functions: list[Callable[..., Any]] = []
        # By identity: a subclass may compare as it likes.
        self._unseeded: weakref.WeakValueDictionary[int, random.Random] = weakref.WeakValueDictionary()
        self._originals: tuple[Any, Any, Any] = (random.Random.seed, atexit.register, atexit.unregister)
        self._numpy: list[Any] = []
        self._read_at_an_offset: list[int] = []

    def __enter__(self) -> Self:
        # Neither can be asked later: which generators were seeded with a value, and what will run at the exit.
        seed, register, unregister = self._originals

        @functools.wraps(seed)
        def noted_seed(generator: random.Random, a: Any = None, *args: Any, **kwargs: Any) -> None:
            if a is None:
                self._unseeded[id(generator)] = generator
            else:
                self._unseeded.pop(id(generator), None)
            seed(generator, a, *args, **kwargs)

        @functools.wraps(register)
        def noted_register(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            self._exit_functions.append(function)
            return register(function, *args, **kwargs)

        @functools.wraps(unregister)
        def noted_unregister(function: Callable[..., Any]) -> None:
            self._exit_functions = [other for other in self._exit_functions if other != function]
            unregister(function)

        setattr(random.Random, "seed", noted_seed)  # noqa: B010  mypy takes no assignment to a method
        setattr(atexit, "register", noted_register)  # noqa: B010
        setattr(atexit, "unregister", noted_unregister)  # noqa: B010
        return self

    def __exit__(self, *_: object) -> None:
        seed, register, unregister = self._originals
        setattr(random.Random, "seed", seed)  # noqa: B010
        setattr(atexit, "register", register)  # noqa: B010
        setattr(atexit, "unregister", unregister)  # noqa: B010

    def find_numpy_generators(self) -> None:
        """Those that were not seeded with a value. Before `gc.freeze`, which hides them."""
        numpy = sys.modules.get("numpy.random")
        if numpy is not None:
            self._numpy = [
                found for found in gc.get_objects()
                # Not isinstance: it asks proxies for their class, which loads what is behind them.
                if issubclass(type(found), numpy.BitGenerator) and _is_drawn(found)
            ]  # fmt: skip

    def seed(self) -> None:
        """In a forked process: begin randomness anew, but for what was seeded with a value."""
        random.seed()
        for generator in list(self._unseeded.values()):
            random.Random.seed(generator)
        numpy = sys.modules.get("numpy.random")
        if numpy is not None:
            numpy.seed()
        for bits in self._numpy:
            bits.state = type(bits)().state

    def open_again(self) -> list[str]:
        """In a forked process: files that the imports opened for reading get a place of their own in them.

        Returns what could not be opened: it is shared with the other processes.
        """
        failed = []
        for number in self._read_at_an_offset:
            try:
                place = os.lseek(number, 0, os.SEEK_CUR)
            except OSError:
                continue  # closed meanwhile
            try:
                own = _open_once_more(number)
            except OSError as error:
                failed.append(f"{_descriptors().get(number)}: {error.strerror}")
                continue
            os.lseek(own, place, os.SEEK_SET)
            os.dup2(own, number, inheritable=os.get_inheritable(number))
            os.close(own)
        return failed

    def problems(self) -> list[str]:
        """Why this process must not fork; empty: it may."""
        opened = {number: target for number, target in _descriptors().items() if number not in self._descriptors}
        self._read_at_an_offset = [number for number in opened if _reads_at_an_offset(number)]
        found = [_threads(), _children(), *_opened(opened, self._read_at_an_offset)]
        mappings = sorted(name.partition(" ")[2] for name in shared_mappings() - self._mappings)
        if mappings:
            found.append(f"the imports made memory ({_some(mappings)}), or locks in it, that all workers would share")
        finalizers = [item.peek()[1] for item in _exit_finalizers() if item not in self._finalizers]
        at_exit = [*self._exit_functions, *finalizers]
        removing = [_name(function) for function in at_exit if _module(function).partition(".")[0] in _REMOVING]
        if removing:
            found.append(
                f"the imports left something to be cleaned up at the exit ({_some(removing)}), which the first worker "
                "to end would take from all"
            )
        return [problem for problem in found if problem]


def _some(names: list[str]) -> str:
    shown = list(dict.fromkeys(names))
    return ", ".join(shown[:_NAMED]) + (", ..." if len(shown) > _NAMED else "")


def _threads() -> str | None:
    """A fork has only the thread that forked: locks that others held would stay locked for ever.

    Threads of C libraries (OpenBLAS, say) are not counted: those libraries make them anew in a forked process.
    """
    names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    time.sleep(_THREAD_BEGINS_S)
    # The first knows what was started from Python, the second what runs Python now.
    running = max(_thread._count(), len(sys._current_frames()) - 1)
    if running > len(names):
        names.append(f"{running - len(names)} that `threading` does not know")
    return f"the imports started threads ({_some(names)}), which a fork would lose" if names else None


def _children() -> str | None:
    """A child of the image is not that of its workers, which could neither wait for it nor be told of its end."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return "the imports started a process, which would not be the workers' own"


def _descriptors() -> dict[int, str]:
    """Descriptors of this process, and what they are of."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  the descriptor of the listing itself is gone then
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
        except OSError:
            continue
    return found


def _opened(targets: dict[int, str], read_at_an_offset: list[int]) -> list[str]:
    shared = {number for number in read_at_an_offset if not _can_be_opened_again(number)}
    sockets = [target for target in targets.values() if target.startswith("socket:")]
    others = [
        target for number, target in targets.items()
        if target.startswith(("pipe:", "anon_inode:")) or _writes_at_an_offset(number) or number in shared
    ]  # fmt: skip
    found = []
    if sockets:
        found.append(f"the imports opened {len(sockets)} sockets, which all workers would share")
    if others:
        found.append(f"the imports opened {_some(others)}, which all workers would share")
    return found


def _reads_at_an_offset(descriptor: int) -> bool:
    """Whether processes that share it would each read what the others leave."""
    try:
        flags, status = fcntl.fcntl(descriptor, fcntl.F_GETFL), os.fstat(descriptor)
    except OSError:
        return False  # closed meanwhile
    placed = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    return placed and flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_PATH


def _open_once_more(descriptor: int) -> int:
    """The same file, at its beginning. Raises OSError."""
    # Not with the flags that it has: O_NOFOLLOW would refuse the link.
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)


def _can_be_opened_again(descriptor: int) -> bool:
    try:
        os.close(_open_once_more(descriptor))
    except OSError:
        return False
    return True


def _writes_at_an_offset(descriptor: int) -> bool:
    """Whether it is of a file or device that processes disturb each other with. With O_APPEND they do not."""
    try:
        flags, status = fcntl.fcntl(descriptor, fcntl.F_GETFL), os.fstat(descriptor)
    except OSError:
        return False  # closed meanwhile
    if flags & os.O_ACCMODE == os.O_RDONLY or flags & os.O_APPEND:
        return False
    if stat.S_ISCHR(status.st_mode):
        return os.major(status.st_rdev) != _MEMORY_DEVICES
    return not stat.S_ISSOCK(status.st_mode)


def shared_mappings() -> set[str]:
    """"INODE PATH" of the memory of this process that a fork would not copy, as far as it can be written to."""
    found = set()
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        _, permissions, _, device, inode, *path = line.split(maxsplit=5)
        if permissions[1] == "w" and permissions[3] == "s":
            found.add(f"{device}:{inode} {path[0] if path else 'anonymous'}")
    return found


def _exit_finalizers() -> list[Any]:
    registry: Any = weakref.finalize
    return [item for item in list(registry._registry) if item.atexit and item.alive]


def _unwrapped(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _module(function: Any) -> str:
    return str(getattr(_unwrapped(function), "__module__", None) or "")


def _name(function: Any) -> str:
    function = _unwrapped(function)
    return f"{_module(function)}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _is_drawn(bits: Any) -> bool:
    """Whether a bit generator of numpy got its seed from the operating system."""
    entropy = getattr(getattr(bits, "seed_seq", None), "entropy", None)
    own = type(bits).__module__.startswith("numpy.")
    return own and isinstance(entropy, int) and entropy.bit_length() > _CHOSEN_BITS
