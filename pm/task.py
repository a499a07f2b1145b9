"""What a model decides, and between which classes."""

from dataclasses import dataclass

PREFERENCE, CLASSIFICATION = "preference", "classification"
LANGUAGE = "language"  # of pm.pretrain: texts and comparisons are read, and no class is decided


@dataclass(frozen=True)
class Task:
    """A preference has the classes `a` and `b` (the first, or the second response is better), and possibly `tie`;
    a classification has those of the data. The order of `labels` is the order of the logits."""

    name: str
    labels: tuple[str, ...]

    @property
    def compares(self) -> bool:
        return self.name == PREFERENCE
