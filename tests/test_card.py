"""The model card: metadata that the Hub takes, no section without content, and nothing that a name could break."""

import re

import pytest
import yaml
from markdown_it import MarkdownIt
from written import A, B, row, text

from pm.card import Facts, command, model_card, untrained_card
from pm.metrics import evaluation

SETTINGS = {"task": "preference", "labels": ["a", "b"], "tune": "lora", "merged": False, "base": "acme/base",
            "dtype": "bfloat16", "max_length": 512, "checkpoint": "step_000040", "step": 40,
            "calibration": {"temperature": 1.25, "languages": {"de": 1.5}, "rows": 300}}
CONFIG = {"model": "acme/base", "data": ["acme/pairs#train"], "lora_rank": 16, "lora_alpha": 32.0, "seed": 3,
          "train_embeddings": False, "orders": "both", "order_weight": 0.5, "consistency_weight": 0.0, "teacher": None}
ENVIRONMENT = {"command": ["train.py", "--local_rank=0", "--data", "/home/jo/my pairs.jsonl"], "commit": "abc+changes",
               "python": "3.11.7", "packages": {"torch": "2.13.0"}, "ranks": 2, "device": "NVIDIA H100"}
LANGUAGES = {"de": {"rows": 1200, "groups": 400}, "pt-br": {"rows": 30, "groups": 10},
             "und": {"rows": 200, "groups": 9}}
AUDIT = {"train": {"rows": 1430, "groups": 419, "languages": LANGUAGES,
                   "sources": {"acme/pairs": {"rows": 1430, "groups": 419}}},
         "test": {"rows": 60, "groups": 60, "languages": {"de": {"rows": 60, "groups": 60}},
                  "sources": {"acme/pairs": {"rows": 60, "groups": 60}}},
         "truncated": {"de": {"rows": 1260, "cut": 126, "share": 0.1}, "pt-br": {"rows": 30, "cut": 0, "share": 0.0}}}
ROWS = [row((1, 0), (1, 0) if number % 4 else (0, 3), A if number % 3 else B, group=str(number), language="de")
        for number in range(60)]


def facts(settings=None, config=None, **changes) -> Facts:
    values = {"title": "judge", "place": "", "settings": SETTINGS | (settings or {}), "config": CONFIG | (config or {}),
              "ds_config": {"train_batch_size": 64, "optimizer": {"params": {"lr": 1e-4}}, "bf16": {"enabled": True}},
              "environment": ENVIRONMENT, "licence": {"license": "cc-by-nc-4.0"}, "base": "acme/base",
              "datasets": ["acme/pairs"], "audit": AUDIT, "metrics": evaluation(ROWS)}
    return Facts(**(values | changes))


def parts(card: str) -> tuple[dict, str]:
    _, front, page = card.split("---\n", 2)
    return yaml.safe_load(front), page


def section(page: str, title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)[1]


def test_metadata_is_that_of_the_hub():
    front, _ = parts(model_card(facts()))
    result, = front.pop("model-index")
    assert front == {
        "language": ["de", "pt"], "license": "cc-by-nc-4.0", "base_model": "acme/base",
        "base_model_relation": "adapter", "library_name": "peft", "pipeline_tag": "text-classification",
        "tags": ["cohere2", "preference-model", "reward-model", "lora"], "datasets": ["acme/pairs"],
        "metrics": ["accuracy"]}
    assert result["name"] == "judge"
    metric, = result["results"][0]["metrics"]
    assert metric["type"] == "accuracy" and metric["value"] == round(evaluation(ROWS)["overall"]["accuracy"], 4)


def test_a_merged_model_is_one_of_transformers_and_tells_its_drift():
    drift = {"rows": 400, "largest": 0.25, "mean": 0.003, "flipped": 2, "of": "the test split"}
    front, page = parts(model_card(facts({"merged": True, "drift": drift})))
    assert front["library_name"] == "transformers" and front["base_model_relation"] == "finetune"
    merging = section(page, "Merging")
    assert "on 400 rows of the test split" in merging and "2 verdicts (0.5%) change" in merging
    assert "Measured before merging" in section(page, "Evaluation") and "PeftModel" not in page


def test_what_was_measured_and_what_limits_it():
    _, page = parts(model_card(facts()))
    limits = section(page, "Limits")
    assert "25.0% of the verdicts depend on which response stands first" in limits
    assert r"Languages with few training rows: pt-br (30)." in limits
    assert "Languages with fewer than 50 test rows, of which little is known: pt-br, und." in limits
    assert "9.8% of the rows were longer than 512 tokens" in limits
    assert "temperatures" not in limits and "1.250" in section(page, "How to use it")
    assert "| the longer response | 0.500 |" in section(page, "Evaluation")
    assert "cc-by-nc-4.0. The base is acme/base" in section(page, "Licence")


def test_the_command_shows_no_folder_of_the_machine():
    _, page = parts(model_card(facts()))
    assert "deepspeed train.py --data 'my pairs.jsonl'" in page and "/home/jo" not in page
    assert "abc and changes that are in no commit" in page and "2 x NVIDIA H100" in page


@pytest.mark.parametrize(("words", "wanted"), [
    (["train.py", "--seed", "3"], "python train.py --seed 3"),
    (["/home/jo/src/train.py", "--local_rank=1", "--data", "~/a b.jsonl"], "deepspeed train.py --data 'a b.jsonl'"),
    (["/home/jo/src/pm/pretrain.py", "--data", "/d/en.txt"], "python -m pm.pretrain --data en.txt"),
    (["/home/jo/src/pm/pretrain.py", "--local_rank=0"], "deepspeed --module pm.pretrain"),
])
def test_a_command_is_one_that_can_be_given_again(words, wanted):
    assert command(words) == wanted


def test_no_section_is_empty_where_little_is_known():
    card = model_card(facts({"calibration": {}}, audit=None, metrics=None, base="", licence={}, datasets=(),
                            environment={}))
    front, page = parts(card)
    assert front["license"] == "unknown" and not front.keys() & {"language", "base_model", "datasets", "model-index"}
    titles = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert titles == ["How to use it", "Training", "Limits", "Licence"]
    assert all(section(page, title).strip() for title in titles)
    assert "It was not evaluated" in page and "Unknown: none was stated." in page and "None" not in page


def test_a_classifier_is_described_as_one():
    rows = [text("neg" if number % 2 else "pos", "neg", group=str(number)) for number in range(40)]
    card = model_card(facts({"task": "classification", "labels": ["neg", "neu", "pos", "odd"]}, {"orders": None},
                            metrics=evaluation(rows)))
    front, page = parts(card)
    assert front["metrics"] == ["accuracy", "f1"] and "preference-model" not in front["tags"]
    assert "Classes: neg, neu, pos, odd." in page and "model.classify(" in page and "order" not in page.lower()


HOSTILE = "a|b\n# c `d` *e* _f_ [g](http://h) <b>i</b> & ---"


def test_names_of_a_user_are_text_and_nothing_else():
    audit = AUDIT | {"train": AUDIT["train"] | {"sources": {HOSTILE: {"rows": 1, "groups": 1}}}}
    environment = ENVIRONMENT | {"command": ["train.py", "--data", "a```b\n# c"]}
    card = model_card(facts(title=HOSTILE, place='x"y/z', audit=audit, environment=environment,
                            licence={"license": "other", "license_name": "n: [x\n---"}))
    front, page = parts(card)
    assert front["license_name"] == "n: [x\n---" and front["model-index"][0]["name"] == HOSTILE
    tokens = MarkdownIt("commonmark").enable("table").parse(page)
    inline = [token for token in tokens if token.type == "inline"]
    one_line = " ".join(HOSTILE.split())
    shown = ["".join(child.content for child in token.children) for token in inline]
    assert shown[0] == one_line and one_line in shown[1:]
    kinds = {child.type for token in inline for child in token.children}
    assert not kinds & {"html_inline", "link_open", "em_open"}
    assert sum(token.type == "heading_open" and token.tag == "h1" for token in tokens) == 1
    fences = [token.content for token in tokens if token.type == "fence"]
    assert any("a```b" in content for content in fences)


@pytest.mark.parametrize(("base", "licence"), [("acme/base", {"license": "mit"}), ("", {})])
def test_an_untrained_base_says_that_it_is(base, licence):
    front, page = parts(untrained_card("start", base, ["a", "b"], licence))
    assert front["license"] == licence.get("license", "unknown") and front.get("base_model", "") == base
    assert "nothing is trained" in page and ("of acme/base" in page) == bool(base)
