"""asyncio and litellm's acompletion."""

from __future__ import annotations

import asyncio

import chain
import litellm
import loop


async def main() -> None:
    given = chain.arguments()

    async def call(stage: str, row: dict[str, str]) -> str:
        reply = await litellm.acompletion(
            model="openai/stub",
            messages=chain.ENDPOINT.messages(stage, row),
            api_base=given.base_url,
            api_key="none",
            timeout=600,
            **chain.ENDPOINT.sampling(stage),
        )
        return reply.choices[0].message.content

    await loop.run(given, call)


if __name__ == "__main__":
    asyncio.run(main())
