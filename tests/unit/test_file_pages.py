"""The image gives back the pages of library code that imports have used, and no page that was written to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from limetaskd.worker.file_pages import give_back, unwritten

SMAPS = """\
55d0c1400000-55d0c1500000 r-xp 00001000 fe:00 12   /usr/bin/python3
Rss:                 900 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
55d0c1500000-55d0c1600000 r--p 00101000 fe:00 12   /usr/bin/python3
Anonymous:             8 kB
55d0c1600000-55d0c1700000 rw-p 00201000 fe:00 12   /usr/bin/python3
Anonymous:             0 kB
55d0c1700000-55d0c1800000 r--s 00000000 fe:00 12   /var/cache/shared
Anonymous:             0 kB
55d0c1800000-55d0c1900000 r--p 00000000 00:00 0
Anonymous:             0 kB
7ffc1a000000-7ffc1a002000 r-xp 00000000 00:00 0    [vdso]
Anonymous:             0 kB
7ffc1b000000-7ffc1b002000 r--p 00000000 fe:00 13   /usr/lib/a name with spaces.so
Rss:                   8 kB
Anonymous:             0 kB
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0   [vsyscall]
Anonymous:             0 kB
"""

# What was imported works on, from code that has to be read again.
USE = """
import decimal, hashlib, json, sqlite3, ssl
from pathlib import Path
from limetaskd.worker import file_pages

def file_kib():
    return int(Path("/proc/self/status").read_text().split("RssFile:")[1].split()[0])

before = file_kib()
file_pages.give_back()
after = file_kib()
digest = hashlib.sha256(b"x").hexdigest()[:8]
[[total]] = sqlite3.connect(":memory:").execute("select 1 + 1")
ssl.create_default_context()
print(json.dumps([before, after, digest, total, str(decimal.Decimal(1) / 8)]))
"""


def test_only_files_pages_that_nobody_has_written_to_are_meant() -> None:
    assert unwritten(SMAPS) == [(0x55D0C1400000, 0x55D0C1500000), (0x7FFC1B000000, 0x7FFC1B002000)]


def test_a_kernel_that_does_not_tell_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        give_back(tmp_path / "smaps")
    assert "pages of library code stay in memory" in caplog.text


def test_a_process_is_smaller_and_works_on() -> None:
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, timeout=60, check=True)
    before, after, *rest = json.loads(done.stdout)
    assert after < before / 2
    assert rest == ["2d711642", 2, "0.125"]
