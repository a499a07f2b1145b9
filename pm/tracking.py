"""One dict per event, to stdout, `metrics.jsonl` and, where asked for, wandb."""

import json
import logging
import math
import secrets
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from pm import plots
from pm.distributed import all_reduce_sum, gather_lists, is_main, say
from pm.errors import UserError, first_line
from pm.files import replace_text

WANDB_ID, WANDB_LOGGED = "wandb_id", "wandb_logged.json"
SHOWN = {"loss": "loss {:.4f}", "language_loss": "lm {:.3f}", "accuracy": "acc {:.3f}", "flip_rate": "flips {:.2f}",
         "learning_rate": "lr {:.2e}", "gradient_norm": "grad {:.2f}", "tokens_per_second": "{:,.0f} tok/s",
         "padding": "pad {:.1%}"}
WANDB_PATIENCE = 600  # seconds that the end of a run waits for uploads; the rest stays for `wandb sync`


@dataclass(frozen=True)
class StepValues:
    """One step over all ranks. `tokens` are those of the sequences, without padding. `stop` and `out_of_memory` where
    they are so on any rank."""

    numbers: dict[str, float]
    tokens: int
    stop: bool
    out_of_memory: bool


class StepStatistics:
    """Sums of one step, kept on the device; reduced over the ranks once, divided once.

    `compares`: the first two classes are responses, and the verdict is the sign of their difference.
    """

    def __init__(self, device: torch.device, compares: bool, orders_per_row: int):
        self.compares, self.both_orders = compares, orders_per_row == 2
        self.sums = torch.zeros(9, dtype=torch.float64, device=device)
        self.losses: list[tuple[list[str], torch.Tensor]] = []
        self.of_language = False

    @torch.no_grad()
    def add(self, micro_batch, target_NC: torch.Tensor, logits_NOC: torch.Tensor, loss_N: torch.Tensor,
            language_loss: torch.Tensor | None = None) -> None:
        """`language_loss`, where there is one: the sum over the rows."""
        self.of_language = language_loss is not None
        if not micro_batch.weight:
            return
        self.losses.append((micro_batch.ids, loss_N.detach()))
        if self.of_language:
            self.sums[8] += language_loss
        if self.compares:
            margin_NO = logits_NOC.float().diff(dim=2)[:, :, 0]
            wanted_N = target_NC.diff(dim=1)[:, 0].sign()
            decided_N, right_N = wanted_N != 0, (margin_NO.mean(1).sign() * wanted_N + 1) / 2
            flipped_N = margin_NO[:, 0].sign() != margin_NO[:, -1].sign()
        else:
            right_N = (logits_NOC[:, 0].argmax(1) == target_NC.argmax(1)).float()
            decided_N, flipped_N = torch.ones_like(right_N, dtype=torch.bool), torch.zeros_like(right_N)
        right_N = right_N.where(decided_N, 0)  # not right_N[decided_N], which waits for the device
        for place, value in enumerate((loss_N.sum(), right_N.sum(), decided_N.sum(), micro_batch.tokens,
                                       micro_batch.padding, flipped_N.sum())):
            self.sums[place] += value

    def reduce(self, rows: int, stop: bool, out_of_memory: bool = False) -> StepValues:
        """`rows` of the step on all ranks; `stop` and `out_of_memory` on this one."""
        self.sums[6], self.sums[7] = float(stop), float(out_of_memory)
        loss, right, decided, tokens, padding, flips, stops, out, language = all_reduce_sum(self.sums).tolist()
        numbers = {"loss": loss / rows, "accuracy": right / decided if decided else 0.5,
                   "padding": padding / max(1, tokens + padding)}
        if self.both_orders:
            numbers["flip_rate"] = flips / rows
        if self.of_language:
            numbers["language_loss"] = language / rows
        return StepValues(numbers, round(tokens), stops > 0, out > 0)

    def suspects(self) -> str:
        return suspects(self.losses)


def suspects(losses: list[tuple[list[str], torch.Tensor]]) -> str:
    """Of the rows' ids and losses of each micro-batch the ids whose loss is not finite, on any rank; where there are
    none, all ids. Collective."""
    ids = [identifier for names, _ in losses for identifier in names]
    bad = [identifier for names, loss_N in losses
           for identifier, finite in zip(names, loss_N.isfinite().tolist(), strict=True) if not finite]
    bad, ids = gather_lists(bad), gather_lists(ids)
    return ", ".join(bad or ids)


def quiet_libraries() -> None:
    """Takes away other libraries' progress bars where there is no terminal, and warnings that ask nothing of a user."""
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message="`torch.distributed.all_gather_into_tensor` is deprecated",
                            category=FutureWarning)


def read_history(run: Path) -> list[dict]:
    """The lines of the run's metrics.jsonl; none where there are none."""
    path = run / "metrics.jsonl"
    lines = path.read_text("utf-8").splitlines(True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]  # the last one may have been cut off


def _finite(value):
    """With None for numbers that are not finite, which JSON has no name for."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Tracker:
    """Writes on the first rank only.

    `wandb_project`: empty for no wandb; `config` is what it shows. Raises `UserError` where wandb cannot start; what
    fails later ends wandb with a line, and not the run.
    """

    def __init__(self, run: Path, wandb_project: str, config: dict):
        self.path = run / "metrics.jsonl"
        self.bar = None
        self.wandb = start_wandb(run, wandb_project, config) if is_main() and wandb_project else None
        self.logged: dict[str, int] = {}

    def start(self, total_steps: int, start_step: int) -> None:
        """Before the first step. A resumed run drops the lines after the step it resumes from; wandb, which keeps
        them, gets none of their steps again."""
        if not is_main():
            return
        rows = read_history(self.path.parent)
        if self.wandb is not None:
            self.logged = _note_logged(self.path.with_name(WANDB_LOGGED), rows)
        if self.path.exists():
            replace_text(self.path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= start_step))
        if sys.stdout.isatty() and sys.stderr.isatty() and start_step < total_steps:
            self.bar = tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True)

    def step(self, values: dict, show: bool) -> None:
        """One training step; `values` has the key `step`. `show`: print a line where there is no terminal."""
        if not is_main():
            return
        text = "  ".join(shown.format(values[name]) for name, shown in SHOWN.items() if name in values)
        self._write("train", values)
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(1)
            if self.bar.n >= self.bar.total:
                self.bar.close()
        elif show:
            print(f"step {values['step']}  {text}", flush=True)

    def evaluation(self, step: int, metrics: dict) -> None:
        """Metrics of the test split (`metrics.evaluation`): all of them overall, and by language and kind. wandb gets
        these as tables, and the plots where matplotlib is there."""
        if not is_main():
            return
        parts = {name: metrics[name] for name in ("by_language", "by_kind")}
        self._write("eval", {"step": step, **metrics["overall"], **parts}, lambda: _tables(parts, metrics))

    def perplexity(self, step: int, found: dict) -> None:
        """That of the test split (`perplexity.perplexities`), overall and by language."""
        if is_main():
            self._write("eval", {"step": step, **found["overall"], "by_language": found["by_language"]},
                        lambda: {"eval/by_language": _table("language", _finite(found["by_language"]),
                                                            ("rows", "tokens", "loss", "perplexity"))})

    def export(self, folder: Path, step: int, metrics: dict) -> None:
        """The export as a model artifact of wandb, with the step and the overall metrics."""
        if self.wandb is None:
            return

        def log() -> None:
            import wandb

            numbers = {name: value for name, value in _finite(metrics).items() if isinstance(value, (int, float))}
            artifact = wandb.Artifact(f"export-{self.wandb.id}", "model", metadata={"step": step, **numbers})
            artifact.add_dir(str(folder))
            self.wandb.log_artifact(artifact)
        self._try(log)

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            say(text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.wandb is not None:
            self._try(self.wandb.finish)

    def _write(self, phase: str, values: dict, more=dict) -> None:
        """`more()`: what only wandb gets."""
        values = _finite(values)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"phase": phase, **values}) + "\n")
        if self.wandb is None or values["step"] <= self.logged.get(phase, 0):
            return
        numbers = {f"{phase}/{name}": value for name, value in values.items()
                   if isinstance(value, (int, float)) and name != "step"}
        numbers |= {f"{phase}/shortcuts/{name}": found["accuracy"]
                    for name, found in values.get("shortcuts", {}).items()}
        # wandb ignores a row whose number is not above the last one's: an evaluation of a step is one more than it.
        number = 2 * values["step"] + (phase == "eval")
        self._try(lambda: self.wandb.log({"step": values["step"], **numbers, **more()}, step=number))

    def _try(self, work) -> None:
        try:
            work()
        except Exception as error:  # of whatever kind: a run must not end with the service that shows it
            self.wandb = None
            self.say(f"wandb has stopped, the run goes on without it: {first_line(error)}")


def start_wandb(run: Path, project: str, config: dict):
    """A run of wandb, the same one over all resumes. Raises `UserError` where it cannot start."""
    import wandb

    id_file = run / WANDB_ID
    if not id_file.exists():
        replace_text(id_file, secrets.token_hex(4))
    try:
        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
            raise UserError("--wandb: there is no login; `wandb login` makes one, and with WANDB_MODE=offline it needs "
                            "none")
        started = wandb.init(project=project, id=id_file.read_text("utf-8"), resume="allow", dir=run, name=run.name,
                             config=config, settings=wandb.Settings(finish_timeout=WANDB_PATIENCE))
    except wandb.Error as error:
        raise UserError(f"--wandb cannot start: {first_line(error)}; with WANDB_MODE=offline it needs no "
                        "network") from None
    started.define_metric("step")
    started.define_metric("*", step_metric="step")
    return started


def _note_logged(path: Path, rows: list[dict]) -> dict[str, int]:
    """The highest step of each phase that wandb has, by `path` and by the rows of what ran last."""
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    found = {phase: max([known.get(phase, 0), *(row["step"] for row in rows if row["phase"] == phase)])
             for phase in ("train", "eval")}
    replace_text(path, json.dumps(found) + "\n")
    return found


def _tables(parts: dict, metrics: dict) -> dict:
    import wandb

    def row(part: dict) -> dict:
        low, high = part["accuracy_interval"] or (None, None)
        return part | {"low": low, "high": high}

    tables = {f"eval/{name}": _table(name.removeprefix("by_"), {value: row(part) for value, part in found.items()},
                                     ("n", "accuracy", "low", "high", "log_loss")) for name, found in parts.items()}
    return tables | {f"eval/{name}": wandb.Html(svg) for name, svg in plots.plots(metrics).items()}


def _table(what: str, parts: dict[str, dict], columns: Sequence[str]):
    """For wandb: a row for each part, named by `what` it is."""
    import wandb

    return wandb.Table([what, *columns], [[name, *(part[column] for column in columns)]
                                          for name, part in parts.items()])
