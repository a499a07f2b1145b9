"""The bodies of requests and of answers: ours, OpenRLHF's and NeMo-Gym's. Pure but for pydantic."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    WithJsonSchema,
)

from pm.data.example import ROLES
from pm.data.forms import prompt_turns, storable
from pm.data.languages import UNKNOWN
from pm.errors import UserError
from pm.ranking import METHODS

TURNS = {"type": "array", "items": {"type": "object", "required": ["role", "content"], "properties": {
    "role": {"enum": list(ROLES)}, "content": {"type": "string"}}}}


# What pydantic puts into the place of an error beside the names of fields.
UNNAMED = ("body", "Triple", "Triples", "Responses", "text", "pair")


def _prompt(value: Any) -> str | list[dict]:
    return storable(value, "it") if isinstance(value, str) else prompt_turns(value, "it")


def _text(value: str) -> str:
    return storable(value, "it")


Text = Annotated[str, AfterValidator(_text)]
Prompt = Annotated[Any, PlainValidator(_prompt), WithJsonSchema({
    "anyOf": [{"type": "string"}, TURNS], "description": "text, or turns of which the last one is the user's"})]
Turns = Annotated[Any, PlainValidator(_prompt), WithJsonSchema(TURNS)]


class Ours(BaseModel):
    """A key that is not known is a mistake."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Theirs(BaseModel):
    """Other programs may send more than is read."""

    model_config = ConfigDict(extra="ignore", strict=True)


# Requests


class Triple(Ours):
    prompt: Prompt
    response_a: Text
    response_b: Text
    language: Text = UNKNOWN
    texts: bool = Field(False, description="whether the answer holds the texts as the model reads them")


class Triples(Ours):
    prompts: list[Prompt]
    responses_a: list[Text]
    responses_b: list[Text]
    languages: list[Text] | None = None


class Responses(Theirs):
    """NeMo-Gym's body. The principle is not read: this model follows none."""

    conversation_history: Turns
    response_objs: list[dict[str, Any]] = Field(description="objects of OpenAI's Responses API")
    principle: str | None = None


def _kind(body: Any) -> str:
    keys = body if isinstance(body, dict) else {}
    return "Responses" if "conversation_history" in keys or "response_objs" in keys else (
        "Triples" if "prompts" in keys else "Triple")


CompareBody = Annotated[Annotated[Triple, Tag("Triple")] | Annotated[Triples, Tag("Triples")]
                        | Annotated[Responses, Tag("Responses")], Discriminator(_kind)]


class RankBody(Ours):
    prompt: Prompt
    responses: list[Text]
    method: Literal[METHODS] = METHODS[0]
    language: Text = UNKNOWN


class ClassifyBody(Ours):
    texts: list[Annotated[
        Annotated[Text, Tag("text")] | Annotated[list[Text], Field(min_length=2, max_length=2), Tag("pair")],
        Discriminator(lambda value: "pair" if isinstance(value, list) else "text")]] = Field(
            description="texts, or pairs of texts")
    languages: list[Text] | None = None


class RewardBody(Theirs):
    """OpenRLHF's body. A query is the prompt and the response as the policy's tokenizer decodes them."""

    query: list[Text]
    prompts: list[Text]
    labels: list[Text | None] | None = Field(None, description="a reference response for each, or null or empty")


# Answers


class TextsRead(BaseModel):
    prompt: str
    response_a: str
    response_b: str


class Verdict(BaseModel):
    probability: dict[str, float] = Field(description="calibrated, averaged over both orders")
    probability_ab: dict[str, float] = Field(description="read in the order A, B")
    probability_ba: dict[str, float] = Field(description="read in the order B, A; the classes are still those of A, B")
    order_sensitivity: float = Field(description="by how much the probability of a differs between the orders")
    flips: bool = Field(description="whether the verdict changes with the order")
    equal: bool = Field(description="both responses are the same, or their kept parts are: a tie without a look")
    language: str
    temperature: float
    tokens: int
    tokens_cut: int
    read: TextsRead | None = None


class Verdicts(BaseModel):
    results: list[Verdict]


class Comparison(BaseModel):
    """As NeMo-Gym names it: scores are probabilities of being better, a ranking goes from 1 (the first one is better)
    to 6."""

    response_i: int
    response_j: int
    judge_idx: int = 0
    score_1: float
    score_2: float
    ranking: float


class WinRates(BaseModel):
    rewards: list[float]
    comparison_results: list[Comparison]
    metrics: dict[str, float]


class Place(BaseModel):
    place: int = Field(description="1 for the best")
    score: float
    error: float | None = Field(description="standard error, of the method bradley_terry")


class Ranked(BaseModel):
    order: list[int] = Field(description="numbers of the responses, best first")
    responses: list[Place] = Field(description="in the order given")
    method: str
    comparisons: int = Field(description="pairs that were compared, each in both orders")
    flips: int = Field(description="of them, those whose verdict changes with the order")
    cut: int = Field(description="of them, those whose texts were cut")


class Classes(BaseModel):
    results: list[dict[str, float]]


class Rewards(BaseModel):
    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


class ExamplePrompt(BaseModel):
    language: str
    prompt: str
    responses: list[str]


class Failure(BaseModel):
    error: str


# From one to the other


def output_text(response: dict) -> str:
    """The text in an object of OpenAI's Responses API, without its reasoning. `UserError` where there is none."""
    try:
        parts = [part["text"] for item in response["output"] if item.get("type") == "message"
                 for part in item["content"] if part.get("type") == "output_text"]
        return storable("".join(parts), "output")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError("response_objs: each must hold output, a list of messages with content of the type output_text"
                        + (f"; {error}" if isinstance(error, ValueError) else "")) from None


def response_of(query: str, prompt: str, number: int, end_tokens: Sequence[str]) -> str:
    """What stands behind the prompt in a query, without the policy's end and pad tokens."""
    place = query.find(prompt)
    if place < 0:
        raise UserError(f"query[{number}] does not hold prompts[{number}], so that its response is not known")
    response = query[place + len(prompt) :]
    while ends := [token for token in end_tokens if response.endswith(token)]:
        response = response.removesuffix(ends[0])
    return response


def reward_pairs(prompts: Sequence[str], labels: Sequence[str | None]) -> list[tuple[int, int | None]]:
    """What each response is compared with: its label (i, None), or all others without one to the same prompt (i, j)."""
    pairs: list[tuple[int, int | None]] = [(number, None) for number, label in enumerate(labels) if label]
    cohorts: dict[str, list[int]] = {}
    for number, (prompt, label) in enumerate(zip(prompts, labels, strict=True)):
        if not label:
            cohorts.setdefault(prompt, []).append(number)
    for cohort in cohorts.values():
        if len(cohort) == 1:
            raise UserError(f"labels[{cohort[0]}] holds no reference, and no other response to the same prompt came "
                            f"with it: there is nothing to compare it with")
        pairs += combinations(cohort, 2)
    return pairs


def means(count: int, pairs: Sequence[tuple[int, int | None]], values: Iterable[float],
          opposite: bool = False) -> list[float]:
    """Of each of `count` responses the mean of the values of its pairs (i, j): of i as they are, of j too, or with
    `opposite` as 1 - value. Of probabilities of being better that is a win rate. 0.5 for one in no pair."""
    total, times = [0.0] * count, [0] * count
    for (i, j), value in zip(pairs, values, strict=True):
        total[i] += value
        times[i] += 1
        if j is not None:
            total[j] += 1 - value if opposite else value
            times[j] += 1
    return [total / times if times else 0.5 for total, times in zip(total, times, strict=True)]
