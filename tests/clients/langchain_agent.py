"""An agent's session by ``langchain-mcp-adapters``, in an environment of its own.

``python langchain_agent.py CONNECTION TOKEN`` connects as the JSON says, works, and leaves while a
call of ``TOKEN`` sleeps. It prints what it saw as JSON.
"""

import asyncio
import json
import sys

from langchain_mcp_adapters.callbacks import Callbacks
from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.tools import load_mcp_tools
from mcp.shared.exceptions import McpError
from mcp.types import ElicitResult


async def main(connection, token):
    seen = {"progress": [], "asked": []}
    reported = asyncio.Event()

    async def on_progress(progress, _total, _message, _context):
        seen["progress"].append(progress)
        reported.set()

    async def on_elicitation(_mcp_context, params, _context):
        seen["asked"].append(params.message)
        return ElicitResult(action="accept", content={"city": "Oslo"})

    callbacks = Callbacks(on_progress=on_progress, on_elicitation=on_elicitation)
    client = MultiServerMCPClient({"fleet": connection}, callbacks=callbacks)
    async with client.session("fleet") as session:
        tools = {
            tool.name: tool
            for tool in await load_mcp_tools(session, callbacks=callbacks, server_name="fleet")
        }
        seen["tools"] = list(tools)
        seen["echo"] = await tools["local_echo"].ainvoke({"text": "hi"})
        call = {"type": "tool_call", "id": "1", "name": "local_add", "args": {"a": 1, "b": 2}}
        added = await tools["local_add"].ainvoke(call)
        seen["added"] = added.artifact["structured_content"]
        call = {"type": "tool_call", "id": "2", "name": "local_fail", "args": {"text": "not today"}}
        failed = await tools["local_fail"].ainvoke(call)
        seen["failed"] = [failed.status, str(failed.content)]
        try:
            await session.call_tool("local_nothing", {})
        except McpError as error:
            seen["unknown"] = error.error.code
        await tools["local_sleep"].ainvoke({"seconds": 0.5, "token": "langchain"})
        seen["told"] = seen["progress"].copy()
        seen["answered"] = await tools["asking_ask"].ainvoke({"ways": ["form"]})
        reported.clear()
        sleeping = asyncio.create_task(
            tools["local_sleep"].ainvoke({"seconds": 60, "token": token})
        )
        await reported.wait()
    sleeping.cancel()
    await asyncio.wait([sleeping])
    # Without a session each call has one of its own, as agents do that keep none.
    alone = {tool.name: tool for tool in await client.get_tools()}
    seen["alone"] = await alone["local_echo"].ainvoke({"text": "alone"})
    print(json.dumps(seen))


asyncio.run(main(json.loads(sys.argv[1]), sys.argv[2]))
