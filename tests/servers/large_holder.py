"""A stand-in for a worker: it has a large message read, prints the reading process's id, and stays.

``busy``: that process is stuck in a job, so that nothing it could read would end it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from workers.large import LargeReader, LargeResult


async def main() -> None:
    """Use a reader, then wait for ever."""
    reader = LargeReader(longest_bytes=10_000_000)
    raw = b'{"jsonrpc": "2.0", "id": 1, "result": {"content": []}}'
    small = LargeResult(raw, event=False, size_bytes=len(raw))
    await reader.finish(small, "t", None)
    job = None
    if sys.argv[1] == "busy":
        assert reader.finishing.pid is not None
        os.kill(reader.finishing.pid, signal.SIGSTOP)
        job = asyncio.create_task(reader.finish(small, "t", None))
    print(reader.finishing.pid, flush=True)
    await asyncio.Event().wait()
    del job


if __name__ == "__main__":
    asyncio.run(main())
