"""The server, run by uvicorn on a free port, with a small random model."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from serving import Running, start
from tiny import NAMES, TWO, export

from pm.predict import PreferenceModel
from pm.serve import create_app
from pm.service import Limits
from pm.task import CLASSIFICATION, PREFERENCE

LIMITS = Limits(body=100_000, comparisons=50, characters=5_000, body_timeout=1.0, timeout=20.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return PreferenceModel.from_pretrained(export(tmp_path_factory.mktemp("export"), PREFERENCE, TWO), "cpu")


@pytest.fixture(scope="module")
def url(model):
    running = Running(create_app(model, "tiny", LIMITS, cohort=3, cohort_wait=5.0))
    yield running.url
    running.stop()


def post(url: str, path: str, body, status: int = 200) -> dict:
    answer = httpx.post(url + path, json=body, timeout=30)
    assert answer.status_code == status, answer.text
    return answer.json()


TRIPLE = {"prompt": "hello", "response_a": "the fox", "response_b": "lazy dog"}


def test_one_triple_is_answered_as_the_model_says(model, url):
    found = post(url, "/compare", TRIPLE)
    row, = model.predictions(["hello"], ["the fox"], ["lazy dog"])
    assert found["probability"] == pytest.approx(row["probability"], abs=1e-5)
    assert found["order_sensitivity"] == pytest.approx(abs(found["probability_ab"]["a"] - found["probability_ba"]["a"]))
    assert (found["equal"], found["tokens"], found["tokens_cut"]) == (False, row["tokens"], 0)


def test_lists_are_answered_in_order_from_many_clients_at_once(model, url):
    prompts = [f"say {number}" for number in range(40)]
    ones, others = [f"fox {number}" for number in range(40)], [f"{number} dogs" for number in range(40)]
    wanted = [row["a"] for row in model.compare(prompts, ones, others)]

    async def ask_all() -> list:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            return await asyncio.gather(*(client.post("/compare", json={
                "prompts": prompts[at : at + 5], "responses_a": ones[at : at + 5], "responses_b": others[at : at + 5],
            }) for at in range(36)))

    for at, answer in enumerate(asyncio.run(ask_all())):
        found = [one["probability"]["a"] for one in answer.json()["results"]]
        assert found == pytest.approx(wanted[at : at + 5], abs=1e-5)


@pytest.mark.parametrize("method", ["full", "bradley_terry", "knockout"])
def test_a_ranking_is_the_models(model, url, method):
    responses = ["the fox", "lazy dog", "0 1 2", "hello hello", "quick"]
    found, wanted = post(url, "/rank", {"prompt": "say", "responses": responses, "method": method}), model.rank(
        "say", responses, method)
    assert found["order"] == wanted.order
    assert [one["score"] for one in found["responses"]] == pytest.approx(wanted.scores, abs=1e-4)
    assert found["comparisons"] == wanted.comparisons


def test_rewards_for_openrlhf_are_against_the_label_or_the_cohort(model, url):
    found = post(url, "/get_reward", {"query": ["<s>say the fox</s>", "<s>say 0 1</s>", "<s>hi quick"],
                                      "prompts": ["say ", "say ", "hi "], "labels": ["", None, "dog"]})
    pair, label = model.compare(["say ", "hi "], ["the fox", "quick"], ["0 1", "dog"])
    assert found["rewards"] == pytest.approx([pair["a"], pair["b"], label["a"]], abs=1e-5)
    assert found["scores"] == found["rewards"]
    assert post(url, "/get_reward", {"query": [], "prompts": [], "labels": []})["rewards"] == []


def test_responses_that_come_alone_wait_for_their_cohort(model, url):
    responses = ["the fox", "0 1", "lazy"]

    async def ask_all() -> list:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            return await asyncio.gather(*(client.post("/get_reward", json={
                "query": [f"say {text}"], "prompts": ["say "], "labels": [""]}) for text in responses))

    found = [answer.json()["rewards"][0] for answer in asyncio.run(ask_all())]
    assert found == pytest.approx(model.rank("say ", responses).scores, abs=1e-5)


def test_nemo_gyms_body(model, url):
    objects = [{"output": [{"type": "message", "content": [{"type": "output_text", "text": text}]}]}
               for text in ("the fox", "0 1")]
    found = post(url, "/compare", {"conversation_history": [{"role": "user", "content": "say"}],
                                   "response_objs": objects, "principle": None})
    wanted, = model.compare(["say"], ["the fox"], ["0 1"])
    assert found["rewards"] == pytest.approx([wanted["a"], wanted["b"]], abs=1e-5)
    assert found["metrics"]["comparisons"] == 1


@pytest.mark.parametrize(("path", "body", "status", "words"), [
    ("/compare", b'{"prompt": NaN}', 422, "NaN is not a number"),
    ("/compare", b'{"prompt": "x", "prompt": "y"}', 422, "stands twice"),
    ("/compare", b"[" * 50_000, 422, "nested too deeply"),
    ("/compare", b"{", 422, "not JSON"),
    ("/compare", b"\xff", 422, "not UTF-8"),
    ("/compare", json.dumps(TRIPLE | {"response_b": "\ud800"}).encode(), 422, "response_b: it is not UTF-8"),
    ("/compare", json.dumps(TRIPLE | {"respons": "x"}).encode(), 422, "respons: Extra inputs"),
    ("/compare", json.dumps(TRIPLE | {"\ud800": "x"}).encode(), 422, "valid string"),
    ("/compare", json.dumps(TRIPLE | {"response_a": "x" * 5_001}).encode(), 422, "response_a has 5,001 characters"),
    ("/compare", b'{"prompts": ["x"], "responses_a": [5], "responses_b": ["y"]}', 422, "responses_a[0]: Input"),
    ("/rank", json.dumps({"prompt": "x", "responses": ["y"] * 10_000}).encode(), 422, "at most 50 are allowed"),
    ("/rank", b'{"prompt": "x", "responses": []}', 422, "no responses to rank"),
    ("/classify", b'{"texts": ["x"]}', 422, "it does not classify"),
    ("/get_reward", b'{"query": ["x"], "prompts": ["y"]}', 422, "does not hold prompts[0]"),
    ("/compare", b'"' + b"x" * 10_000_000, 413, "more than 100,000 bytes"),
    ("/nothing", b"{}", 404, "Not Found"),
])
def test_what_is_wrong_is_told_and_nothing_dies(url, path, body, status, words):
    answer = httpx.post(url + path, content=body, headers={"content-type": "application/json"}, timeout=30)
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert httpx.get(url + "/health").json() == {"status": "ok"}


@pytest.mark.parametrize("sent", [b"POST /compare HTTP/1.1\r\nHost: x", b"POST /compare HTTP/1.1\r\nHost: x\r\n"
                                  b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{"])
def test_slow_clients_are_let_go(url, sent):
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 10) as client:
        client.sendall(sent)
        answer = client.recv(1000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")


def test_a_token_is_asked_for(model):
    running = Running(create_app(model, "tiny", LIMITS, "secret"))
    try:
        assert httpx.post(running.url + "/compare", json=TRIPLE).status_code == 401
        assert httpx.get(running.url + "/health").status_code == 200
        for token, status in (("secret", 200), ("secre", 401)):
            answer = httpx.post(running.url + "/compare", json=TRIPLE, headers={"authorization": f"Bearer {token}"})
            assert answer.status_code == status
    finally:
        running.stop()


def test_the_page_and_its_parts_are_served(url):
    assert "Which response is better?" in httpx.get(url + "/").text
    assert len({one["language"] for one in httpx.get(url + "/examples").json()}) == 23
    assert 'pm_requests_total{path="/compare",status="200"}' in httpx.get(url + "/metrics").text
    assert "/get_reward" in httpx.get(url + "/openapi.json").json()["paths"]


def test_a_model_that_classifies(tmp_path):
    model = PreferenceModel.from_pretrained(export(tmp_path, CLASSIFICATION, NAMES), "cpu")
    running = Running(create_app(model, "tiny", LIMITS))
    try:
        found = post(running.url, "/classify", {"texts": ["the fox", ["hello", "dog"]]})["results"]
        for one, wanted in zip(found, model.classify(["the fox", ("hello", "dog")]), strict=True):
            assert one == pytest.approx(wanted, abs=1e-5)
        assert "compares no responses" in post(running.url, "/compare", TRIPLE, 422)["error"]
    finally:
        running.stop()


def test_more_than_may_wait_is_told_to_come_again(model):
    running = Running(create_app(model, "tiny", Limits(comparisons=50, waiting=20)))
    many = {name: [f"{name} {number} " * 10 for number in range(15)] for name in ("prompts", "responses_a",
                                                                                  "responses_b")}

    async def ask_all() -> list:
        async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
            return await asyncio.gather(*(client.post("/compare", json=many) for _ in range(30)))

    try:
        answers = asyncio.run(ask_all())
        assert {answer.status_code for answer in answers} == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert "too much is waiting" in refused.json()["error"]
        assert post(running.url, "/compare", TRIPLE)["equal"] is False
    finally:
        running.stop()


ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_answers_are_those_of_eval(tmp_path):
    folder = export(tmp_path / "export", PREFERENCE, TWO, {"calibration": {
        "temperature": 2.0, "languages": {"de": 0.5}, "rows": 9}})
    rows = [{"id": str(number), "prompt": f"say {number}", "response_a": "the fox " * (1 + number % 30),
             "response_b": f"lazy {number}", "winner": "a", "language": ["en", "de"][number % 2]}
            for number in range(60)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    subprocess.run([sys.executable, "eval.py", "--model", folder, "--data", data, "--output", tmp_path / "evaluation",
                    "--cache_dir", tmp_path / "cache", "--no_response_only"], cwd=ROOT, check=True, capture_output=True)
    lines = (tmp_path / "evaluation" / "predictions.jsonl").read_text().splitlines()
    wanted = {row["id"]: row["probability"] for row in map(json.loads, lines)}
    process, url = start(folder)
    try:
        found = post(url, "/compare", {
            "prompts": [row["prompt"] for row in rows], "responses_a": [row["response_a"] for row in rows],
            "responses_b": [row["response_b"] for row in rows], "languages": [row["language"] for row in rows]})
        for row, one in zip(rows, found["results"], strict=True):
            assert one["probability"] == pytest.approx(wanted[row["id"]], abs=1e-5)
    finally:
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.slow
def test_hostile_requests_beside_good_ones(tmp_path):
    """Clients that send nonsense, never end a request or leave before the answer; then the server stops with a request
    in work, which is answered."""
    folder = export(tmp_path, PREFERENCE, TWO)
    process, url = start(folder, "--max_body", "1000000")
    model = PreferenceModel.from_pretrained(folder, "cpu")
    lists = {name: ["x"] * 10_000 for name in ("prompts", "responses_a", "responses_b")}
    hostile = [b"x" * 2_000_000, b"[" * 100_000, b"\xff\xfe", b"", b'{"prompt": NaN}',
               *(json.dumps(body).encode() for body in (["x"] * 10_000, lists, TRIPLE | {"prompt": "\ud800"},
                                                        TRIPLE | {"response_a": "x" * 200_000}))]
    seen = set()

    async def nonsense(client: httpx.AsyncClient, body: bytes) -> None:
        answer = await client.post("/compare", content=body, headers={"content-type": "application/json"})
        seen.add(answer.status_code)

    async def good(client: httpx.AsyncClient, number: int) -> float:
        answer = await client.post("/compare", json=TRIPLE | {"prompt": f"say {number}"})
        return answer.json()["probability"]["a"]

    async def leaves(number: int) -> None:
        body = json.dumps(TRIPLE | {"prompt": f"leave {number}"}).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"POST /compare HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
                     + str(len(body) if number % 2 else 10 * len(body)).encode() + b"\r\n\r\n" + body)
        await writer.drain()
        if number % 2:
            writer.close()

    async def all_at_once() -> list[float]:
        limits = httpx.Limits(max_connections=50)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            *answers, = await asyncio.gather(
                *(good(client, number) for number in range(60)), *(leaves(number) for number in range(40)),
                *(nonsense(client, body) for body in 30 * hostile))
        return answers[:60]

    try:
        found = asyncio.run(all_at_once())
        prompts = [f"say {number}" for number in range(60)]
        wanted = model.compare(prompts, ["the fox"] * 60, ["lazy dog"] * 60)
        assert found == pytest.approx([one["a"] for one in wanted], abs=1e-5)
        assert seen == {413, 422}
        assert httpx.get(url + "/health").json() == {"status": "ok"}
        many = {"prompts": prompts * 10, "responses_a": ["the fox " * 20] * 600, "responses_b": ["lazy dog"] * 600}
        with httpx.Client(base_url=url, timeout=60) as client:
            request = client.build_request("POST", "/compare", json=many)
            process_stops = asyncio.run(_terminated_while(process, client, request))
        assert process_stops == 600
        assert process.wait(60) == 0
    finally:
        process.kill()


async def _terminated_while(process: subprocess.Popen, client: httpx.Client, request: httpx.Request) -> int:
    """How many results come when the process is told to stop while it works on them."""
    answer = asyncio.create_task(asyncio.to_thread(client.send, request))
    await asyncio.sleep(0.5)
    assert not answer.done()
    process.send_signal(signal.SIGTERM)
    return len((await answer).json()["results"])
