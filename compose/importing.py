"""Servers as desktop clients and editors write them, as definitions of Toolfleet.

Pure. Nothing is guessed: what has no counterpart here is reported as ignored, and a server that
cannot be taken over keeps no other from it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from compose.client_entry import RefusedError, SkippedError, read_entry
from compose.client_files import Entry, find_entries, read_document
from compose.placeholders import Placeholder, fill, missing, needed, parse

LONGEST_NAME: Final = 40
WORKSPACE: Final = "workspaceFolder"
_EDITORS_OWN: Final = {
    WORKSPACE: "the folder that the editor has open",
    "workspaceFolderBasename": "the name of the folder that the editor has open",
    "userHome": "the user's home folder",
    "cwd": "the folder that the editor was started in",
}
_VARIABLE: Final = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Need:
    """A value that a definition needs: how it is asked for, and what it may be."""

    name: str
    description: str
    secret: bool = False
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Imported:
    """One server of a client's file: its definition, or the reason why there is none.

    ``path`` and ``label`` are where and how the file names it; ``ignored`` are paths within it.
    The definition's strings hold placeholders until `filled`: ``needs`` names them, ``defaults``
    has what the file itself gives for some. ``env_file`` is a file with more variables.
    """

    path: str
    label: str
    name: str
    definition: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    skipped: bool = False
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    env_file: str = ""
    needs: tuple[Need, ...] = ()
    defaults: Mapping[str, str] = field(default_factory=dict)

    def missing(self, values: Mapping[str, str]) -> list[Need]:
        """Return what it cannot do without and neither ``values`` nor the file gives."""
        known = {**self.defaults, **values}
        texts = _strings([self.definition, self.env_file])
        names = {name for text in texts for name in missing(parse(text), known)}
        return [need for need in self.needs if need.name in names]

    def filled(self, values: Mapping[str, str]) -> Imported:
        """Return it with its placeholders replaced; nothing may be missing."""
        known = {**self.defaults, **values}
        definition, env_file = _replaced(
            [self.definition, self.env_file], lambda text: fill(parse(text), known)
        )
        return replace(self, definition=definition, env_file=env_file)


def read_client_file(text: str) -> list[Imported]:
    """Return the servers of a client's file in its order.

    Raises `invalid_request` when it is no such file; what is wrong with one server is said there.
    """
    return import_servers(read_document(text))


def import_servers(document: Any) -> list[Imported]:
    """Return the servers of a client's file that `read_document` has read; see above."""
    taken: set[str] = set()
    found = []
    for entry in find_entries(document):
        name, notes = _free_name(entry, taken)
        taken.add(name)
        found.append(_import_one(entry, name, notes))
    return found


def legal_name(label: str) -> str:
    """Return the server name that is nearest to what a file calls a server."""
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return name[:LONGEST_NAME].strip("-") or "server"


def _free_name(entry: Entry, taken: set[str]) -> tuple[str, list[str]]:
    """Return a server's name, numbered if another server of the file has it, and what to say."""
    wanted = name = legal_name(entry.name)
    number = 1
    while name in taken:
        number += 1
        tail = f"-{number}"
        name = wanted[: LONGEST_NAME - len(tail)].rstrip("-") + tail
    notes = [f"named {name}"] if name != entry.name else []
    if number > 1:
        notes = [f"named {name}: another server of the file is {wanted}"]
    if entry.twice:
        notes.append("the file has it twice: the last one counts")
    return name, notes


def _import_one(entry: Entry, name: str, notes: list[str]) -> Imported:
    imported = Imported(entry.path, entry.name, name, notes=tuple(notes))
    try:
        if entry.left_out:
            raise SkippedError(entry.left_out)
        read = read_entry(entry.body)
    except SkippedError as error:
        return replace(imported, reason=str(error), skipped=True)
    except RefusedError as error:
        return replace(imported, reason=str(error))
    texts = _strings([read.definition, read.env_file])
    placeholders = {it.name: it for text in texts for it in needed(parse(text))}
    used = [entry.inputs[name] for name, it in placeholders.items() if _is_known(it, entry)]
    return replace(
        imported,
        definition={"name": name, **read.definition},
        ignored=read.ignored,
        notes=(*notes, *read.notes),
        env_file=read.env_file,
        needs=tuple(_need(it, entry) for it in placeholders.values()),
        defaults={str(it["id"]): str(it["default"]) for it in used if "default" in it},
    )


def _is_known(placeholder: Placeholder, entry: Entry) -> bool:
    return placeholder.is_input and placeholder.name in entry.inputs


def _need(placeholder: Placeholder, entry: Entry) -> Need:
    name = placeholder.name
    if _is_known(placeholder, entry):
        asked = entry.inputs[name]
        options = asked.get("options")
        return Need(
            name,
            str(asked.get("description") or "an input of the file"),
            secret=asked.get("password") is True,
            options=tuple(map(_option, options)) if isinstance(options, list) else (),
        )
    if placeholder.is_input:
        return Need(name, "an input that the file does not describe")
    if name in _EDITORS_OWN:
        return Need(name, _EDITORS_OWN[name])
    if _VARIABLE.fullmatch(name):
        return Need(name, "an environment variable", secret=True)
    return Need(name, "a value that only the client knows")


def _option(option: Any) -> str:
    """Return the value of one choice; VS Code lets it have a label as well."""
    return str(option.get("value", "")) if isinstance(option, dict) else str(option)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _replaced(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _replaced(item, change) for key, item in value.items()}
    return [_replaced(item, change) for item in value] if isinstance(value, list) else value
