"""A small HTTP API for tests: it tells what it was asked, and misbehaves at some addresses.

python shop.py JOURNAL prints the port that it listens on, on loopback.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

JOURNAL = Path(sys.argv[1])


def note(event: str, **more: Any) -> None:
    with JOURNAL.open("a") as file:
        file.write(json.dumps({"event": event, **more}) + "\n")


async def tell(request: Request) -> Response:
    """Answer with the request itself."""
    return JSONResponse(
        {
            "method": request.method,
            "path": request.scope["raw_path"].decode(),
            "query": [list(pair) for pair in request.query_params.multi_items()],
            "headers": dict(request.headers),
            "heard": sha256(request.headers.get("authorization", "").encode()).hexdigest(),
            "body": (await request.body()).decode(),
        }
    )


async def answer(request: Request) -> Response:
    """Answer with the status asked for, and say what the caller sent for a credential."""
    status = int(request.path_params["code"])
    headers = {"retry-after": "7"} if status == 429 else {}
    problem = {"problem": "x" * 5_000, "sent": request.headers.get("authorization")}
    if status == 502:
        return Response("<html>bad gateway</html>", status, media_type="text/html")
    return JSONResponse(dict(reversed(problem.items())), status, headers)


async def wait(request: Request) -> Response:
    """Answer never; note when the caller has gone."""
    token = request.query_params.get("token", "")
    note("started", token=token)
    while (await request.receive())["type"] != "http.disconnect":
        pass
    note("cancelled", token=token)
    return Response()


async def write(request: Request) -> Response:
    note("written", token=request.query_params.get("token", ""))
    return Response(status_code=204)


async def large(request: Request) -> Response:
    return JSONResponse({"text": "x" * int(request.query_params["size"])})


async def packed(request: Request) -> Response:
    whole = json.dumps({"text": "x" * int(request.query_params["size"])}).encode()
    headers = {"content-encoding": "gzip"}
    return Response(gzip.compress(whole), headers=headers, media_type="application/json")


async def elsewhere(_: Request) -> Response:
    return RedirectResponse("/tell/redirected", 302)


async def give_cookie(_: Request) -> Response:
    return PlainTextResponse("have a cookie", headers={"set-cookie": "session=alices"})


async def numbers(_: Request) -> Response:
    return JSONResponse([1, 2, 3])


class Hanging(Response):
    """A response whose connection breaks before it is whole."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        note("broke off")
        headers = [(b"content-length", b"100")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        raise ConnectionError("broken off")


async def break_off(_: Request) -> Response:
    return Hanging()


ANY = ["GET", "POST", "PUT", "PATCH", "DELETE"]
app = Starlette(
    routes=[
        Route("/v1/status/{code}", answer),
        Route("/v1/wait", wait),
        Route("/v1/write", write, methods=ANY),
        Route("/v1/large", large),
        Route("/v1/packed", packed),
        Route("/v1/redirect", elsewhere),
        Route("/v1/cookie", give_cookie),
        Route("/v1/numbers", numbers),
        Route("/v1/break", break_off),
        Route("/v1/{rest:path}", tell, methods=ANY),
    ]
)


async def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    asyncio.run(main())
