"""Serves an exported model over HTTP, with a page at /: python -m pm.serve [--model RUN_OR_EXPORT] [--port 8000]

Requests that wait at the same time are scored together (`service.py`, `batching.py`). `gate.py` is what stands before
the app, `payloads.py` what comes in and goes out.
"""

import argparse
import asyncio
import json
import math
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from itertools import combinations, pairwise

import numpy as np
import uvicorn
from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException as StarletteHTTPException

from pm import payloads
from pm.batching import Closed, Full
from pm.cohorts import Cohorts
from pm.data import sample
from pm.data.example import text_hash
from pm.data.forms import BadRow
from pm.data.languages import UNKNOWN, language_code
from pm.data.sources import parse_json_row
from pm.errors import UserError, run_main
from pm.gate import Gate, patient
from pm.predict import PreferenceModel, newest_export
from pm.predictions import softmax
from pm.service import DEFAULTS, Limits, Pair, Service, flips
from pm.tracking import quiet_libraries

END_TOKENS = ("</s>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<|END_OF_TURN_TOKEN|>",
              "<end_of_turn>", "<eos>", "<pad>")
KEEP_ALIVE = 75  # seconds: longer than clients and proxies keep connections for
EXAMPLES = 3  # prompts of each language on the page
LONGEST_REASON = 300
REFUSALS = {status: {"model": payloads.Failure} for status in (401, 408, 413, 415, 422, 429, 503)}
PAGE_POLICY = ("default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
               "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


def create_app(model: PreferenceModel, name: str = "", limits: Limits = DEFAULTS, token: str | None = None, *,
               together: bool = True, cohort: int = 0, cohort_wait: float = 60.0,
               end_tokens: Sequence[str] = END_TOKENS) -> FastAPI:
    """The app, whose batcher runs until its lifespan ends. `name` is that of the model.

    With a `token` all but the page and /health need it. `together=False`: each request is scored by itself. With a
    `cohort` a response in /get_reward that comes alone, without a label, waits until that many responses to its prompt
    have come, or `cohort_wait` seconds have passed. `end_tokens` are taken off the end of responses there.
    """
    service = Service(model, limits, together)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.batcher.close)

    router = APIRouter(route_class=StrictRoute, responses=REFUSALS)
    _add_ours(router, service)
    _add_theirs(router, service, cohort, cohort_wait, end_tokens)
    _add_page(router, service, name)
    app = FastAPI(title="preference-model", summary="Which of two responses is better, and how surely",
                  docs_url=None, redoc_url=None, lifespan=lifespan)  # their pages load scripts from elsewhere
    app.include_router(router)
    for kind, status in ((UserError, 422), (RequestValidationError, 422), (Full, 429), (Closed, 503), (Exception, 500),
                         (StarletteHTTPException, None)):
        app.add_exception_handler(kind, _handler(status))
    app.add_middleware(Gate, counters=service.counters, token=token, max_body=limits.body,
                       body_seconds=limits.body_timeout, seconds=limits.timeout,
                       paths=frozenset(route.path for route in router.routes))
    return app


def _add_ours(router: APIRouter, service: Service) -> None:
    model, limits = service.model, service.limits

    @router.post("/compare", summary="Which of two responses is better: one triple, lists, or NeMo-Gym's body",
                 response_model=payloads.Verdict | payloads.Verdicts | payloads.WinRates,
                 response_model_exclude_none=True)
    async def compare(body: payloads.CompareBody):
        if isinstance(body, payloads.Responses):
            return await _compare_responses(service, body)
        if isinstance(body, payloads.Triples):
            pairs = _pairs(body, limits)
            found = await service.compare(pairs)
            return payloads.Verdicts(results=[_verdict(service, *both) for both in zip(pairs, found, strict=True)])
        pair = Pair(body.prompt, body.response_a, body.response_b, body.language)
        limits.check_texts(**{field: [value] for field, value in pair._asdict().items()})
        verdict = _verdict(service, pair, *await service.compare([pair]))
        if body.texts:
            prompt, a, b = await asyncio.to_thread(model.as_read, *pair[:3])
            verdict.read = payloads.TextsRead(prompt=prompt, response_a=a, response_b=b)
        return verdict

    @router.post("/rank", summary="Responses to one prompt, best first")
    async def rank(body: payloads.RankBody) -> payloads.Ranked:
        count = len(body.responses)
        limits.check_count(f"responses: {count:,} take with the method {body.method} at least",
                           count * (count - 1) // 2 if body.method == "full" else count - 1)
        limits.check_texts(prompt=[body.prompt], responses=body.responses, language=[body.language])
        ranking, found = await service.rank(body.prompt, body.responses, body.method, body.language)
        place = {number: place for place, number in enumerate(ranking.order, 1)}
        errors = ranking.errors or [None] * count
        return payloads.Ranked(
            order=ranking.order, method=body.method, comparisons=ranking.comparisons, **_counts(found),
            responses=[payloads.Place(place=place[number], score=ranking.scores[number], error=errors[number])
                       for number in range(count)])

    @router.post("/classify", summary="The class of texts")
    async def classify(body: payloads.ClassifyBody) -> payloads.Classes:
        limits.check_count("texts:", len(body.texts))
        languages = _languages(body.languages, len(body.texts))
        limits.check_texts(texts=body.texts, languages=languages)
        return payloads.Classes(results=await service.classify(list(zip(body.texts, languages, strict=True))))


def _add_theirs(router: APIRouter, service: Service, cohort: int, cohort_wait: float,
                end_tokens: Sequence[str]) -> None:
    async def rewards_of(prompts: Sequence[str], responses: Sequence[str],
                         labels: Sequence[str | None]) -> list[tuple[float, float]]:
        """Of each response its reward, and the share of its comparisons whose verdict changes with the order."""
        pairs = payloads.reward_pairs(prompts, labels)
        service.limits.check_count("query:", len(pairs))
        found = await service.compare([Pair(prompts[i], responses[i], labels[i] if j is None else responses[j], UNKNOWN)
                                       for i, j in pairs])
        return list(zip(payloads.means(len(responses), pairs, map(service.better, found), opposite=True),
                        payloads.means(len(responses), pairs, (float(bool(row) and flips(row)) for row in found)),
                        strict=True))

    async def rewards_of_one(prompt: str, responses: Sequence[str]) -> list[tuple[float, float]]:
        return await rewards_of([prompt] * len(responses), responses, [None] * len(responses))

    cohorts = Cohorts(cohort, cohort_wait, service.limits.waiting, rewards_of_one)

    @router.post("/get_reward", summary="OpenRLHF's remote reward model")
    async def get_reward(body: payloads.RewardBody) -> payloads.Rewards:
        labels = body.labels or [None] * len(body.prompts)
        _check_lengths(query=body.query, prompts=body.prompts, labels=labels)
        service.limits.check_texts(query=body.query, prompts=body.prompts, labels=labels)
        responses = [payloads.response_of(query, prompt, number, end_tokens)
                     for number, (query, prompt) in enumerate(zip(body.query, body.prompts, strict=True))]
        if cohort > 1 and len(responses) == 1 and not labels[0]:
            found = [await cohorts.reward(body.prompts[0], responses[0])]
        else:
            found = await rewards_of(body.prompts, responses, labels)
        rewards = [reward for reward, _ in found]
        return payloads.Rewards(rewards=rewards, scores=rewards, extra_logs={"flips": [share for _, share in found]})


async def _compare_responses(service: Service, body: payloads.Responses) -> payloads.WinRates:
    count = len(body.response_objs)
    service.limits.check_count(f"response_objs: {count:,} take", count * (count - 1) // 2)
    texts = list(map(payloads.output_text, body.response_objs))
    service.limits.check_texts(conversation_history=[body.conversation_history], response_objs=texts)
    pairs = list(combinations(range(count), 2))
    found = await service.compare([Pair(body.conversation_history, texts[i], texts[j], UNKNOWN) for i, j in pairs])
    better = list(map(service.better, found))
    return payloads.WinRates(
        rewards=payloads.means(count, pairs, better, opposite=True),
        comparison_results=[payloads.Comparison(response_i=i, response_j=j, score_1=p, score_2=1 - p, ranking=6 - 5 * p)
                            for (i, j), p in zip(pairs, better, strict=True)],
        metrics={"comparisons": len(pairs), **_counts(found)})


def _add_page(router: APIRouter, service: Service, name: str) -> None:
    model, limits = service.model, service.limits

    @router.get("/", summary="The page", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        return HTMLResponse(files("pm").joinpath("page.html").read_text("utf-8"),
                            headers={"content-security-policy": PAGE_POLICY})

    @router.get("/health", summary="Whether the model answers")
    async def health() -> dict[str, str]:
        if not service.batcher.alive:
            raise HTTPException(503, "the model no longer answers")
        return {"status": "ok"}

    @router.get("/model", summary="What is served")
    async def about() -> dict:
        return {"model": name, "task": model.task.name, "labels": model.task.labels,
                "max_length": model.encoder.max_length, "calibration": vars(model.calibration),
                "limits": {"body": limits.body, "comparisons": limits.comparisons, "characters": limits.characters}}

    @router.get("/metrics", summary="Counters for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(service.counters.text(service.batcher.waiting), media_type="text/plain; version=0.0.4")

    @router.get("/examples", summary="Prompts of the embedded sample, each with a good, a bad and two more responses")
    async def examples() -> list[payloads.ExamplePrompt]:
        return _examples()


class StrictRequest(Request):
    """JSON is read as that of data files: UTF-8, no duplicate keys, no NaN."""

    async def json(self) -> dict:
        body = parse_json_row(await self.body())
        if isinstance(body, BadRow):
            raise HTTPException(422, f"body: {body}")
        return body


class StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if request.method == "POST" and kind != "application/json":
                raise HTTPException(415, f"content-type must be application/json{f', not {kind}' if kind else ''}")
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def _handler(status: int | None) -> Callable:
    """Tells of an error as `{"error": reason}`; without a `status` the error has its own."""

    def answer(_: Request, error: Exception) -> Response:
        if isinstance(error, RequestValidationError):
            reason = "; ".join(map(_reason, error.errors()))
        elif status == 429:
            reason = f"too much is waiting ({error}); try again later"
        elif status == 503:
            reason = "the server is stopping"
        else:
            reason = "internal error" if status == 500 else str(getattr(error, "detail", error))
        reason = reason if len(reason) <= LONGEST_REASON else f"{reason[: LONGEST_REASON - 3]}..."
        headers = {"retry-after": "1"} if status == 429 else getattr(error, "headers", None)
        return Response(json.dumps({"error": reason}), status or error.status_code, headers, "application/json")

    return answer


def _reason(error: dict) -> str:
    """What pydantic found wrong, after the field's name: `responses[3]: Input should be a valid string`."""
    named = [part for part in error["loc"] if part not in payloads.UNNAMED]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in named).removeprefix(".")
    return f"{place or 'body'}: {error['msg'].removeprefix('Value error, ')}"


def _verdict(service: Service, pair: Pair, prediction: dict | None) -> payloads.Verdict:
    if prediction is None:
        language = language_code(pair.language)
        return payloads.Verdict(
            probability=service.tie, probability_ab=service.tie, probability_ba=service.tie, order_sensitivity=0.0,
            flips=False, equal=True, language=language, temperature=service.model.calibration.of(language), tokens=0,
            tokens_cut=0)
    ab, ba = (dict(zip(service.model.task.labels, softmax(np.array(prediction[name]) / prediction["temperature"])
                       .tolist(), strict=True)) for name in ("logits_ab", "logits_ba"))
    return payloads.Verdict(
        probability_ab=ab, probability_ba=ba, order_sensitivity=abs(ab["a"] - ba["a"]), flips=flips(prediction),
        equal=False, **{name: prediction[name] for name in ("probability", "language", "temperature", "tokens",
                                                            "tokens_cut")})


def _counts(predictions: Sequence[dict | None]) -> dict[str, int]:
    looked_at = [row for row in predictions if row]
    return {"flips": sum(map(flips, looked_at)), "cut": sum(row["tokens_cut"] > 0 for row in looked_at)}


def _pairs(body: payloads.Triples, limits: Limits) -> list[Pair]:
    languages = _languages(body.languages, len(body.prompts))
    _check_lengths(prompts=body.prompts, responses_a=body.responses_a, responses_b=body.responses_b)
    limits.check_count("prompts:", len(body.prompts))
    limits.check_texts(prompts=body.prompts, responses_a=body.responses_a, responses_b=body.responses_b,
                       languages=languages)
    return list(map(Pair, body.prompts, body.responses_a, body.responses_b, languages))


def _languages(languages: list[str] | None, count: int) -> list[str]:
    if languages is not None and len(languages) != count:
        raise UserError(f"languages: there are {len(languages):,} for {count:,} items")
    return [UNKNOWN] * count if languages is None else languages


def _check_lengths(**fields: Sequence) -> None:
    if len(set(map(len, fields.values()))) > 1:
        raise UserError("lists of one length are needed, but there are "
                        + ", ".join(f"{len(values):,} {name}" for name, values in fields.items()))


def _examples() -> list[payloads.ExamplePrompt]:
    found = []
    for language, rows in sample.written().items():
        for row, other in pairwise(rows[: EXAMPLES + 1]):
            pair = sorted((row["chosen"], row["rejected"]), key=text_hash)  # in no telling order
            more = [other["chosen"], f"{row['chosen']} {other['chosen']}"]
            found.append(payloads.ExamplePrompt(language=language, prompt=row["prompt"], responses=pair + more))
    return found


def main(argv: list[str]) -> None:
    quiet_libraries()
    arguments = _parse(argv)
    limits = Limits(arguments.max_body, arguments.max_comparisons, arguments.max_characters, arguments.max_waiting,
                    arguments.timeout)
    name = arguments.model or newest_export()
    model = PreferenceModel.from_pretrained(name)
    token = arguments.token or os.environ.get("PM_TOKEN") or None
    app = create_app(model, name, limits, token, together=arguments.batching, cohort=arguments.cohort,
                     cohort_wait=arguments.cohort_wait, end_tokens=arguments.end_tokens)
    listener = _listen(arguments.host, arguments.port)
    host, port = listener.getsockname()[:2]
    if token is None and host not in ("::1", "127.0.0.1"):
        print(f"warning: anyone who reaches {host} may use this server; --token asks for a token", file=sys.stderr,
              flush=True)
    config = uvicorn.Config(app, http=patient(limits.body_timeout), ws="none", log_level="warning", access_log=False,
                            server_header=False, limit_concurrency=_most_connections(limits.connections),
                            backlog=limits.connections, timeout_keep_alive=KEEP_ALIVE,
                            timeout_graceful_shutdown=math.ceil(limits.timeout))
    print(f"serving {name} at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # uvicorn raises the signal anew when it has stopped
    uvicorn.Server(config).run([listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port} cannot be served at: {reason}") from None


def _most_connections(wanted: int) -> int:
    """Each takes a file; where files run out, uvicorn accepts none, and answers nothing."""
    spare = 200
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < wanted + spare:
        limit = wanted + spare if hard == resource.RLIM_INFINITY else min(wanted + spare, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return min(wanted, limit - spare)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pm.serve", description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", help="a run, an export or a hub id [the newest run that has an export]")
    add("--host", default="127.0.0.1", help="address to serve at [%(default)s]")
    add("--port", type=int, default=8000, help="0: any free one [%(default)s]")
    add("--token", help="bearer token that requests must have; in the environment variable PM_TOKEN other users of the "
                        "machine do not see it")
    add("--max_body", type=_positive, default=Limits.body, help="bytes of a request [%(default)s]")
    add("--max_comparisons", type=_positive, default=Limits.comparisons,
        help="comparisons, or texts to classify, of a request [%(default)s]")
    add("--max_characters", type=_positive, default=Limits.characters, help="characters of a text [%(default)s]")
    add("--max_waiting", type=_positive, default=Limits.waiting,
        help="comparisons of all requests that may wait; more are answered with 429 [%(default)s]")
    add("--timeout", type=_positive, default=Limits.timeout, help="seconds until an answer [%(default)s]")
    add("--cohort", type=int, default=0, metavar="N",
        help="in /get_reward, let a response that comes alone wait until N to its prompt have come: the "
             "--n_samples_per_prompt of OpenRLHF, which sends them one by one [they are refused]")
    add("--cohort_wait", type=_positive, default=60, metavar="SECONDS",
        help="for that long at most; then those that have come are compared [%(default)s]")
    add("--end_tokens", nargs="*", default=END_TOKENS, metavar="TOKEN",
        help=f"taken off the end of responses in /get_reward: the policy's eos and pad tokens [{' '.join(END_TOKENS)}]")
    add("--batching", action=argparse.BooleanOptionalAction, default=True,
        help="score requests that wait at the same time together")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


if __name__ == "__main__":
    run_main(main)
