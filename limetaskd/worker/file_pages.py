"""Giving back the pages of library code and constants that only imports have used.

numpy or pandas leave some 10 MiB of them in the process that imported it. They are clean copies of files in the page
cache: whoever needs one again finds it there.
"""

from __future__ import annotations

import ctypes
import logging
import re
from pathlib import Path

logger = logging.getLogger(__name__)

_MADV_DONTNEED = 4
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-[x-]p .* /")  # private, of a file, not to be written to
_NONE_WRITTEN = ["Anonymous:", "0", "kB"]  # a page that was written to (a relocation) would be lost


def unwritten(smaps: str) -> list[tuple[int, int]]:
    """(start, end) of the mappings in `smaps` (see proc(5)) whose pages are all the file's own."""
    found, mapping = [], None
    for line in smaps.splitlines():
        if line[0].islower() or line[0].isdigit():
            mapping = _MAPPING.match(line)
        elif mapping is not None and line.split() == _NONE_WRITTEN:
            found.append((int(mapping[1], 16), int(mapping[2], 16)))
    return found


def give_back(smaps: Path = Path("/proc/self/smaps")) -> None:
    """Of this process, all that there are. What the kernel refuses (locked pages) stays."""
    try:
        text = smaps.read_text(errors="surrogateescape")
    except OSError as error:  # not every kernel is built with it
        logger.info("pages of library code stay in memory: %s", error)
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, end in unwritten(text):
        madvise(start, end - start, _MADV_DONTNEED)
