"""A program that speaks TLS to clients and hands on to a server that doesn't: PORT, SERVER'S PORT, CERTIFICATE."""

import asyncio
import ssl
import sys
from contextlib import suppress
from functools import partial

HOST = "127.0.0.1"


async def serve(port: int, behind: int, certificate: str) -> None:
    """Serve for ever."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with await asyncio.start_server(partial(_join, behind), HOST, port, ssl=context) as server:
        await server.serve_forever()


async def _join(behind: int, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
    """Hand on in both directions until either side ends."""
    server, to_server = await asyncio.open_connection(HOST, behind)
    ways = [asyncio.create_task(_pour(client, to_server)), asyncio.create_task(_pour(server, to_client))]
    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    for end in (to_client, to_server):
        end.close()


async def _pour(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while read := await source.read(65_536):
            target.write(read)
            await target.drain()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
