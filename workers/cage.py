"""What stands in front of a stdio server's command: a death with its parent, namespaces.

What works is tried once in the life of a process, best first:

1. a PID namespace: the kernel kills all that the server ever started, however it left the group,
   as soon as the first process of the namespace ends; that one dies with its parent, which dies
   with the worker (killed in the milliseconds before that is arranged, they are found as in 2);
2. without: the server itself dies with the worker. What it started is ended by its mark
   (`workers.mark`), at close or when the next worker starts.

Where we are not privileged the namespaces belong to a user namespace that maps us to ourselves, and
the server gets none of the capabilities that come with it.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from dataclasses import dataclass
from threading import Lock
from typing import Final

logger = logging.getLogger("toolfleet.worker")

SHELL: Final = "/bin/sh"
KEEPERS: Final = 2
"""How many processes a PID namespace costs beyond the server's own."""

# Runs a command and ends with its status; reaps what is orphaned. It lets go of the pipes, or the
# worker could not see that the server closed its own. SIGTERM is for the command, not for it.
_KEEP: Final = (
    SHELL,
    "-c",
    'exec 3<&0; "$@" <&3 3<&- & exec <&- 3<&- >&- 2>&-; trap "" TERM; wait $!',
    "toolfleet",
)
_USER: Final = ("--user", "--map-current-user", "--keep-caps")
_NO_CAPABILITIES: Final = ("--inh-caps=-all", "--ambient-caps=-all")
_TRIAL_LIMIT_S: Final = 5.0


@dataclass(frozen=True)
class Cage:
    """An argument vector to put in front of a command; ``contained``: nothing outlives it."""

    argv: tuple[str, ...]
    contained: bool


_found: dict[bool, Cage | None] = {}
_finding: Final = Lock()


def known_cage(network: bool) -> Cage | None:
    """Return what `find_cage` found before, if anything."""
    return _found.get(network)


def find_cage(network: bool) -> Cage | None:
    """Return the best cage that this machine allows; None when it cannot cut the network off.

    Blocks until ``true`` has run in it: milliseconds, 5 s at most for each thing tried.
    """
    with _finding:
        if (found := _found.get(network)) is not None:
            return found
        cages = (cage for cage in _candidates(network) if _works(cage))
        found = _found[network] = next(cages, None)
    if found is not None and found.contained:
        logger.info("stdio servers run in PID namespaces: nothing they start can outlive them")
    elif found is not None:
        logger.warning(
            "PID namespaces are refused here: what stdio servers start is found by its mark"
        )
    return found


def _candidates(network: bool) -> list[Cage]:
    setpriv, unshare = shutil.which("setpriv"), shutil.which("unshare")
    if sys.platform != "linux" or setpriv is None:
        return [Cage((), False)] if network else []
    mortal = (setpriv, "--pdeathsig", "KILL")
    net = () if network else ("--net",)
    contained, apart = [], [Cage((*mortal, "--"), False)] if network else []
    if unshare is not None:
        for user, dropped in (((), ()), (_USER, _NO_CAPABILITIES)):
            outer = (*mortal, "--", unshare, *user, *net, "--pid", "--", *_KEEP)
            inner = (unshare, "--mount-proc", "--", *mortal, *dropped, "--", *_KEEP)
            contained.append(Cage((*outer, *inner), True))
            if not network:
                apart.append(Cage((*mortal, "--", unshare, *user[:2], *net, "--"), False))
    return [*contained, *apart]


def _works(cage: Cage) -> bool:
    try:
        done = subprocess.run(
            [*cage.argv, "true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TRIAL_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
