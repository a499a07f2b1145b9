"""Predictions to numbers. Pure: takes rows of `predictions.jsonl`, returns plain values.

Shapes: N rows, G groups, C classes, K sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pm.intervals import means, ratio_interval, resampled_sums, widening
from pm.predictions import mean_logits, softmax, targets
from pm.ranking import concordance, cycles, prompts

BINS = 10  # of confidence, equally wide
ORDER_BINS = 10  # of the probability of a in each order
LENGTHS = (128, 256, 512, 1024, 2048, 4096)  # tokens, upper ends
SHARES = ("accuracy", "accuracy_single_order", "accuracy_with_ties", "flip_rate", "prefers_first", "auc")
DIMENSIONS = ("language", "source", "kind", "length", "length_difference")
ORDERED = {
    "length": [f"{low + 1} to {high}" for low, high in zip((0, *LENGTHS), LENGTHS, strict=False)]
    + [f"over {LENGTHS[-1]}"],
    # 0.9 to 1 / 0.9 times as long is about equal.
    "length_difference": ["better under half", "better shorter", "about equal", "better longer", "better over double",
                          "tie"],
}


def evaluation(predictions: Sequence[dict], crossed: Sequence[Sequence[str]] = ()) -> dict:
    """All metrics of a set of predictions, as `eval.py` writes them.

    `overall` and, for each value of each of `DIMENSIONS`, `by_language` and so on: see `summarise`. `crossed` names
    dimensions to be taken together: ("language", "kind") gives `by_language,kind`, with values such as "de, evasive";
    those that a classification has not are left out.
    length              tokens of the sequence
    length_difference   characters of the better response over those of the worse one
    reliability, orders, lengths    the counts behind the plots
    ranking             of comparisons: see `ranks`
    """
    table = _Table.of(predictions)
    result: dict = {"overall": table.summary()}
    dimensions = [(name,) for name in DIMENSIONS if name in table.dimensions]
    for names in [*dimensions, *(tuple(names) for names in crossed if set(names) <= table.dimensions.keys())]:
        result["by_" + ",".join(names)] = {value: part.summary() for value, part in table.parts(names)}
    result["reliability"] = table.reliability()
    result["lengths"] = _lengths(predictions)
    if table.compares:
        return result | {"orders": _orders(predictions), "ranking": ranks(predictions)}
    return result | by_class(predictions)


def compares(predictions: Sequence[dict]) -> bool:
    """Whether these are comparisons, which have logits for two orders, or classifications."""
    return "logits_ab" in predictions[0]


def summarise(predictions: Sequence[dict]) -> dict:
    """Every number of one set of rows.

    Of comparisons:
    accuracy                the better response has the higher probability, averaged over both orders
    accuracy_single_order   the same for verdicts from one order, mean of the two orders
    log_loss                nats, of the order-averaged logits
    brier                   mean squared error of the probabilities, summed over the classes
    ece                     expected calibration error: see `_Table.reliability`
    auc                     area under the ROC curve of the probability of a: see `_auc_of_rows`
    flip_rate               the verdict changes when the responses change places
    prefers_first           share of single-order verdicts for the response that stands first; 0.5 is unbiased
    accuracy_with_ties      only where `tie` is a class: the most probable of the three is that of the label (where
                            that is one)
    shortcuts               what can be had without a model of language: see `_shortcuts`
    n, n_ties, n_groups     rows, rows among them whose target favours neither, groups of prompts
    Verdicts are between a and b, also where `tie` is a class. Accuracies but the last and AUC leave ties out, and an
    even verdict counts half, so a model that always says the same scores 0.5. Log-loss, Brier and ECE take all rows,
    with their targets as they are.

    Of classifications: accuracy (of the most probable class), log_loss, brier, ece, macro_f1 (mean F1 of the classes
    that the rows have), most_common (accuracy of always saying the most frequent class), n and n_groups.

    `log_loss`, `brier` and `ece` are of the logits as they are. Where rows have temperatures, `log_loss_calibrated`
    and so on are of the probabilities that follow. Names ending in `_interval` are 95 % intervals, resampling groups
    (see `intervals.means`). None: there is nothing to count.
    """
    return _Table.of(predictions).summary()


def difference(predictions: Sequence[dict], others: Sequence[dict]) -> dict:
    """Two models on the same rows: each metric of the first minus that of the second, with the interval of that.

    Rows are joined by `content` and target, which must be the same in both; `n` are joined, `n_alone` of the first are
    not. Raises `ValueError` where there are none, or where one compares and the other classifies.
    """
    if others and compares(predictions) != compares(others):
        raise ValueError("one compares responses and the other classifies texts")

    def key(row: dict) -> tuple:
        return row["content"], *sorted(row["target"].items())

    numbers: dict[tuple, list[int]] = {}
    for number, row in enumerate(others):
        numbers.setdefault(key(row), []).append(number)
    pairs = [(row, others[numbers[key(row)].pop(0)]) for row in predictions if numbers.get(key(row))]
    if not pairs:
        raise ValueError("the two have no row in common")
    one, other = (_Table.of(rows) for rows in zip(*pairs, strict=True))
    ours, theirs = one.of_rows(), other.of_rows()
    both = {name: (values - theirs[name][0], counted & theirs[name][1])
            for name, (values, counted) in ours.items() if name in theirs}
    result: dict = {"n": len(pairs), "n_alone": len(predictions) - len(pairs)}
    for name, (mean, interval) in means(both, one.groups, ()).items():
        result |= {name: mean, f"{name}_interval": interval}
    return result


def ranks(predictions: Sequence[dict]) -> dict | None:
    """Whether verdicts make rankings, over the prompts with three or more responses; None where there are none.

    cycle_rate   share of triples of responses that go in a circle; 1/4 where verdicts are drawn by lot
    kendall_tau  labelled pairs that the Bradley-Terry scores order as their labels do, minus those that they order the
                 other way round, by all of them (over a complete ranking it is Kendall's tau)
    with intervals, resampling groups, and the counts `triples`, `pairs`, `n_prompts` and `n_responses` behind them.
    """
    found = prompts(predictions)
    if not found:
        return None
    _, groups = np.unique([prompt.rows[0]["group"] for prompt in found], return_inverse=True)
    counts = np.array([[*cycles(prompt.margins), *concordance(prompt)] for prompt in found], dtype=float)
    sums_GK = np.stack([np.bincount(groups, column) for column in counts.T], axis=1)
    circles, triples, alike, unlike, pairs = sums_GK.T
    rate, rate_interval = ratio_interval(circles, triples)
    share, share_interval = ratio_interval((alike - unlike + pairs) / 2, pairs)  # evenly scored pairs count half
    return {"n_prompts": len(found), "n_responses": sum(len(prompt.names) for prompt in found),
            "triples": int(triples.sum()), "pairs": int(pairs.sum()),
            "cycle_rate": rate, "cycle_rate_interval": rate_interval,
            "kendall_tau": None if share is None else 2 * share - 1,
            "kendall_tau_interval": share_interval and [2 * end - 1 for end in share_interval]}


def surest_mistakes(predictions: Sequence[dict], most: int) -> list[dict]:
    """Of comparisons the wrong verdicts, the surest of each language first, then the second of each, up to `most`."""
    margin = _Table.of(predictions).margin / [row["temperature"] for row in predictions]
    wrong = [number for number in np.argsort(margin, kind="stable") if margin[number] < 0]
    seen: dict[str, int] = {}
    turn = {}
    for number in wrong:
        language = predictions[number]["language"]
        turn[number] = seen[language] = seen.get(language, 0) + 1
    return [predictions[number] for number in sorted(wrong, key=turn.__getitem__)[:most]]


def by_class(predictions: Sequence[dict]) -> dict[str, dict]:
    """`by_class`: n, precision, recall and F1 of each class; `confusion`: for each class of the rows, most rows first,
    how many of them were taken for which class."""
    confusion, labels = confusion_matrix(predictions)
    named, found, right = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    order = np.argsort(-named, kind="stable")
    scores = zip(named.tolist(), _ratio(right, found).tolist(), _ratio(right, named).tolist(),
                 f1(confusion).tolist(), strict=True)
    table = [dict(zip(("n", "precision", "recall", "f1"), row, strict=True)) for row in scores]
    return {
        "by_class": {labels[place]: table[place] for place in order},
        "confusion": {labels[place]: {labels[other]: int(confusion[place, other])
                                      for other in np.argsort(-confusion[place], kind="stable")
                                      if confusion[place, other]} for place in order if named[place]},
    }


def confusion_matrix(predictions: Sequence[dict]) -> tuple[np.ndarray, list[str]]:
    """Counts (C, C), rows by the most probable class of the target, columns by that of the model; class names."""
    return _confusion(targets(predictions), mean_logits(predictions)), list(predictions[0]["target"])


def _confusion(target_NC: np.ndarray, logits_NC: np.ndarray) -> np.ndarray:
    confusion = np.zeros((target_NC.shape[1], target_NC.shape[1]), dtype=np.int64)
    np.add.at(confusion, (target_NC.argmax(1), logits_NC.argmax(1)), 1)
    return confusion


def f1(confusion: np.ndarray) -> np.ndarray:
    """F1 of each class; 0 for one that is neither in the rows nor found."""
    return _ratio(2 * confusion.diagonal(), confusion.sum(0) + confusion.sum(1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


# Rows as columns


@dataclass(frozen=True)
class _Table:
    """Predictions as arrays over N rows. `values`: of each metric that is a mean the value of each row, and which
    rows count; `shortcuts` the same for the accuracy of each shortcut; `confidence` and what came of it, by "" and
    "_calibrated"; `margin`: log-odds of the better response, 0 in a tie and in a classification."""

    compares: bool
    groups: np.ndarray
    dimensions: dict[str, np.ndarray]
    target_NC: np.ndarray
    logits_NC: np.ndarray
    margin: np.ndarray
    values: dict[str, tuple[np.ndarray, np.ndarray]]
    shortcuts: dict[str, tuple[np.ndarray, np.ndarray]]
    confidence: dict[str, tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of(cls, predictions: Sequence[dict]) -> "_Table":
        comparing = compares(predictions)
        target_NC, logits_NC = targets(predictions), mean_logits(predictions)
        every = np.ones(len(predictions), dtype=bool)
        temperature = np.array([row["temperature"] for row in predictions])
        ways = {"": logits_NC}
        if np.any(temperature != 1):
            ways["_calibrated"] = logits_NC / temperature[:, None]
        values, confidence = {}, {}
        for name, logits in ways.items():
            p_NC = softmax(logits)
            values[f"log_loss{name}"] = (_log_loss(logits, target_NC), every)
            values[f"brier{name}"] = (((p_NC - target_NC) ** 2).sum(1), every)
            confidence[name] = _confidence(p_NC, target_NC)
        columns = {name: np.array([row[name] for row in predictions], dtype=object) for name in DIMENSIONS[:3]}
        places = np.searchsorted(LENGTHS, [row["tokens"] for row in predictions])
        columns["length"] = np.array(ORDERED["length"], dtype=object)[places]
        shortcuts: dict = {}
        margin = np.zeros(len(predictions))
        if comparing:
            values = _verdicts(predictions, target_NC, logits_NC) | values
            wanted = np.sign(target_NC[:, 0] - target_NC[:, 1])
            margin = (logits_NC[:, 0] - logits_NC[:, 1]) * wanted
            shortcuts = _shortcuts(predictions, wanted)
            columns["length_difference"] = _length_differences(predictions, wanted)
        else:
            values = {"accuracy": (_most_probable_is_right(logits_NC, target_NC), every)} | values
        _, groups = np.unique([str(row["group"]) for row in predictions], return_inverse=True)
        return cls(comparing, groups, columns, target_NC, logits_NC, margin, values, shortcuts, confidence)

    def select(self, rows: np.ndarray) -> "_Table":
        def some(named: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
            return {name: (values[rows], counted[rows]) for name, (values, counted) in named.items()}

        _, groups = np.unique(self.groups[rows], return_inverse=True)
        return replace(self, groups=groups, target_NC=self.target_NC[rows], logits_NC=self.logits_NC[rows],
                       margin=self.margin[rows], values=some(self.values), shortcuts=some(self.shortcuts),
                       confidence=some(self.confidence),
                       dimensions={name: column[rows] for name, column in self.dimensions.items()})

    def parts(self, names: Sequence[str]) -> list[tuple[str, "_Table"]]:
        """The rows of each value of one or more dimensions: most rows first, lengths in their own order."""
        columns = [self.dimensions[name] for name in names]
        rows_of: dict[tuple, list[int]] = {}
        for number, values in enumerate(zip(*columns, strict=True)):
            rows_of.setdefault(values, []).append(number)

        def place(values: tuple) -> tuple:
            ordered = [ORDERED[name].index(value) for name, value in zip(names, values, strict=True) if name in ORDERED]
            return (ordered if len(ordered) == len(names) else -len(rows_of[values]), values)

        return [(", ".join(values), self.select(np.array(rows_of[values]))) for values in sorted(rows_of, key=place)]

    def of_rows(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """`values`, and AUC, to which a row adds more or less depending on the others."""
        if not self.compares:
            return self.values
        decided = self.values["accuracy"][1]
        auc = np.zeros(len(decided))
        if decided.any():
            above = _auc_of_rows(self.margin[decided])
            # A mean over pairs of rows, which a group moves twice as far as a mean over rows (Hoeffding 1948).
            auc[decided] = 2 * above - above.mean()
        return self.values | {"auc": (auc, decided)}

    def summary(self) -> dict:
        """See `summarise`."""
        values = self.of_rows()
        accuracy, counted = values["accuracy"]
        beside = {}
        for name, (right, known) in self.shortcuts.items():
            beside[f"shortcut {name}"] = (right, known)
            beside[f"over {name}"] = (accuracy - right, known & counted)
        shares = {*SHARES, *(f"shortcut {name}" for name in self.shortcuts)}
        found = means(values | beside, self.groups, shares) | self._calibration_errors()
        result: dict = {"n": len(self.groups), "n_groups": len(np.unique(self.groups))}
        for name in (*values, *(f"ece{name}" for name in self.confidence)):
            result[name], result[f"{name}_interval"] = found[name]
        if self.compares:
            result["n_ties"] = int((~counted).sum())
            result["shortcuts"] = {name: {
                "n": int(known.sum()), "accuracy": found[f"shortcut {name}"][0],
                "accuracy_interval": found[f"shortcut {name}"][1], "difference": found[f"over {name}"][0],
                "difference_interval": found[f"over {name}"][1]} for name, (_, known) in self.shortcuts.items()}
            return result
        confusion = _confusion(self.target_NC, self.logits_NC)
        present = confusion.sum(1) > 0
        return result | {"macro_f1": float(f1(confusion)[present].mean()),
                         "most_common": float(confusion.sum(1).max() / confusion.sum())}

    def reliability(self) -> dict[str, list[dict]]:
        """By bins of confidence, the probability of the most probable class: rows, mean confidence, and `outcome`, the
        mean probability that the target gives that class (how often it was right, where targets are certain).

        The bins are equally wide, from even odds to 1. The expected calibration error is the mean over rows of the
        distance between confidence and outcome of their bin (Naeini et al. 2015). `before` is without temperatures,
        `after` with them.
        """
        def bins(confidence: np.ndarray, outcome: np.ndarray) -> list[dict]:
            place = self._bin(confidence)
            counts = np.bincount(place, minlength=BINS)
            means = [_ratio(np.bincount(place, column, BINS), counts).tolist() for column in (confidence, outcome)]
            return [{"n": n, "confidence": sure, "outcome": right}
                    for n, sure, right in zip(counts.tolist(), *means, strict=True) if n]

        names = {"": "before", "_calibrated": "after"}
        return {names[way]: bins(*columns) for way, columns in self.confidence.items()}

    def _bin(self, confidence: np.ndarray) -> np.ndarray:
        lowest = 1 / self.target_NC.shape[1]
        return np.clip((np.nan_to_num(confidence - lowest) / (1 - lowest) * BINS).astype(int), 0, BINS - 1)

    def _calibration_errors(self) -> dict[str, tuple[float, list[float] | None]]:
        """Chance alone makes an error in each bin, so that even a perfect model has one, and resampling adds more. But
        by the triangle inequality no estimate is further from the truth than the sum of what chance makes in each bin:
        the interval is the estimate plus and minus the 95 % quantile of that over resamplings. It is a wide one."""
        result = {}
        for way, (confidence, outcome) in self.confidence.items():
            sums_GK = np.zeros((self.groups.max() + 1, BINS + 1))
            np.add.at(sums_GK, (self.groups, self._bin(confidence)), confidence - outcome)
            sums_GK[:, BINS] = np.bincount(self.groups)

            errors = sums_GK[:, :BINS].sum(0) / len(confidence)
            found, interval = float(np.abs(errors).sum()), None
            if len(sums_GK) > 1:
                totals = resampled_sums(sums_GK)
                chance = np.abs(totals[:, :BINS] / totals[:, BINS:] - errors).sum(1)
                reach = widening(len(sums_GK)) * float(np.percentile(chance, 95))
                interval = [max(0.0, found - reach), min(1.0, found + reach)]
            result[f"ece{way}"] = (found, interval)
        return result


def _verdicts(predictions: Sequence[dict], target_NC: np.ndarray, mean_NC: np.ndarray
              ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each metric of verdicts as (value of each row, which rows count). A margin is the logit of a minus that of b."""
    ab_NC, ba_NC = (np.array([row[name] for row in predictions], dtype=np.float64)
                    for name in ("logits_ab", "logits_ba"))
    margin_ab, margin_ba, margin = (logits[:, 0] - logits[:, 1] for logits in (ab_NC, ba_NC, mean_NC))
    wanted = np.sign(target_NC[:, 0] - target_NC[:, 1])
    decided, every = wanted != 0, np.ones(len(predictions), dtype=bool)
    values = {
        "accuracy": (_share(margin * wanted), decided),
        "accuracy_single_order": ((_share(margin_ab * wanted) + _share(margin_ba * wanted)) / 2, decided),
        "flip_rate": ((np.sign(margin_ab) != np.sign(margin_ba)).astype(float), every),
        "prefers_first": ((_share(margin_ab) + _share(-margin_ba)) / 2, every),
    }
    if target_NC.shape[1] > 2:
        one_is_right = (target_NC == target_NC.max(1, keepdims=True)).sum(1) == 1
        values["accuracy_with_ties"] = (_most_probable_is_right(mean_NC, target_NC), one_is_right)
    return values


def _shortcuts(predictions: Sequence[dict], wanted: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The accuracy of each shortcut, row by row, an even verdict counting half:

    longer, more_markdown   the response with more characters, or with more signs of Markdown, is better
    always_a                response a of the data is better
    and those of the rows' `shortcuts`, which are log-odds of a over b (`shortcuts.fitted`).
    """
    def of(margin: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _share(margin * wanted), known & (wanted != 0)

    every = np.ones(len(predictions), dtype=bool)
    found = {"longer": of(_minus(predictions, "characters"), every),
             "more_markdown": of(_minus(predictions, "markdown"), every),
             "always_a": of(np.ones(len(predictions)), every)}
    for name in dict.fromkeys(name for row in predictions for name in row.get("shortcuts", ())):
        odds = [row.get("shortcuts", {}).get(name) for row in predictions]
        found[name] = of(np.array([value or 0.0 for value in odds]), np.array([value is not None for value in odds]))
    return found


def _minus(predictions: Sequence[dict], name: str) -> np.ndarray:
    return np.array([row[f"{name}_a"] - row[f"{name}_b"] for row in predictions])


def _auc_of_rows(margin: np.ndarray) -> np.ndarray:
    """For each row the share of rows j with margin + margin_j > 0 (half for 0): the mean is the area under the ROC
    curve of the probability of a, where each row counts both ways round, as (a, b) and as (b, a), so that it does not
    depend on which response is called a. `margin` is that of the better response."""
    ordered = np.sort(margin)
    above = len(margin) - ordered.searchsorted(-margin, "right")
    equal = ordered.searchsorted(-margin, "right") - ordered.searchsorted(-margin, "left")
    return (above + equal / 2) / max(1, len(margin))


def _confidence(p_NC: np.ndarray, target_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest probability, and what the target gives to its class (to its classes on average, where several have
    it)."""
    highest = p_NC.max(1, keepdims=True)
    is_highest = p_NC == highest
    return highest[:, 0], (target_NC * is_highest).sum(1) / is_highest.sum(1)


def _log_loss(logits_NC: np.ndarray, target_NC: np.ndarray) -> np.ndarray:
    return (target_NC * (np.logaddexp.reduce(logits_NC, axis=1, keepdims=True) - logits_NC)).sum(1)


def _most_probable_is_right(logits_NC: np.ndarray, target_NC: np.ndarray) -> np.ndarray:
    return (logits_NC.argmax(1) == target_NC.argmax(1)).astype(float)


def _share(margin: np.ndarray) -> np.ndarray:
    """1 above zero, 0 below, 0.5 at zero."""
    return (np.sign(margin) + 1) / 2


def _length_differences(predictions: Sequence[dict], wanted: np.ndarray) -> np.ndarray:
    a, b = (np.array([row[f"characters_{side}"] for row in predictions]) for side in "ab")
    better, worse = np.where(wanted > 0, a, b), np.where(wanted > 0, b, a)
    place = np.select([wanted == 0, 2 * better < worse, 10 * better < 9 * worse, better > 2 * worse,
                       9 * better > 10 * worse], [5, 0, 1, 4, 3], 2)
    return np.array(ORDERED["length_difference"], dtype=object)[place]


# Counts behind the plots


def _orders(predictions: Sequence[dict]) -> list[list[int]]:
    """Rows by the probability of a against b, read in the order A, B (first index) and B, A, in `ORDER_BINS` bins."""
    counts = np.zeros((ORDER_BINS, ORDER_BINS), dtype=int)
    places = []
    for name in ("logits_ab", "logits_ba"):
        p_N = softmax(np.array([row[name][:2] for row in predictions], dtype=np.float64))[:, 0]
        places.append(np.minimum((np.nan_to_num(p_N) * ORDER_BINS).astype(int), ORDER_BINS - 1))
    np.add.at(counts, tuple(places), 1)
    return counts.tolist()


def _lengths(predictions: Sequence[dict], bins: int = 30) -> dict[str, list]:
    """Histogram of the tokens of sequences, all rows and those that were cut; `edges` has one number more."""
    tokens = np.array([row["tokens"] for row in predictions])
    cut = np.array([row["tokens_cut"] > 0 for row in predictions])
    edges = np.linspace(0, max(1, tokens.max()), bins + 1)
    return {"edges": edges.tolist(), "rows": np.histogram(tokens, edges)[0].tolist(),
            "cut": np.histogram(tokens[cut], edges)[0].tolist()}
