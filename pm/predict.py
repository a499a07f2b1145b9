"""From a trained model to predictions. Training and evaluation both score through `score`."""

import json
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors import SafetensorError

from pm.calibration import Calibration
from pm.collator import Collator, packed_tokens
from pm.data.example import FEATURES, Example
from pm.data.forms import BadRow
from pm.data.languages import UNKNOWN, language_code
from pm.data.sources import parse_json_row
from pm.data.targets import target_matrix, with_targets
from pm.distributed import gather_lists, rank, world_size
from pm.encoding import ENCODED_FEATURES, Encoder, Template, row_lengths
from pm.errors import UserError, first_line
from pm.fused import unsupported
from pm.model import load_model, load_tokenizer, unswap
from pm.plan import plan_evaluation, plan_packed_evaluation
from pm.predictions import mean_logits, softmax
from pm.task import CLASSIFICATION, PREFERENCE, Task

BOTH = (False, True)
UNCALIBRATED = Calibration()
SETTINGS = "preference.json"


@torch.no_grad()
def score(model, rows: Dataset, template: Template, task: Task, token_budget: int, device: torch.device, *,
          packing: bool, shared: bool = False, progress: Callable = iter, calibration: Calibration = UNCALIBRATED,
          blank_prompts: bool = False) -> list[dict]:
    """One prediction per row, in the order of the rows, each from both orders of its responses where it has any.

    `rows` as in `encoding.ENCODED_FEATURES`, with targets in the order of the task's labels (`targets.with_targets`).
    `packing`: without padding, and what rows and orders begin with in common is read once.
    `shared`: all ranks call it together, share the work and get the whole result; else a rank works by itself. The
    micro-batches are the same for any number of ranks, and so are the numbers.
    `blank_prompts`: in the place of every prompt stands an empty user turn.
    A prediction holds the row's id, hashes of its texts (`content`, `content_a`, `content_b`, `prompt_key`), group,
    language, source, kind, lengths and signs of Markdown, `target` and `probability` of each class by name, and what
    the probability is from: the logits, divided by `temperature`. Those of a comparison are `logits_ab` and
    `logits_ba` (read as A, B and as B, A; both in the row's class order), whose mean counts; of a classification
    `logits`.
    """
    if not len(rows):
        return []
    collate = Collator(template, packing)
    lengths, prompt_lengths = row_lengths(rows)
    blank = template.turn("user", [])
    if blank_prompts:
        lengths, prompt_lengths = lengths - prompt_lengths + len(blank), 0 * prompt_lengths + len(blank)
    orders = BOTH if task.compares else (False,)
    shortest = int(lengths.argmin())
    ranks = world_size() if shared else 1
    if packing:
        prompts = list(zip(rows["prompt_key"][:], prompt_lengths, strict=True))  # the same one may be cut differently
        plan = plan_packed_evaluation(*packed_tokens(lengths, prompt_lengths, len(orders)), prompts, token_budget,
                                      ranks)
    else:
        plan = plan_evaluation(lengths, token_budget // len(orders), ranks)
    micro_batches = plan[rank() if shared else 0]
    was_training = model.training
    model.eval()
    scored: list[tuple[list[int], torch.Tensor]] = []
    for numbers in progress(micro_batches):
        # A micro-batch without rows is run on some row all the same: ZeRO 3 gathers weights at every forward.
        chosen = [rows[number] | ({"prompt_ids": blank} if blank_prompts else {}) for number in numbers or [shortest]]
        batch = {name: tensor.to(device) for name, tensor in collate(chosen, [orders] * len(chosen)).items()}
        swapped_B, _ = batch.pop("swapped"), batch.pop("target")
        scored.append((numbers, unswap(model(**batch).logits, swapped_B)))
    model.train(was_training)
    mine = [(number, logits) for numbers, logits_BC in scored
            for number, logits in zip(numbers, logits_BC.cpu().view(-1, len(orders), len(task.labels)).tolist(),
                                      strict=False)]
    everyone = sorted(gather_lists(mine) if shared else mine)
    assert [number for number, _ in everyone] == list(range(len(rows))), "each row is scored exactly once"
    return [_prediction(rows[number], logits, task, calibration) for number, logits in everyone]


def _prediction(row: dict, logits: list[list[float]], task: Task, calibration: Calibration) -> dict:
    kept = ["id", "content", "prompt_key", "group", "language", "source", "kind", "tokens", "tokens_cut"]
    kept += [f"{name}_{side}" for side in ("ab" if task.compares else "a")
             for name in ("content", "characters", "markdown")]
    names = ("logits_ab", "logits_ba") if task.compares else ("logits",)
    found = {name: row[name] for name in kept} | dict(zip(names, logits, strict=True))
    found["target"] = dict(zip(task.labels, row["target"], strict=True))
    return calibrated(found, calibration)


def calibrated(prediction: dict, calibration: Calibration) -> dict:
    """The prediction with the temperature of its language, and the probabilities that follow."""
    temperature = calibration.of(prediction["language"])
    probability = softmax(mean_logits([prediction])[0] / temperature).tolist()
    return prediction | {"temperature": temperature,
                         "probability": dict(zip(prediction["target"], probability, strict=True))}


class PreferenceModel:
    """An exported model: compares responses or classifies texts, and scores encoded rows. Its probabilities are
    calibrated where temperatures were fitted for it (`settings["calibration"]`)."""

    def __init__(self, model, task: Task, encoder: Encoder, settings: dict, device: torch.device,
                 packing: bool | None = None):
        self.model = model.to(device).eval()
        self.task = task
        self.encoder = encoder
        self.settings = settings
        self.calibration = Calibration(**settings.get("calibration", {}))
        self.token_budget = settings.get("tokens_per_micro_batch", 8192)
        reason = unsupported(model)
        if packing and reason:
            raise UserError(f"--packing cannot read the model: {reason}")
        self.packing = (settings.get("packing", True) if packing is None else packing) and not reason
        self.device = device

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str | torch.device | None = None,
                        packing: bool | None = None) -> "PreferenceModel":
        """From an export, a run that has one, or a hub id. `device` is a GPU where there is one, unless given;
        `packing` is that of the run, where the model allows it, unless given.

        Raises `UserError` where there is no export.
        """
        folder = find_export(name)
        try:
            settings = json.loads((folder / SETTINGS).read_text("utf-8"))
            task = Task(settings["task"], tuple(settings["labels"]))
            dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[settings["dtype"]]
            if settings["tune"] == "lora" and not settings.get("merged"):
                base = folder / "base"
                model, _ = load_model(str(base) if base.is_dir() else settings["base"], dtype, task.labels)
                if not (folder / "adapter_model.safetensors").is_file():
                    raise UserError(f"{folder} holds no adapter_model.safetensors")
                model = PeftModel.from_pretrained(model, str(folder))
            else:
                model, _ = load_model(str(folder), dtype, task.labels)
            encoder = Encoder(load_tokenizer(str(folder)), settings["max_length"])
            if settings["template"] != encoder.template.saved():
                raise UserError(f"{folder} was trained with another template than this code has")
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(f"the export {folder} cannot be read: {first_line(error)}") from None
        for parameter in model.requires_grad_(False).parameters():  # not `.to(dtype)`: the rotary frequencies stay fp32
            parameter.data = parameter.data.to(dtype)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(model, task, encoder, settings, device, packing)

    def score(self, rows: Dataset, token_budget: int | None = None, **options) -> list[dict]:
        """`predict.score` with this model; `options` are those behind the device there, `token_budget` is that of the
        model's own run unless given."""
        return score(self.model, rows, self.encoder.template, self.task, token_budget or self.token_budget, self.device,
                     **{"calibration": self.calibration, "packing": self.packing} | options)

    def compare(self, prompts: Sequence[str | list[dict]], responses_a: Sequence[str], responses_b: Sequence[str],
                token_budget: int | None = None, languages: Sequence[str] | None = None) -> list[dict[str, float]]:
        """Probability of each class for each triple, averaged over both orders: `{"a": 0.8, "b": 0.2}`.

        A prompt is text or a list of turns `{"role", "content"}`. Equal responses are a tie without a look.
        `languages` are codes such as `de`, each of which has a temperature of its own where one was fitted.
        Raises `UserError` for a model that classifies.
        """
        self._check_task(PREFERENCE, "compare")
        rows = []
        for number, (prompt, a, b, language) in enumerate(zip(prompts, responses_a, responses_b,
                                                              _codes(languages, len(prompts)), strict=True)):
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            rows.append(Example(str(number), "", language, "", "", turns, a, b, {}))
        found = self._probabilities(rows, token_budget)
        tie = {label: float(label == "tie") for label in self.task.labels} if "tie" in self.task.labels else {
            "a": 0.5, "b": 0.5}
        return [found.get(number, tie) for number in range(len(rows))]

    def compare_all(self, prompt: str | list[dict], responses: Sequence[str], token_budget: int | None = None,
                    language: str = UNKNOWN) -> np.ndarray:
        """How probable it is that response i is better than response j, (n, n), for all pairs of the n responses to one
        prompt, as `compare` says it; 0.5 on the diagonal. With packing the prompt and every first response are read
        once, where the n responses fit `token_budget`. A tie counts half for each. Raises `UserError` as `compare`."""
        better_NN = np.full((len(responses), len(responses)), 0.5)
        pairs = list(combinations(range(len(responses)), 2))
        found = self.compare([prompt] * len(pairs), [responses[i] for i, _ in pairs], [responses[j] for _, j in pairs],
                             token_budget, [language] * len(pairs))
        for (i, j), probability in zip(pairs, found, strict=True):
            better_NN[i, j] = probability["a"] + probability.get("tie", 0.0) / 2
            better_NN[j, i] = 1 - better_NN[i, j]
        return better_NN

    def classify(self, texts: Sequence[str | tuple[str, str]], token_budget: int | None = None,
                 languages: Sequence[str] | None = None) -> list[dict[str, float]]:
        """Probability of each class for each text, or for each pair of texts; `languages` as in `compare`. `UserError`
        for a model that compares."""
        self._check_task(CLASSIFICATION, "classify")
        rows = []
        for number, (text, language) in enumerate(zip(texts, _codes(languages, len(texts)), strict=True)):
            turns = [{"role": "user", "content": part} for part in ([text] if isinstance(text, str) else text)]
            rows.append(Example(str(number), "", language, "", "", turns, None, None, {}))
        found = self._probabilities(rows, token_budget)
        return [found[number] for number in range(len(rows))]

    def _check_task(self, wanted: str, method: str) -> None:
        if self.task.name != wanted:
            raise UserError(f"{method} needs a model trained with --task {wanted}; this one's is {self.task.name}")

    def _probabilities(self, examples: Sequence[Example], token_budget: int | None) -> dict[int, dict[str, float]]:
        """By the number of the example; one with equal responses is left out."""
        if not examples:
            return {}
        rows = Dataset.from_list([example.to_row() for example in examples], features=FEATURES)
        encoded = Dataset.from_dict(self.encoder.encode(rows[:]), features=ENCODED_FEATURES)
        predictions = self.score(with_targets(encoded, target_matrix(encoded, self.task.labels)), token_budget)
        return {int(row["id"]): row["probability"] for row in predictions}


def _codes(languages: Sequence[str] | None, count: int) -> list[str]:
    return [UNKNOWN] * count if languages is None else list(map(language_code, languages))


def read_predictions(path: Path) -> list[dict]:
    """The rows of a `predictions.jsonl`. Raises `UserError` naming the line that is none, or of an older version."""
    rows: list[dict] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                row = parse_json_row(line)
                reason = str(row) if isinstance(row, BadRow) else _no_prediction(row, rows[0] if rows else row)
                if reason:
                    raise UserError(f"{path}:{number} is no prediction of eval.py: {reason}")
                rows.append(row)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not rows:
        raise UserError(f"{path} holds no predictions")
    return rows


def _no_prediction(row: dict, first: dict) -> str:
    """What is wrong with a row of predictions, "" for nothing; all must be like the first."""
    texts = ["id", "content", "prompt_key", "group", "language", "source", "kind", "content_a"]
    numbers = ["tokens", "tokens_cut", "characters_a", "markdown_a", "temperature"]
    logits = ["logits"]
    if "logits_ab" in first:
        texts, logits = [*texts, "content_b"], ["logits_ab", "logits_ba"]
        numbers += ["characters_b", "markdown_b"]
    for names, kind in ((texts, str), (numbers, (int, float)), (["target", "probability"], dict), (logits, list)):
        for name in names:
            if not isinstance(row.get(name), kind):
                return f"it has no {name}" if name not in row else f"{name} is {row[name]!r:.50}"
    if row["temperature"] <= 0:
        return f"temperature is {row['temperature']}"
    labels = list(first["target"])
    if list(row["target"]) != labels or any(len(row[name]) != len(labels) for name in logits):
        return f"its classes are not {', '.join(labels)}"
    values = [*row["target"].values(), *(value for name in logits for value in row[name])]
    if not all(isinstance(value, (int, float)) for value in values):
        return "a target or a logit is no number"
    return ""


def find_export(name: str | Path) -> Path:
    """The folder of an export: `name` itself, `name/export`, or what the hub has under that id."""
    folder = Path(name)
    for candidate in (folder, folder / "export"):
        if (candidate / SETTINGS).is_file():
            return candidate
    if folder.exists():
        raise UserError(f"--model {name} holds no export ({SETTINGS} is missing): has the run ended? "
                        f"`python -m pm.export {name}` writes one from its newest checkpoint")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(str(name)))
    except (OSError, ValueError) as error:
        raise UserError(f"--model {name}: neither a folder nor a readable hub id: {first_line(error)}") from None
    if not (folder / SETTINGS).is_file():
        raise UserError(f"--model {name} was not exported by this project: it has no {SETTINGS}")
    return folder
