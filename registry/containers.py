"""Which options of a container runtime open the container up to its host. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from typing import Final

from registry.command_options import RefusedCommand

_HOST_FOLDERS: Final = re.compile(
    r"/($|(etc|root|proc|sys|dev|run|boot|usr|bin|sbin|lib\w*|var/(run|lib|spool|log))(/|$))"
)
_CONTAINER_REFUSED: Final = re.compile(
    r"--(privileged|cap-add|device|device-cgroup-rule|security-opt|volumes-from|env-file|cidfile|"
    r"group-add|cgroup-parent|runtime|sysctl|label-file|use-api-socket|mount-from)(=.*)?"
)
_NAMESPACES: Final = re.compile(r"--(net|network|pid|ipc|uts|userns|cgroupns)")
_VOLUME: Final = re.compile(r"(?:-[a-z]*v|--volume)=?(?P<source>.*)")


def refuse_way_out(args: Sequence[str]) -> None:
    """Raise `RefusedCommand` unless it is ``run`` with options that leave the container closed."""
    if list(args[:1]) not in (["run"], ["mcp"]):
        raise RefusedCommand("is used as `run IMAGE`, and in no other way", 0 if args else None)
    for at, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        following = value if equals else (args[at + 1] if at + 1 < len(args) else "")
        if _CONTAINER_REFUSED.fullmatch(arg):
            raise RefusedCommand("gives the container a way out", at)
        if _NAMESPACES.fullmatch(option) and following.startswith(("host", "container:", "ns:")):
            raise RefusedCommand("puts the container into a namespace of the host", at)
        sources: list[str] = []
        if option == "--mount":
            sources = re.findall(r"(?:source|src)=([^,]*)", following)
        elif found := _VOLUME.fullmatch(arg):
            sources = [(found["source"] or following).partition(":")[0]]
        if any(map(_is_hosts_own, sources)):
            raise RefusedCommand("gives the container a folder of the host's own", at)


def _is_hosts_own(source: str) -> bool:
    """Say whether what is mounted is a folder of the system; a volume has no ``/`` before it."""
    if not source.startswith("/"):
        return source.startswith(("~", ".."))
    return _HOST_FOLDERS.match("/" + posixpath.normpath(source).lstrip("/")) is not None
