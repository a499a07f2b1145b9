"""The server, run by uvicorn on a free port, with a small random model."""

import asyncio
import json
import socket
import threading
import time

import httpx
import pytest
import uvicorn
from tiny import TWO, export

from pm.gate import patient
from pm.predict import PreferenceModel
from pm.serve import create_app
from pm.service import Limits
from pm.task import PREFERENCE

LIMITS = Limits(body=100_000, comparisons=50, characters=5_000, body_timeout=1.0, timeout=20.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return PreferenceModel.from_pretrained(export(tmp_path_factory.mktemp("export"), PREFERENCE, TWO), "cpu")


class Running:
    def __init__(self, app):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self.server = uvicorn.Server(uvicorn.Config(app, http=patient(1.0), ws="none", log_level="warning"))
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


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
