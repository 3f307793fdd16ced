"""One server as a client's file describes it, field by field.

Pure. The fields are those that Claude, Cursor, VS Code, Windsurf, Cline, Roo Code, Gemini CLI, Zed
and Copilot document; which client wrote an entry is not asked, since most of them read each
other's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

_TRANSPORTS: Final = {
    **dict.fromkeys(("stdio", "local"), "stdio"),
    **dict.fromkeys(("http", "streamablehttp", "remote"), "http"),
    "sse": "sse",
}
_URLS: Final = ("httpUrl", "serverUrl", "url")
"""Gemini CLI, Windsurf, everyone else."""
_SSE_PATH: Final = re.compile(r"/sse/?(?:[?#]|$)")
_BARE: Final = re.compile(r"\A((?i:Bearer|Basic|Token) |)\$([A-Z_][A-Z0-9_]*)\Z")
"""``$NAME`` as the whole of a value, or as its secret: Gemini CLI, Copilot."""
_OF_SECONDS: Final = frozenset({"autoApprove", "alwaysAllow"})
"""Fields of clients whose timeout may be in seconds (Cline, Roo Code: at most an hour)."""
_OF_MILLISECONDS: Final = frozenset({"httpUrl", "trust", "includeTools", "excludeTools"})
"""Fields of Gemini CLI, whose timeout is in milliseconds."""
_LONGEST_S: Final = 3600
_ALL_TOOLS: Final[tuple[Any, ...]] = (None, [], ["*"])
_NOTHING: Final[tuple[Any, ...]] = (None, "", [], {})


class RefusedError(Exception):
    """A server that cannot be taken over, and why."""


class SkippedError(Exception):
    """A server that is not to be taken over, and why."""


@dataclass(frozen=True)
class ReadEntry:
    """What an entry comes to: a definition without its name, and what was made of the rest."""

    definition: dict[str, Any]
    env_file: str
    ignored: tuple[str, ...]
    notes: tuple[str, ...]


def read_entry(body: Any) -> ReadEntry:
    """Return what one server of a client's file comes to.

    Raises `RefusedError` or `SkippedError` with the reason if it comes to nothing.
    """
    if not isinstance(body, dict):
        raise RefusedError("it is not an object")
    return _Reader(dict(body)).read()


@dataclass
class _Reader:
    """An entry whose fields are taken out one by one; what is left in the end is ignored."""

    body: dict[str, Any]
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def read(self) -> ReadEntry:
        if self.body.pop("disabled", None) is True or self.body.pop("enabled", None) is False:
            raise SkippedError("it is disabled in the file")
        if self.body.get("source") == "custom":  # Zed: it is no extension's
            del self.body["source"]
        timeouts = self._timeouts()
        transport = self._transport()
        own = self._program() if transport == "stdio" else self._endpoint()
        env_file = self._path("envFile") if transport == "stdio" else ""
        definition = {"transport": transport, **own, "timeouts": timeouts, "tools": self._tools()}
        self.ignored += [name for name, value in self.body.items() if value not in _NOTHING]
        return ReadEntry(
            {name: value for name, value in definition.items() if value},
            env_file,
            tuple(self.ignored),
            tuple(self.notes),
        )

    def _transport(self) -> str:
        named = self._text("type") or self._text("transport")
        urls = [name for name in _URLS if self.body.get(name)]
        if named:
            transport = _TRANSPORTS.get(re.sub(r"[-_ ]", "", named).lower())
            if transport is None:
                raise RefusedError(f"this release serves stdio and http, not {named!r}")
            if transport == "sse":
                raise SkippedError(
                    "this release does not serve sse; if the server speaks streamable HTTP at this "
                    "address as well, say type http in the file"
                )
            return transport
        if self.body.get("command") and urls:
            raise RefusedError(
                "it has both a command and a url, and no type that says which counts"
            )
        if self.body.get("command"):
            return "stdio"
        if not urls:
            raise RefusedError("it has neither a command nor a url")
        if urls[0] != "httpUrl" and _SSE_PATH.search(str(self.body[urls[0]])):
            raise SkippedError(
                "its address ends in /sse, which this release does not serve; if it is streamable "
                "HTTP, say type http in the file"
            )
        return "http"

    def _program(self) -> dict[str, Any]:
        command = self.body.get("command")
        if isinstance(command, dict):  # Zed's older form
            del self.body["command"]
            for inner, outer in (("path", "command"), ("args", "args"), ("env", "env")):
                if inner in command:
                    self.body.setdefault(outer, command[inner])
            self.ignored += [f"command/{it}" for it in command if it not in ("path", "args", "env")]
        args = self._list("args")
        if isinstance(command, list):  # OpenCode
            self.body["command"], *rest = self._list("command") or [""]
            args = [*rest, *args]
        env = "env" if "env" in self.body else "environment"
        return {
            "command": self._path("command"),
            "args": args,
            "env": self._object(env),
            "cwd": self._path("cwd"),
        }

    def _endpoint(self) -> dict[str, Any]:
        name = next((it for it in _URLS if self.body.get(it)), "url")
        return {"url": self._text(name), "headers": self._object("headers")}

    def _timeouts(self) -> dict[str, float]:
        """Return the time for a call; the file has it in a unit that it does not name."""
        timeout = self.body.get("timeout")
        if timeout is None:
            return {}
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0:
            return {}
        if _OF_MILLISECONDS & set(self.body) or timeout > _LONGEST_S:
            seconds = timeout / 1000
        elif _OF_SECONDS & set(self.body) or timeout < 1000:
            seconds = timeout
        else:
            self.notes.append("its timeout may be seconds or milliseconds: set timeouts.call_s")
            return {}
        del self.body["timeout"]
        self.notes.append(f"timeout {timeout:g} read as {seconds:g} s")
        return {"call_s": seconds}

    def _tools(self) -> dict[str, Any]:
        hidden = [*self._list("excludeTools"), *self._list("disabledTools")]
        only = [name for name in ("includeTools", "tools") if self.body.get(name) not in _ALL_TOOLS]
        for name in only:
            self.notes.append(f"tools that {name} does not name are not hidden")
        if self.body.get("tools") in _ALL_TOOLS:
            self.body.pop("tools", None)
        return {name: {"hidden": True} for name in hidden}

    def _text(self, name: str) -> str:
        value = self.body.pop(name, None)
        if value is not None and not isinstance(value, str):
            raise RefusedError(f"its {name} is not a string")
        return value or ""

    def _path(self, name: str) -> str:
        """Return a program or path; a relative one starts at the client's open folder."""
        path = self._text(name)
        if path.startswith("~/"):
            return "${userHome}" + path[1:]
        bare = name == "command" and ("/" not in path or " " in path)
        if not path or bare or path.startswith(("/", "${")):
            return path
        self.notes.append(f"{name} {path} read as relative to the workspace folder")
        return "${workspaceFolder}/" + path.removeprefix("./")

    def _list(self, name: str) -> list[str]:
        value = self.body.pop(name, None)
        if value is None:
            return []
        if not isinstance(value, list):
            raise RefusedError(f"its {name} is not a list")
        return [self._scalar(item, f"{name}/{index}") for index, item in enumerate(value)]

    def _object(self, name: str) -> dict[str, str]:
        value = self.body.pop(name, None)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise RefusedError(f"its {name} is not an object")
        texts = {
            key: self._scalar(item, f"{name}/{key}")
            for key, item in value.items()
            if item is not None
        }
        return {key: _BARE.sub(r"\1${\2}", text) for key, text in texts.items()}

    def _scalar(self, value: Any, where: str) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str | int | float):
            return str(value)
        raise RefusedError(f"its {where} is not a string")
