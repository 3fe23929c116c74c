"""What a supervisor that was killed leaves: folders and control groups. Their names carry its number, so that
its parent, or failing that the next supervisor of anybody, can tell that nobody needs them any more."""

from __future__ import annotations

import contextlib
import os
import re
import shutil

from verifiers.sandbox import cgroups

FOLDERS = "/tmp"
FOLDER_PREFIX = "sandbox-"


def sweep(wanted_cgroup: str = "") -> None:
    """Remove what belongs to supervisors that are gone."""
    places = {(FOLDERS, FOLDER_PREFIX)}
    for _, paths in cgroups.candidates(wanted_cgroup):
        places |= {(path, cgroups.PREFIX) for path in paths.values()}
    for place, prefix in places:
        with contextlib.suppress(OSError):
            for name in os.listdir(place):
                match = re.fullmatch(re.escape(prefix) + r"(\d+)-\w+", name)
                if match and not _alive(int(match[1])):
                    _remove(os.path.join(place, name), prefix)


def _remove(path: str, prefix: str) -> None:
    if prefix == FOLDER_PREFIX:
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.rmdir(path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
