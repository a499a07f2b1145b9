"""Requests/s and latencies of a server with and without dynamic batching, and 3,000 hostile requests beside good ones.

    python tests/bench/serve.py --model RUN [--clients 200] [--requests 1000] [--hostile 3000]

The clients share the machine with the server. A good request holds one comparison of the embedded sample; its answer
must be that of `PreferenceModel.compare` to 1e-5. Not collected by pytest.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter

import httpx
import numpy as np

from pm.data import sample
from pm.predict import PreferenceModel

HEADERS = {"content-type": "application/json"}


def start(model: str, *flags: str) -> tuple[subprocess.Popen, str]:
    process = subprocess.Popen([sys.executable, "-m", "pm.serve", "--model", model, "--port", "0", *flags],
                               stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().split()[-1]


def rows(count: int) -> list[dict]:
    pairs = [{"prompt": row["prompt"], "response_a": row["chosen"], "response_b": row["rejected"]}
             for row in sample.rows()]
    return random.Random(0).sample(pairs, count)


async def load(url: str, bodies: list[dict], clients: int, wanted: list[float]) -> list[float]:
    """Seconds of each request, all of which must be answered, and rightly. Each client has one connection, and writes
    HTTP itself: a library's client would take more of the processor than the server."""
    host, port = url.removeprefix("http://").split(":")
    seconds: list[float] = []
    waiting = list(enumerate(bodies))

    async def one() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        while waiting:
            number, body = waiting.pop()
            content = json.dumps(body).encode()
            started = time.perf_counter()
            writer.write(b"POST /compare HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                         b"Content-Length: %d\r\n\r\n%s" % (len(content), content))
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            answer = await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
            seconds.append(time.perf_counter() - started)
            assert head.startswith("http/1.1 200"), answer
            assert abs(json.loads(answer)["probability"]["a"] - wanted[number]) < 1e-5
        writer.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    return seconds


def hostile_bodies(count: int) -> list[tuple[str, bytes]]:
    good = {"prompt": "x", "response_a": "y", "response_b": "z"}
    kinds = [("/compare", b"x" * 10_000_000),
             ("/rank", json.dumps({"prompt": "x", "responses": ["y"] * 10_000}).encode()),
             ("/compare", json.dumps({name: ["x"] * 10_000 for name in ("prompts", "responses_a",
                                                                       "responses_b")}).encode()),
             ("/compare", b'{"prompt": "x", "response_a": NaN, "response_b": "y"}'), ("/compare", b"[" * 100_000),
             ("/compare", b'{"prompt": 1e999, "response_a": "x", "response_b": "y"}'),
             ("/compare", json.dumps(good | {"prompt": "\ud800"}).encode()), ("/compare", b"\xff\xfe"),
             ("/get_reward", b'{"query": ["a"], "prompts": ["b"], "labels": [1]}'), ("/compare", b""),
             ("/compare", json.dumps(good | {"response_a": "x" * 1_000_000}).encode()), ("/nothing", b"{}")]
    return [kinds[number % len(kinds)] for number in range(count)]


async def hostile(url: str, count: int, clients: int) -> Counter:
    waiting, seen = hostile_bodies(count), Counter()

    async def one(client: httpx.AsyncClient) -> None:
        while waiting:
            path, body = waiting.pop()
            try:
                seen[(await client.post(path, content=body, headers=HEADERS)).status_code] += 1
            except httpx.TransportError as error:
                seen[type(error).__name__] += 1

    async def slow() -> None:
        """Sends a head that never ends."""
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /compare HTTP/1.1\r\nHost: x")
        await reader.read()
        writer.close()
        seen["slow, let go"] += 1

    slow_ones = [asyncio.create_task(slow()) for _ in range(clients)]
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None)) as client:
        await asyncio.gather(*(one(client) for _ in range(clients)))
        assert (await client.get("/health")).json() == {"status": "ok"}
    await asyncio.gather(*slow_ones)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--hostile", type=int, default=0)
    arguments = parser.parse_args()
    bodies = rows(arguments.requests)
    model = PreferenceModel.from_pretrained(arguments.model, "cpu")
    wanted = [one["a"] for one in model.compare(*([body[name] for body in bodies]
                                                  for name in ("prompt", "response_a", "response_b")))]
    for flag in ("--batching", "--no-batching"):
        process, url = start(arguments.model, flag)
        try:
            asyncio.run(load(url, bodies[:20], 4, wanted))
            started = time.perf_counter()
            seconds = np.array(asyncio.run(load(url, bodies, arguments.clients, wanted)))
            total = time.perf_counter() - started
            print(f"{flag:14} {arguments.clients} clients: {len(seconds) / total:.0f} requests/s, p50 "
                  f"{np.percentile(seconds, 50):.2f} s, p99 {np.percentile(seconds, 99):.2f} s", flush=True)
            if arguments.hostile and flag == "--batching":
                seen = asyncio.run(hostile(url, arguments.hostile, 50))
                print(f"hostile: {dict(seen)}", flush=True)
                asyncio.run(load(url, bodies[:100], 20, wanted))
        finally:
            process.terminate()
            print(f"exit code {process.wait(60)}", flush=True)


if __name__ == "__main__":
    main()
