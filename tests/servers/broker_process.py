"""Some workers' brokers in a process of their own: python -m tests.servers.broker_process ARGS.

ARGS: the database's URL, the file of encryption keys, how many brokers. It prints ``ready``; for
each line on stdin, a tenant, it lets every broker look after itself, then asks all of them for that
tenant's credential at the same time, and prints what they answered: a secret or an error's code.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from registry.database import Database
from registry.errors import FleetError
from registry.key_file import KeyFile
from tests.brokering import Tenancy, crm
from workers.broker import Broker


async def ask(broker: Broker, tenant: str) -> str:
    try:
        await broker.look_after()
        grant = await broker.resolve(tenant, crm())
    except FleetError as error:
        return error.code.code
    return grant.secret if grant else ""


async def main(url: str, keys: str, count: int) -> None:
    databases = [Database(url, pool_size=1) for _ in range(count)]
    made = Tenancy(databases[0], None, crm(), url)  # type: ignore[arg-type]
    brokers = [
        made.broker(database=database, keys=KeyFile(Path(keys)), patience_s=20)
        for database in databases
    ]
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        answers = await asyncio.gather(*(ask(broker, line.strip()) for broker in brokers))
        print(json.dumps(answers), flush=True)
    await asyncio.gather(*(broker.close() for broker in brokers))
    await asyncio.gather(*(database.close() for database in databases))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
