"""What one would write first: asyncio and the openai client; with OPENAI_TRANSPORT=aiohttp on its other transport."""

from __future__ import annotations

import asyncio
import contextlib
import os

import chain
import loop
import openai


async def main() -> None:
    given = chain.arguments()
    async with contextlib.AsyncExitStack() as stack:
        more = {}
        if os.environ.get("OPENAI_TRANSPORT") == "aiohttp":
            more["http_client"] = await stack.enter_async_context(openai.DefaultAioHttpClient())
        # The default of 5 s to connect is too short where a busy machine starves the client; it shall finish.
        client = openai.AsyncOpenAI(base_url=given.base_url, api_key="none", timeout=600, **more)
        served = await stack.enter_async_context(client)

        async def call(stage: str, row: dict[str, str]) -> str:
            messages, sampling = chain.ENDPOINT.messages(stage, row), chain.ENDPOINT.sampling(stage)
            reply = await served.chat.completions.create(model="stub", messages=messages, **sampling)
            return reply.choices[0].message.content

        await loop.run(given, call)


if __name__ == "__main__":
    asyncio.run(main())
