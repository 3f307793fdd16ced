"""Collect tests/data/tool_search/tools.jsonl: the listings of the servers in `tool_sources`.

``python -m tests.bench.collect_tools FOLDER [SERVER ...]`` needs npm, Node 22 or later, uv, and
half an hour. Packages are installed below FOLDER, without their install scripts; each server then
runs with an environment of its own and is asked for nothing but its tools. What FOLDER has from an
earlier run is used again.

A server gives at most `MAX_TOOLS` tools, chosen by a hash of their names: a few servers list more
than a hundred.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from mcp import Client, MCPError
from mcp.client.stdio import StdioServerParameters, stdio_client

from tests.bench.tool_sources import LICENCES, SOURCES, Source

DATA = Path(__file__).parents[1] / "data/tool_search/tools.jsonl"
PATIENCE_S = 60
MAX_TOOLS = 12
MAX_DESCRIPTION = 2_000
MAX_TOOL = 6_000
KEPT = ("name", "title", "description", "inputSchema")
PERMISSIVE = {"MIT", "Apache-2.0", "ISC", "BSD-3-Clause"}
CLASSIFIERS = {
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
}


def install(source: Source, folder: Path) -> tuple[list[str], str]:
    """Install a package; return the command that starts it and the licence it names."""
    return (install_npm if source.registry == "npm" else install_pypi)(source, folder)


def install_npm(source: Source, folder: Path) -> tuple[list[str], str]:
    if not (folder / "node_modules").exists():
        quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
        wanted = f"{source.package}@{source.version}"
        run("npm", "install", "--prefix", str(folder), *quiet, wanted, *source.also)
    package = folder / "node_modules" / source.package
    about = json.loads((package / "package.json").read_text())
    programs = about["bin"]
    if isinstance(programs, dict):
        programs = programs.get(source.package) or next(iter(programs.values()))
    return ["node", str(package / programs)], about.get("license", "")


def install_pypi(source: Source, folder: Path) -> tuple[list[str], str]:
    if not (folder / "bin").exists():
        run("uv", "venv", "--quiet", str(folder))
        target = ("--python", str(folder / "bin/python"))
        wanted = f"{source.package}=={source.version}"
        run("uv", "pip", "install", "--quiet", *target, wanted, *source.also)
    name = source.package.replace("-", "_")
    (metadata,) = folder.glob(f"lib/python*/site-packages/{name}-*.dist-info/METADATA")
    about = HeaderParser().parsestr(metadata.read_text())
    classified = [CLASSIFIERS.get(it, "") for it in about.get_all("Classifier", [])]
    licence = about["License-Expression"] or "".join(classified) or about["License"] or ""
    section = (metadata.parent / "entry_points.txt").read_text().split("[console_scripts]")[1]
    lines = [line for line in section.split("[")[0].splitlines() if line.strip()]
    programs = [line.split("=")[0].strip() for line in lines]
    program = source.package if source.package in programs else programs[0]
    return [str(folder / "bin" / program)], licence


def run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=900, stdout=subprocess.DEVNULL)


async def ask(source: Source, command: list[str], folder: Path) -> list[dict[str, Any]]:
    """Return the tools that a server lists."""
    home = folder / "home"
    for name, content in {"": "", **source.files}.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        if name:
            (home / name).write_text(content)
    home.mkdir(exist_ok=True)

    def filled(text: str) -> str:
        return text.replace("{folder}", str(home))

    server = StdioServerParameters(
        command=command[0],
        args=[*command[1:], *map(filled, source.arguments)],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            **{name: filled(value) for name, value in source.env.items()},
        },
        cwd=home,
    )
    tools: list[dict[str, Any]] = []
    with (folder / "stderr.log").open("w") as log:
        async with asyncio.timeout(PATIENCE_S), opened(server, log) as client:
            cursor: str | None = ""
            while cursor is not None:
                page = await client.list_tools(cursor=cursor or None)
                tools += [
                    tool.model_dump(mode="json", by_alias=True, exclude_none=True)
                    for tool in page.tools
                ]
                cursor = page.next_cursor or None
    return tools


def opened(server: StdioServerParameters, log: Any) -> Client:
    # Some older servers end when they are asked what newer ones can do.
    return Client(stdio_client(server, errlog=log), mode="legacy")


def collect(source: Source, folder: Path) -> dict[str, Any]:
    """Install and ask one server; return its licence and its tools."""
    answer = folder / "answer.json"
    if not answer.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command, licence = install(source, folder)
        tools = asyncio.run(ask(source, command, folder))
        answer.write_text(json.dumps({"licence": licence, "tools": tools}))
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


def chosen(source: Source, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return at most `MAX_TOOLS` tools, short enough to keep, in the order of the listing."""
    short = []
    for tool in tools:
        kept = {key: tool[key] for key in KEPT if tool.get(key)}
        kept["description"] = kept.get("description", "")[:MAX_DESCRIPTION]
        if len(json.dumps(kept)) <= MAX_TOOL:
            short.append(kept)

    def by_hash(tool: dict[str, Any]) -> str:
        return hashlib.sha256(f"{source.server}/{tool['name']}".encode()).hexdigest()

    wanted = {tool["name"] for tool in sorted(short, key=by_hash)[:MAX_TOOLS]}
    return [tool for tool in short if tool["name"] in wanted]


def main() -> None:
    folder, only = Path(sys.argv[1]).resolve(), sys.argv[2:]
    lines = []
    for source in SOURCES:
        if only and source.server not in only:
            continue
        try:
            found = collect(source, folder / source.server)
        except (subprocess.SubprocessError, ExceptionGroup, MCPError, TimeoutError) as error:
            raise SystemExit(f"{source.server}: {error!r}; see {folder / source.server}") from error
        licence = LICENCES.get(source.server) or found["licence"]
        if licence not in PERMISSIVE:
            raise SystemExit(f"{source.server}: the licence {licence!r} is not known as permissive")
        tools = chosen(source, found["tools"])
        print(f"{source.server}: {len(tools)} of {len(found['tools'])} tools, {licence}")
        about = {
            "server": source.server,
            "package": f"{source.registry}:{source.package}",
            "version": source.version,
            "licence": licence,
        }
        lines += [json.dumps({**about, "tool": tool}, separators=(",", ":")) for tool in tools]
    if not only:
        DATA.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
