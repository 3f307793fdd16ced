"""The vendor: an HTTP server with a limit of its own (`tests.servers.vendor`), and its journal."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

SCRIPT: Final = Path(__file__).parent / "servers" / "vendor.py"
PATIENCE_S: Final = 20.0


@dataclass(frozen=True)
class Vendor:
    """A running vendor."""

    url: str
    journal: Path

    def definition(self, **rest: Any) -> dict[str, Any]:
        """Return the definition of its server."""
        return {
            "name": "vendor",
            "tool_prefix": "demo_",
            "transport": "http",
            "url": self.url,
            "networks": ["127.0.0.0/8"],
            "pool": {"min_idle": 2, "max_size": 4},
            "tools": {"look": {"delivery": "read"}},
            **rest,
        }

    def arrivals(self, status: int | None = None) -> list[dict[str, Any]]:
        """Return the calls that arrived, in order; those of one status."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        found = [json.loads(line) for line in lines]
        return [it for it in found if status in (None, it["status"])]

    def statuses(self) -> list[int]:
        """Return how each call was answered."""
        return [it["status"] for it in self.arrivals()]

    def gaps_s(self) -> list[float]:
        """Return the seconds between one call and the next."""
        return [b["at"] - a["at"] for a, b in pairwise(self.arrivals())]


@asynccontextmanager
async def running_vendor(journal: Path, *flags: str) -> AsyncIterator[Vendor]:
    """Run a vendor on a free port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SCRIPT), "--journal", str(journal), *flags,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            port = int(await process.stdout.readline())
        yield Vendor(f"http://127.0.0.1:{port}/mcp", journal)
    finally:
        process.kill()
        await process.wait()
