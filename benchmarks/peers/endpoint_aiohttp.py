"""The floor, not a peer: a bare aiohttp loop that keeps nothing on disk."""

from __future__ import annotations

import asyncio

import aiohttp
import chain


async def main() -> None:
    given = chain.arguments()
    places = asyncio.Semaphore(given.concurrency)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

        async def record(prompt: str) -> dict[str, str]:
            row = {"prompt": prompt}
            async with places:
                for stage in chain.STAGES:
                    body = {
                        "model": "stub",
                        "messages": chain.ENDPOINT.messages(stage, row),
                        **chain.ENDPOINT.sampling(stage),
                    }
                    async with http.post(f"{given.base_url}/chat/completions", json=body) as answer:
                        row[stage] = (await answer.json())["choices"][0]["message"]["content"]
            return row

        rows = await asyncio.gather(*(record(p) for p in chain.prompts(given.records)))
    chain.tell(row["verdict"] for row in rows)


if __name__ == "__main__":
    asyncio.run(main())
