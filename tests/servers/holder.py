"""Not a server: it holds a session with one open until somebody kills it, as a worker does."""

import asyncio
import sys

from registry.definitions import parse_definition
from workers.session import Session


async def main() -> None:
    """Open a session with the script named on the command line; say so; wait for ever."""
    definition = parse_definition(
        {"name": "held", "transport": "stdio", "command": sys.executable, "args": sys.argv[1:]}
    )
    await Session.open(definition, connect_timeout_s=20, stop_grace_s=2, max_result_bytes=1_000_000)
    print("open", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
