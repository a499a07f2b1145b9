"""The model card: facts of a run to a page of Markdown with the metadata that the Hub reads. Pure."""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from huggingface_hub import EvalResult, ModelCardData

from pm import report

SMALL_LANGUAGE = 100  # training rows below which a language is named among the limits
SMALL_TEST = 50  # test rows below which an accuracy says little
FEW_GROUPS = 30  # groups of prompts below which an interval is itself uncertain
LISTED = 40  # lines of a table
MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&$!])")
BLOCKS = ("Overall", "Shortcuts", "Language", "Classes")
UNKNOWN_LICENCE = "unknown"
OWN_BASES = {"base": "the small model that comes with preference-model",
             "small-random": "a small Cohere 2 with random weights"}

GENERAL = {
    "preference": (
        "It says which response the labels of its training data would prefer, not which one is true, safe or lawful. "
        "It is no filter for harmful content and no ground for decisions about people.",
        "As a reward it will be exploited: what is trained against it finds what it likes, such as length. Watch the "
        "shortcuts above, and judge the result by something else.",
    ),
    "classification": (
        "It says which class the labels of its training data would give, not what is true. It is no ground for "
        "decisions about people.",
    ),
}


@dataclass(frozen=True)
class Facts:
    """What a card tells of a run. The dicts are those of the files: `settings` preference.json, `config` config.json,
    `ds_config`, `environment` and `audit` (None where there is none), `metrics` those of the test split, or None.

    `place` is what the code of the card loads: a hub id, or "" for the folder of the export. `base` is the hub id of
    the base model, "" for one of the user's own. `licence`: "license", and "license_name", "license_link" where it is
    `other`. `datasets` are those on the Hub.
    """

    title: str
    place: str
    settings: dict
    config: dict
    ds_config: dict
    environment: dict
    licence: dict = field(default_factory=dict)
    base: str = ""
    datasets: Sequence[str] = ()
    audit: dict | None = None
    metrics: dict | None = None

    @property
    def compares(self) -> bool:
        return self.settings["task"] == "preference"

    @property
    def adapter(self) -> bool:
        return self.settings["tune"] == "lora" and not self.settings.get("merged")


def model_card(facts: Facts) -> str:
    """The whole README.md."""
    sections = {"How to use it": _usage(facts), "Evaluation": _evaluation(facts), "Training data": _data(facts),
                "Training": _training(facts), "Merging": _merging(facts), "Limits": _limits(facts),
                "Licence": _licence(facts)}
    lines = [f"# {_text(facts.title)}", "", _introduction(facts)]
    for title, part in sections.items():
        content = list(part)
        lines += ["", f"## {title}", "", *content] if content else []
        lines = lines[:-1] if not lines[-1] else lines
    return f"---\n{_metadata(facts)}\n---\n\n" + "\n".join(lines) + "\n"


def untrained_card(title: str, base: str, labels: Sequence[str], licence: dict) -> str:
    """README.md of a base whose score head is new. `base` is a hub id or ""."""
    data = ModelCardData(base_model=base or None, library_name="transformers", pipeline_tag="text-classification",
                         tags=["cohere2", "untrained"], **({"license": UNKNOWN_LICENCE} | licence))
    of = f" of {_text(base)}" if base else ""
    return (f"---\n{data.to_yaml()}\n---\n\n# {_text(title)}\n\nThe backbone{of} with a new score head for the "
            f"classes {_names(labels)}. **The head is zero: nothing is trained, every verdict is even odds.** It is "
            "the start of a training run:\n\n```bash\ndeepspeed train.py --deepspeed_config DS_CONFIG --model "
            "THIS_FOLDER_OR_HUB_ID --data DATA\n```\n\n```python\nimport pm  # registers the class\nfrom transformers "
            "import AutoModelForSequenceClassification\n\nmodel = AutoModelForSequenceClassification.from_pretrained("
            "\"THIS_FOLDER_OR_HUB_ID\")\n```\n")


def _metadata(facts: Facts) -> str:
    overall = (facts.metrics or {}).get("overall", {})
    results = [EvalResult(task_type="text-classification", dataset_type=(*facts.datasets, "held-out")[0],
                          dataset_name=f"held-out rows of the training data (n = {overall['n']:,})",
                          dataset_split="test", metric_type=kind, metric_name=name, metric_value=round(overall[key], 4))
               for key, kind, name in (("accuracy", "accuracy", "accuracy"), ("macro_f1", "f1", "macro-F1"))
               if overall.get(key) is not None]
    relation = {"base_model": facts.base, "base_model_relation": "adapter" if facts.adapter else "finetune"}
    return ModelCardData(
        language=_codes(facts) or None, library_name="peft" if facts.adapter else "transformers",
        pipeline_tag="text-classification", datasets=list(facts.datasets) or None,
        metrics=[result.metric_type for result in results] or None, model_name=facts.title,
        eval_results=results or None,
        tags=["cohere2", *(["preference-model", "reward-model"] if facts.compares else []),
              *(["lora"] if facts.settings["tune"] == "lora" else [])],
        **({"license": UNKNOWN_LICENCE} | facts.licence), **(relation if facts.base else {})).to_yaml()


def _codes(facts: Facts) -> list[str]:
    """The languages as the Hub knows them: two or three letters."""
    codes = (language.split("-")[0] for language in _languages(facts))
    return list(dict.fromkeys(code for code in codes if re.fullmatch("[a-z]{2,3}", code) and code != "und"))


def _languages(facts: Facts) -> list[str]:
    return list(facts.audit["train"]["languages"]) if facts.audit else []


def _introduction(facts: Facts) -> str:
    known = len(_codes(facts))
    languages = f", in {known} languages" if known > 1 else ""
    what = ("A preference model: it reads a prompt and two responses, and says which response is better, and with what "
            f"probability{languages}." if facts.compares else
            f"A classifier of texts{languages}. Classes: {_names(facts.settings['labels'])}.")
    body = "LoRA adapter and the score head; the base is needed beside them" if facts.adapter else "whole model"
    return f"{what} It is a Cohere 2 backbone with a linear score head on the last token. Here is the {body}."


# Use


def _usage(facts: Facts) -> Iterator[str]:
    settings, labels = facts.settings, facts.settings["labels"]
    yield "With the package `preference-model` (the module `pm`) installed:"
    call = ('model.compare(["What is the capital of Australia?"], ["Canberra."], ["Sydney."])' if facts.compares else
            'model.classify(["Guten Morgen"])')
    yield from _code("python", ["from pm import PreferenceModel", "",
                                f"model = PreferenceModel.from_pretrained({_place(facts)})",
                                f"print({call})  # {_example(labels)}"])
    yield f"The model by the Auto class{' and plain PEFT' if facts.adapter else ''}:"
    yield from _code("python", _loading(facts))
    yield ("It reads ids. A sequence has the control tokens below around texts that are tokenised without any; "
           + ("it is read in both orders, and the logits are averaged:" if facts.compares else "here a text:"))
    yield from _code("python", _reading(facts, list(labels)))
    temperature = settings.get("calibration", {}).get("temperature", 1.0)
    if settings.get("calibration", {}).get("rows"):
        yield (f"Logits are to be divided by a temperature, {temperature:.3f} or that of the language in "
               "`preference.json`, before they become probabilities; `pm` does so.")


def _place(facts: Facts) -> str:
    return json.dumps(facts.place or "path/to/this/folder", ensure_ascii=False)


def _loading(facts: Facts) -> Iterator[str]:
    yield "import pm  # registers Cohere2ForSequenceClassification"
    if facts.place and facts.adapter:
        yield "from huggingface_hub import snapshot_download"
    if facts.adapter:
        yield "from peft import PeftModel"
    yield (f"from transformers import {'AutoConfig, ' if facts.adapter else ''}AutoModelForSequenceClassification, "
           "AutoTokenizer")
    yield ""
    yield f"folder = {f'snapshot_download({_place(facts)})' if facts.place and facts.adapter else _place(facts)}"
    if facts.adapter:
        base = 'f"{folder}/base"' if facts.settings["base"] == "base" else f'"{facts.base or "path/to/the/base"}"'
        yield "config = AutoConfig.from_pretrained(folder)  # has the classes"
        yield f"model = AutoModelForSequenceClassification.from_pretrained({base}, config=config)"
        yield "model = PeftModel.from_pretrained(model, folder).eval()"
    else:
        yield "model = AutoModelForSequenceClassification.from_pretrained(folder).eval()"


def _reading(facts: Facts, labels: Sequence[str]) -> Iterator[str]:
    yield from ["import torch", "from pm.encoding import Template", "",
                "tokenizer = AutoTokenizer.from_pretrained(folder)", "template = Template.of(tokenizer)", "",
                "def ids(text):", "    return tokenizer(text, add_special_tokens=False).input_ids", "",
                "def logits(*responses):",
                "    sequence = template.sequence(template.turn(\"user\", prompt), *responses)",
                "    with torch.no_grad():",
                "        return model(torch.tensor([sequence], device=model.device)).logits[0]", ""]
    if not facts.compares:
        yield from ['prompt = ids("Guten Morgen")', "print(logits())"]
        return
    back = [1, 0, *range(2, len(labels))]
    yield from ['prompt, a, b = ids("What is the capital of Australia?"), ids("Canberra."), ids("Sydney.")',
                f"print((logits(a, b) + logits(b, a)[{back}]) / 2)  # {', '.join(labels)}"]


def _example(labels: Sequence[str]) -> str:
    shown = [f"{label!r}: ..." for label in labels[:3]]
    return f"[{{{', '.join([*shown, *(['...'] if labels[3:] else [])])}}}]"


# Numbers


def _evaluation(facts: Facts) -> Iterator[str]:
    if not facts.metrics:
        return
    overall = facts.metrics["overall"]
    yield (f"On {overall['n']:,} rows in {overall['n_groups']:,} groups of prompts, none of which was trained on. "
           "Intervals are of 95 %, from resampling groups."
           + (" Both orders of the responses are read and averaged." if facts.compares else "")
           + (" Measured before merging (see there)." if "drift" in facts.settings else ""))
    yield ""
    yield from (f"- {_text(sentence)}" for sentence in report.verdicts(facts.metrics))
    for block in report.blocks(facts.metrics, {}):
        if block.title in BLOCKS and block.table and block.table.lines:
            yield from ["", f"### {block.title}", "", *table_lines(*block.table)]
            note = block.note or (_legend(overall) if block.title == "Language" and facts.compares else "")
            yield from ["", _text(note)] if note else []


def _legend(overall: dict) -> str:
    beside = [title for name, title in report.BESIDE if name in overall["shortcuts"]]
    return report.LEGEND.format(beside=", ".join(beside), these="accuracy of these shortcuts") + "."


def _data(facts: Facts) -> Iterator[str]:
    audit = facts.audit
    if not audit:
        return
    train, test = audit["train"], audit.get("test")
    held_out = facts.settings.get("calibration", {}).get("rows", 0)
    parts = [f"{train['rows']:,} rows to train on, in {train['groups']:,} groups of prompts"]
    parts += [f"{held_out:,} to fit temperatures on"] if held_out else []
    parts += [f"{test['rows']:,} to test on, in {test['groups']:,} groups"] if test else []
    yield (f"{'; '.join(parts)}. A group (a prompt, all its pairs and translations) is in one of these only.")
    yield ""
    cut = audit.get("truncated", {})
    split = [side for side in ("train", "test") if audit.get(side)]
    yield from table_lines(["language", *(f"{side}: rows (groups)" for side in split), "longer than the model reads"],
                           [[name, *_counts(audit, split, "languages", name),
                             f"{cut[name]['share']:.1%}" if name in cut else "-"]
                            for name in _joined(audit, split, "languages")])
    yield ""
    yield from table_lines(["source", *(f"{side}: rows (groups)" for side in split)],
                           [[name, *_counts(audit, split, "sources", name)]
                            for name in _joined(audit, split, "sources")])


def _joined(audit: dict, split: Sequence[str], kind: str) -> list[str]:
    return list(dict.fromkeys(name for side in split for name in audit[side][kind]))


def _counts(audit: dict, split: Sequence[str], kind: str, name: str) -> list[str]:
    found = [audit[side][kind].get(name) for side in split]
    return [f"{part['rows']:,} ({part['groups']:,})" if part else "-" for part in found]


def _training(facts: Facts) -> Iterator[str]:
    config, settings, environment = facts.config, facts.settings, facts.environment
    optimizer = facts.ds_config.get("optimizer", {}).get("params", {})
    tuned = "all weights"
    if settings["tune"] == "lora":
        tuned = (f"LoRA of rank {config['lora_rank']} (alpha {config['lora_alpha']:g}) on every projection, the score "
                 f"head{', the embeddings' if config.get('train_embeddings') else ''}")
    lines = [
        ["base", facts.base or OWN_BASES.get(config["model"], f"a local folder, {_last_part(config['model'])}")],
        ["trained", tuned],
        ["steps", f"{settings['step']:,}, each of {facts.ds_config['train_batch_size']:,} rows "
                  f"({settings['checkpoint']})"],
        ["peak learning rate", f"{optimizer['lr']:g}" if "lr" in optimizer else ""],
        ["longest sequence", f"{settings['max_length']:,} tokens"],
        ["precision", "bf16" if facts.ds_config.get("bf16", {}).get("enabled") else "fp32"],
        ["orders of the responses", f"{config['orders']}, weight of each order's own loss {config['order_weight']:g}, "
                                    f"of their divergence {config['consistency_weight']:g}" if facts.compares else ""],
        ["teacher", f"{_last_part(config['teacher'])}, weight {config['teacher_weight']:g}"
                    if config.get("teacher") else ""],
        ["seed", str(config["seed"])],
        ["commit", environment.get("commit", "").replace("+changes", " and changes that are in no commit")],
        ["versions", versions(environment)],
        ["hardware", f"{environment['ranks']} x {environment['device']}" if "device" in environment else ""],
    ]
    yield from table_lines(["", ""], [line for line in lines if line[1]])
    if environment.get("command"):
        yield from ["", "Command (of paths the last part):", *_code("bash", [command(environment["command"])])]


def versions(environment: dict) -> str:
    """Of Python and the packages, on one line."""
    found = {"Python": environment.get("python"), **environment.get("packages", {})}
    return ", ".join(f"{name} {version}" for name, version in found.items() if version)


def command(words: Sequence[str]) -> str:
    """How a run was started, of paths the last part."""
    launched = any(word.startswith("--local_rank") for word in words)
    program, *flags = (word for word in words if not word.startswith("--local_rank"))
    module = PurePath(program).parent.name == "pm"
    start = [*(["--module" if launched else "-m"] if module else []),
             f"pm.{PurePath(program).stem}" if module else _last_part(program)]
    return shlex.join(["deepspeed" if launched else "python", *start, *map(_last_part, flags)])


def _last_part(word: str) -> str:
    """Of an absolute path, or one into a home folder, which say more of a machine than of the run."""
    return re.sub(r"^(?:/|~)(?:.*/)?([^/]+)/?$", r"\1", word)


def _merging(facts: Facts) -> Iterator[str]:
    found = facts.settings.get("drift")
    if found:
        adapter = "LoRA was added to the weights in fp32, and each weight rounded once to" if (
            facts.settings["tune"] == "lora") else "The fp32 weights were rounded to"
        yield (f"{adapter} {facts.settings['dtype']}. Against the model as it was trained and evaluated, on "
               f"{found['rows']:,} rows of {found['of']}: logits differ by {found['mean']:.2g} on average and by "
               f"{found['largest']:.2g} at most; {found['flipped']:,} verdicts "
               f"({found['flipped'] / found['rows']:.1%}) change.")


def _limits(facts: Facts) -> Iterator[str]:
    return (f"- {sentence}" for sentence in (*_measured_limits(facts), *GENERAL[facts.settings["task"]]))


def _measured_limits(facts: Facts) -> Iterator[str]:
    if facts.config["model"] == "small-random":
        yield ("The backbone began with random weights and has seen nothing but the training data: it knows no "
               "language and no facts beyond that.")
    if facts.config["model"] == "base":
        yield ("The backbone is a very small language model, made on two processor cores: it knows how text looks "
               "in its languages, and hardly any facts.")
    if facts.config["data"] == ["sample"]:
        yield "The training data is the embedded sample, which is there to show that everything works."
    overall = (facts.metrics or {}).get("overall")
    if overall is None:
        yield "It was not evaluated: there are no numbers of it."
    elif facts.compares:
        yield (f"Order: read in one order only, {overall['flip_rate']:.1%} of the verdicts depend on which response "
               "stands first. Both orders are to be read.")
    if overall and overall["n_groups"] < FEW_GROUPS:
        yield (f"The test rows are of {overall['n_groups']:,} groups of prompts only: the intervals themselves are "
               "uncertain.")
    if not facts.settings.get("calibration", {}).get("rows"):
        yield "No temperatures were fitted: probabilities may be too sure, or not sure enough."
    yield from _limits_of_data(facts)


def _limits_of_data(facts: Facts) -> Iterator[str]:
    if not facts.audit:
        return
    languages = facts.audit["train"]["languages"]
    small = [f"{name} ({part['rows']:,})" for name, part in languages.items() if part["rows"] < SMALL_LANGUAGE]
    if small:
        yield f"Languages with few training rows: {_names(small)}."
    parts = (facts.metrics or {}).get("by_language", {})
    untested = [name for name in languages if parts.get(name, {"n": 0})["n"] < SMALL_TEST]
    if untested and parts:
        yield f"Languages with fewer than {SMALL_TEST} test rows, of which little is known: {_names(untested)}."
    yield ("Other languages than those above were neither trained nor tested.")
    cut = sum(part["cut"] for part in facts.audit.get("truncated", {}).values())
    rows = sum(part["rows"] for part in facts.audit.get("truncated", {}).values())
    if cut:
        yield (f"{cut / rows:.1%} of the rows were longer than {facts.settings['max_length']:,} tokens and were cut in "
               "their middle, in training and in testing.")


def _licence(facts: Facts) -> Iterator[str]:
    names = [facts.licence[name] for name in ("license_name", "license", "license_link") if facts.licence.get(name)]
    of_base = f" The base is {_text(facts.base)}, whose licence binds what is made from it." if facts.base else ""
    yield (f"{', '.join(map(_text, names)) or 'Unknown: none was stated'}.{of_base} What the licences of the training "
           "data allow is for those to state who publish the model.")


# Markdown


def _text(text: str) -> str:
    """On one line, and without a meaning in Markdown or HTML."""
    if report.NUMBER.fullmatch(text):
        return text
    return MARKUP.sub(r"\\\1", " ".join(text.split()))


def _names(names: Sequence[str]) -> str:
    more = [f"and {len(names) - LISTED:,} more"] if len(names) > LISTED else []
    return ", ".join([*map(_text, names[:LISTED]), *more])


def table_lines(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown; none where it would have no lines."""
    if not lines:
        return []
    rows = [f"| {' | '.join(map(_text, cells))} |" for cells in (head, *lines[:LISTED])]
    rule = f"|{'|'.join('---:' if report.NUMBER.fullmatch(cell) else '---' for cell in lines[0])}|"
    more = len(lines) - LISTED
    return [rows[0], rule, *rows[1:], *(["", f"and {more:,} more"] if more > 0 else [])]


def _code(language: str, lines: Sequence[str]) -> list[str]:
    """A block that no run of backticks in it can end."""
    lines = list(lines)
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return ["", fence + language, *lines, fence, ""]
