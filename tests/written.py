"""Predictions written out, for the tests of what follows from them."""

A, B, TIE = {"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"a": 0.5, "b": 0.5}
A3, B3, TIE3 = ({name: float(name == label) for name in ("a", "b", "tie")} for label in ("a", "b", "tie"))
NAMES = ("neg", "neu", "pos", "odd")


def row(ab, ba, target=A, group="g", language="en", characters=(10, 10), source="s", kind="k", **others) -> dict:
    """A prediction. `ab` and `ba`: logits of the classes, read in the order A, B and in the order B, A."""
    return {"logits_ab": list(ab), "logits_ba": list(ba), "target": target, "group": group, "language": language,
            "characters_a": characters[0], "characters_b": characters[1], "source": source, "kind": kind,
            "markdown_a": 0, "markdown_b": 0, "tokens": 100, "tokens_cut": 0, "temperature": 1.0, "content": "c",
            "content_a": "x", "content_b": "y", "prompt_key": group} | others


def sure(target=A, verdict=A, **columns) -> dict:
    """A prediction with the same verdict in both orders, a margin of 1."""
    return row(verdict.values(), verdict.values(), target, **columns)


def text(target: str | dict, found: str | tuple, group="g", language="en", names=NAMES, source="s") -> dict:
    """A prediction whose most probable class is `found`, with a margin of 1; or with these logits."""
    target = {name: float(name == target) for name in names} if isinstance(target, str) else target
    logits = [float(name == found) for name in names] if isinstance(found, str) else list(found)
    return {"logits": logits, "target": target, "group": group, "language": language, "source": source, "kind": "",
            "characters_a": 5, "tokens": 100, "tokens_cut": 0, "temperature": 1.0, "content": "c"}


#   margins of a over b:  A, B | B, A | mean    verdict
FOUR = [
    row((2, 0), (1, 0), A),  # 2 |  1 |  1.5    right in both orders
    row((2, 0), (0, 1), A),  # 2 | -1 |  0.5    right, flips: the first response each time
    row((0, 1), (0, 3), A),  # -1 | -3 | -2     wrong in both orders
    row((1, 0), (0, 3), B),  # 1 | -3 | -1      right, flips: the first response each time
]

#   mean of the logits of a, b and tie      verdict     most probable
THREE = [
    row((3, 0, 1), (1, 0, 1), A3),  # 2 0 1     a           a
    row((0, 1, 4), (2, 1, 4), A3),  # 1 1 4     even        tie
    row((1, 0, 5), (1, 0, 3), A3),  # 1 0 4     a           tie
    row((0, 2, 0), (0, 4, 0), TIE3),  # 0 3 0   b           b
    row((0, 0, 2), (1, 0, 2), TIE3),  # 0.5 0 2 a           tie
    row((0, 1, 0), (2, 1, 0), B3),  # 1 1 0     even        a, the first of two
]

#         neg   neu   pos   odd   found
# neg      3     1     0     0
# neu      2     1     0     1
# pos      0     0     2     0
TEXTS = [text("neg", "neg", group="1"), text("neg", "neg", group="2"), text("neg", "neg", group="3"),
         text("neg", "neu", group="4"), text("neu", "neg", group="5", language="de"),
         text("neu", "neg", group="6", language="de"), text("neu", "neu", group="7"), text("neu", "odd", group="8"),
         text("pos", "pos", group="9"), text("pos", "pos", group="9", language="de")]
