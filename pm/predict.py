"""From a trained model to predictions. Training and evaluation both score through `score`."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import combinations, repeat
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value
from peft import PeftModel
from safetensors import SafetensorError
from tqdm import tqdm

from pm.calibration import Calibration
from pm.collator import Collator, on_device, packed_tokens
from pm.config import newest_run
from pm.data.example import FEATURES, Example
from pm.data.forms import BadRow, prompt_turns, storable
from pm.data.languages import UNKNOWN, language_code
from pm.data.sources import parse_json_row
from pm.distributed import gather_rows, rank, world_size
from pm.encoding import ENCODED_FEATURES, Encoder, Template, row_lengths
from pm.errors import UserError, first_line
from pm.fused import unsupported
from pm.model import load_model, load_tokenizer, unswap
from pm.plan import plan_evaluation, plan_packed_evaluation
from pm.predictions import mean_logits, softmax
from pm.ranking import Ranking, rank_responses
from pm.task import CLASSIFICATION, PREFERENCE, Task

BOTH = (False, True)
UNCALIBRATED = Calibration()
SETTINGS = "preference.json"
WITH_TARGETS = Features(ENCODED_FEATURES | {"target": List(Value("float64"))})
Prompt = str | list[dict[str, str]]


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
    if was_training:
        model.eval()
    scored: list[tuple[list[int], torch.Tensor]] = []
    for numbers in progress(micro_batches):
        # A micro-batch without rows is run on some row all the same: ZeRO 3 gathers weights at every forward.
        chosen = [rows[number] | ({"prompt_ids": blank} if blank_prompts else {}) for number in numbers or [shortest]]
        batch = on_device(collate(chosen, [orders] * len(chosen)), device)
        swapped_B, _ = batch.pop("swapped"), batch.pop("target")
        scored.append((numbers, unswap(model(**batch).logits, swapped_B)))
    if was_training:
        model.train()
    mine = [(number, logits) for numbers, logits_BC in scored
            for number, logits in zip(numbers, logits_BC.cpu().view(-1, len(orders), len(task.labels)).tolist(),
                                      strict=False)]
    return [_prediction(rows[number], logits, task, calibration)
            for number, logits in enumerate(gather_rows(mine, len(rows), shared))]


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
    calibrated where temperatures were fitted for it (`settings["calibration"]`).

    A prompt is text or a list of turns `{"role", "content"}`. `languages` are codes such as `de`, each of which has a
    temperature of its own where one was fitted. `token_budget` of one forward pass is that of the model's run unless
    given. Any thread may call; one at a time is served. What a caller got wrong is a `UserError`.
    """

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
        self.progress: Callable = partial(tqdm, unit=" batches", delay=3, leave=False, disable=None)  # on a terminal
        self._lock = Lock()

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
                model = PeftModel.from_pretrained(model, str(folder), torch_device="cpu")  # not all ranks' first GPU
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
        if device.type == "cuda" and device.index is None:  # any thread may call, and each has its own current one
            device = torch.device("cuda", torch.cuda.current_device())
        return cls(model, task, encoder, settings, device, packing)

    def score(self, rows: Dataset, token_budget: int | None = None, **options) -> list[dict]:
        """`predict.score` with this model; `options` are those behind the device there."""
        with self._lock:
            return score(self.model, rows, self.encoder.template, self.task, token_budget or self.token_budget,
                         self.device, **{"calibration": self.calibration, "packing": self.packing} | options)

    def compare(self, prompts: Sequence[Prompt], responses_a: Sequence[str], responses_b: Sequence[str],
                token_budget: int | None = None, languages: Sequence[str] | None = None) -> list[dict[str, float]]:
        """Probability of each class for each triple, averaged over both orders: `{"a": 0.8, "b": 0.2}`. Equal
        responses are a tie without a look."""
        tie = {label: float(label == "tie") for label in self.task.labels} if "tie" in self.task.labels else {
            "a": 0.5, "b": 0.5}
        return [row["probability"] if row else dict(tie)
                for row in self.predictions(prompts, responses_a, responses_b, token_budget, languages)]

    def predictions(self, prompts: Sequence[Prompt], responses_a: Sequence[str], responses_b: Sequence[str],
                    token_budget: int | None = None, languages: Sequence[str] | None = None) -> list[dict | None]:
        """What `compare` is from: for each triple a row as in predictions.jsonl, whose target is 0 for each class; None
        where the responses are equal, or their kept parts are."""
        self._check_task(PREFERENCE, "compare")
        columns = _columns(prompts=prompts, responses_a=responses_a, responses_b=responses_b, languages=languages)
        return self._predictions([
            Example(str(number), "", language, "", "", _turns(prompt, number), _text(a, f"responses_a[{number}]"),
                    _text(b, f"responses_b[{number}]"), {})
            for number, (prompt, a, b, language) in enumerate(columns)], token_budget)

    def compare_all(self, prompts: Sequence[Prompt], cohorts: Sequence[Sequence[str]], token_budget: int | None = None,
                    languages: Sequence[str] | None = None) -> list[np.ndarray]:
        """For each prompt and the n responses of its cohort how probable it is that response i is better than response
        j, (n, n), from `compare` of all pairs; 0.5 on the diagonal, a tie counts half for each. With packing the prompt
        and every first response are read once, where the n responses fit the token budget."""
        columns = list(_columns(prompts=prompts, cohorts=cohorts, languages=languages))
        pairs = [(prompt, cohort[i], cohort[j], language) for prompt, cohort, language in columns
                 for i, j in combinations(range(len(cohort)), 2)]
        found = iter(self._better(pairs, token_budget))
        matrices = []
        for _, cohort, _ in columns:
            better_NN = np.full((len(cohort), len(cohort)), 0.5)
            for i, j in combinations(range(len(cohort)), 2):
                better_NN[i, j] = next(found)
                better_NN[j, i] = 1 - better_NN[i, j]
            matrices.append(better_NN)
        return matrices

    def rank(self, prompt: Prompt, responses: Sequence[str], method: str = "full", token_budget: int | None = None,
             language: str = UNKNOWN) -> Ranking:
        """The n responses to one prompt, best first. `method` is one of `ranking.METHODS`, which says what each costs:
        `full` compares all pairs, `bradley_terry` each response with a few others, `knockout` n - 1 pairs."""
        responses = list(_columns(responses=responses))

        def beats(pairs: Sequence[tuple[int, int]]) -> list[float]:
            return self._better([(prompt, responses[i][0], responses[j][0], language) for i, j in pairs], token_budget)

        return rank_responses(len(responses), beats, method)

    def best_of_n(self, prompt: Prompt, responses: Sequence[str], token_budget: int | None = None,
                  language: str = UNKNOWN) -> int:
        """The place of the best response, by knock-out: n - 1 comparisons."""
        return self.rank(prompt, responses, "knockout", token_budget, language).order[0]

    def classify(self, texts: Sequence[str | tuple[str, str]], token_budget: int | None = None,
                 languages: Sequence[str] | None = None) -> list[dict[str, float]]:
        """Probability of each class for each text, or for each pair of texts."""
        self._check_task(CLASSIFICATION, "classify")
        examples = []
        for number, (text, language) in enumerate(_columns(texts=texts, languages=languages)):
            parts = [text] if isinstance(text, str) else text
            turns = [{"role": "user", "content": _text(part, f"texts[{number}]")} for part in parts]
            examples.append(Example(str(number), "", language, "", "", turns, None, None, {}))
        return [row["probability"] for row in self._predictions(examples, token_budget)]

    def as_read(self, prompt: Prompt, response_a: str, response_b: str) -> tuple[str, str, str]:
        """The three texts as the model reads them: what does not fit is cut. Turns of the prompt are joined by empty
        lines."""
        self._check_task(PREFERENCE, "as_read")
        return self.encoder.kept(_turns(prompt, 0), _text(response_a, "response_a"), _text(response_b, "response_b"))

    def _better(self, pairs: Sequence[tuple[Prompt, str, str, str]], token_budget: int | None) -> list[float]:
        """How probable it is that the first response is better; a tie counts half."""
        prompts, ones, others, languages = zip(*pairs, strict=True) if pairs else ((), (), (), ())
        return [found["a"] + found.get("tie", 0.0) / 2
                for found in self.compare(prompts, ones, others, token_budget, languages)]

    def _check_task(self, wanted: str, method: str) -> None:
        if self.task.name != wanted:
            raise UserError(f"{method} needs a model trained with --task {wanted}; this one's is {self.task.name}")

    def _predictions(self, examples: Sequence[Example], token_budget: int | None) -> list[dict | None]:
        """One for each example; None for one with equal responses, which the encoder leaves out."""
        if not examples:
            return []
        rows = [example.to_row() for example in examples]
        encoded = self.encoder.encode({name: [row[name] for row in rows] for name in FEATURES})
        encoded["target"] = [[0.0] * len(self.task.labels) for _ in encoded["id"]]
        # With a name of its own: to find one `datasets` hashes the table, which takes longer than a comparison.
        scored = Dataset(pa.table(encoded, WITH_TARGETS.arrow_schema), fingerprint="scored")
        found = {int(row["id"]): row for row in self.score(scored, token_budget, progress=self.progress)}
        return [found.get(number) for number in range(len(examples))]


def _columns(languages: Sequence[str] | None = None, **columns: Sequence) -> Iterator[tuple]:
    """The items side by side, and the code of the language of each."""
    if languages is not None:
        columns["languages"] = languages
    for name, values in columns.items():
        if isinstance(values, (str, dict)) or not isinstance(values, Iterable):
            raise UserError(f"{name} must be a list, not {type(values).__name__}; for one item give a list of one")
        columns[name] = list(values)
    if len({len(values) for values in columns.values()}) > 1:
        raise UserError("lists of one length are needed, but there are "
                        + ", ".join(f"{len(values)} {name}" for name, values in columns.items()))
    codes = map(language_code, columns.pop("languages")) if languages is not None else repeat(UNKNOWN)
    return zip(*columns.values(), codes, strict=False)


def _turns(prompt: Prompt, number: int) -> list[dict[str, str]]:
    name = f"prompts[{number}]"
    if isinstance(prompt, str):
        return [{"role": "user", "content": _text(prompt, name)}]
    try:
        return prompt_turns(prompt, name)
    except BadRow as error:
        raise UserError(str(error)) from None


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{name} must be text, not {type(value).__name__}")
    try:
        return storable(value, name)
    except BadRow as error:
        raise UserError(str(error)) from None


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


def newest_export() -> str:
    """The run started last among those that have an export. Raises `UserError` for none."""
    return str(newest_run(f"export/{SETTINGS}"))


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
