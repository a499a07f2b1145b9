"""Numbers to text: a line, the table of the terminal, sentences, a page of Markdown and a page of HTML."""

from html.parser import HTMLParser

import pytest
from written import FOUR, TEXTS, THREE, TIE, A, B, row, sure, text

from pm import report
from pm.metrics import difference, evaluation, summarise
from pm.report import Block, Table, blocks, markdown_table, to_html, to_markdown, verdicts


def many(*rows: dict, times: int = 20) -> list[dict]:
    """The rows over and over, each in a group of its own."""
    return [one | {"group": f"{number} {place}"} for number in range(times) for place, one in enumerate(rows)]


# The table

TWO_LANGUAGES = [sure(A, group="1", characters=(9, 5)), sure(B, group="2", characters=(9, 5)),
                 row((2, 0), (0, 1), A, group="3", language="de", characters=(5, 9))]


def numbers(table: str) -> list[str]:
    """The lines of a table of comparisons, without the legend."""
    return table.rpartition("\n\naccuracy: both orders averaged;")[0].splitlines()


def test_table_has_a_line_for_all_and_one_per_language():
    lines = numbers(report.table(evaluation(TWO_LANGUAGES)))
    cells = [line.split() for line in lines]
    assert lines[0].split("  ")[-1] == "longer"
    assert cells[1][:3] == ["all", "3", "0.667"]
    # ECE: two rows at 0.731 of which one is right, one at 0.622 that is right: (2 x 0.231 + 0.378) / 3
    assert cells[1][-6:] == ["0.500", "0.700", "0.280", "0.333", "0.667", "0.333"]
    assert cells[2] == []
    assert cells[3][:6] == ["language", "en", "2", "0.500", "[0.000,", "1.000]"]
    assert cells[3][6:] == ["0.500", "0.813", "0.231", "0.000", "0.500", "0.500"]
    assert cells[4] == ["language", "de", "1", "1.000", "-", "0.500", "0.474", "0.378", "1.000", "1.000", "0.000"]
    assert len(lines) == 5  # a single source and a single kind have no lines of their own


def test_table_is_aligned_and_fits_a_terminal():
    rows = [sure(A if number % 3 else B, group=str(number), language=f"l{number % 4}", source=f"s{number % 2}")
            for number in range(1200)]
    lines = [line for line in numbers(report.table(evaluation(rows))) if line]
    assert len(lines) == 1 + 1 + 4 + 2
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines[0]) <= 100
    assert "1,200" in lines[1]
    ends = [lines[0].index(title) + len(title) for title in ("accuracy", "95 % interval", "log-loss", "flips")]
    for line in lines[1:]:
        assert all(line[end - 1] != " " and line[end] == " " for end in ends)


def test_table_has_dashes_where_there_is_no_number():
    table = numbers(report.table(evaluation([row((1, 0), (1, 0), TIE)])))
    assert table[1].split() == ["all", "1", "-", "-", "-", "0.813", "0.231", "0.000", "0.500", "-"]


def test_table_says_what_its_columns_mean():
    two, three = (report.table(evaluation(rows)) for rows in (FOUR, THREE))
    assert "; longer: this shortcut. Ties are in no accuracy.\n" in two
    known = report.table(evaluation([one | {"shortcuts": {"n_grams": 1.0}} for one in FOUR]))
    assert "; longer, n-grams: these shortcuts. Ties are in no accuracy.\n" in known
    assert ("Ties are in no accuracy but\n'with ties', where the most probable of a, b and tie must be the label.\n"
            in three)
    assert max(map(len, [*two.splitlines(), *three.splitlines()])) <= 120


def test_table_of_three_classes():
    lines = [line.split("  ") for line in numbers(report.table(evaluation(THREE)))]
    assert [cell.strip() for cell in lines[0] if cell] == [
        "n", "accuracy", "95 % interval", "with ties", "one order", "log-loss", "ECE", "flips", "first", "longer"]
    assert [cell.strip() for cell in lines[1] if cell] == [
        "all", "6", "0.750", "-", "0.333", "0.750", "1.805", "0.572", "0.500", "0.292", "0.500"]
    assert len(lines) == 2


def test_table_of_a_classification():
    lines = report.table(evaluation(TEXTS)).splitlines()
    interval = evaluation(TEXTS)["overall"]["accuracy_interval"]
    assert [line.split() for line in lines[:2]] == [
        ["n", "accuracy", "95", "%", "interval", "macro-F1", "log-loss", "ECE", "most", "common"],
        ["all", "10", "0.600", f"[{interval[0]:.3f},", f"{interval[1]:.3f}]", "0.667", "1.144", "0.125", "0.400"]]
    assert lines[2] == ""
    assert [line.split()[:4] for line in lines[3:5]] == [["language", "en", "7", "0.714"],
                                                         ["language", "de", "3", "0.333"]]
    assert lines[5] == ""
    assert [line.split() for line in lines[6:11]] == [
        ["class", "n", "precision", "recall", "F1"],
        ["neg", "4", "0.600", "0.750", "0.667"],
        ["neu", "4", "0.500", "0.250", "0.333"],
        ["pos", "2", "1.000", "1.000", "1.000"],
        ["odd", "0", "0.000", "0.000", "0.000"]]
    assert lines[11:13] == ["", "taken most often for another class: neu → neg (2), neg → neu (1), neu → odd (1)"]


def test_table_of_a_classification_without_an_error():
    assert "\n\nno row was taken for another class\n" in report.table(evaluation([text("neg", "neg")]))


def test_short_of_a_classification_is_one_line():
    interval = summarise(TEXTS)["accuracy_interval"]
    assert report.short(summarise(TEXTS)) == (
        f"accuracy 0.600 [{interval[0]:.3f}, {interval[1]:.3f}]  log-loss 1.144  macro-F1 0.667  (most common class "
        "0.400, n 10)")


def test_short_is_one_line():
    line = report.short(summarise(TWO_LANGUAGES))
    assert "\n" not in line
    assert line.startswith("accuracy 0.667 [0.000, 1.000]  log-loss 0.700  one order 0.500  flips 0.333")


def test_short_names_the_shortcuts_that_were_fitted():
    line = report.short(summarise([one | {"shortcuts": {"n_grams": 1.0, "prompt_only": 1.0}} for one in TWO_LANGUAGES]))
    assert line.endswith("(longer 0.333, n-grams 0.667, n 3)")


def test_table_of_many_languages_says_how_many_are_left_out():
    rows = [sure(language=f"l{number:02}") for number in range(33)]
    lines = numbers(report.table(evaluation(rows)))
    assert [line.split()[:2] for line in lines[3:]] == [
        *(["language", f"l{number:02}"] for number in range(30)), ["and", "3"]]
    assert lines[-1] == "and 3 more in the report"


FITTED = {"shortcuts": {"n_grams": 1.0, "prompt_only": -1.0, "response_only": 0.5}}


def test_no_line_of_a_table_is_wider_than_a_terminal():
    rows = [sure(group=str(number), language=("en", "zh-hant")[number % 2], kind=("evasive", "untrue")[number % 2],
                 source=("multi_mt_human.jsonl", "other.jsonl")[number % 2], **FITTED) for number in range(1200)]
    lines = report.table(evaluation(rows)).splitlines()
    assert any("n-grams" in line for line in lines) and any("without the prompt" in line for line in lines)
    assert max(map(len, lines)) <= 120


# Sentences


def sentences(rows: list[dict]) -> list[str]:
    return verdicts(evaluation(rows))


def test_a_model_above_its_shortcuts():
    rows = many(sure(A, A, characters=(9, 5)), sure(B, B, characters=(9, 5)))
    assert sentences(rows)[0] == (
        "The model is above the longer response (0.500); the response with more Markdown (0.500).")


def test_a_model_not_above_a_shortcut():
    said, = (line for line in sentences(TWO_LANGUAGES) if "longer response" in line)
    low, high = evaluation(TWO_LANGUAGES)["overall"]["shortcuts"]["longer"]["difference_interval"]
    assert said == ("The model is not above a shortcut: the longer response has 0.333, from which the model differs by "
                    f"+0.333 [{low:.3f}, {high:.3f}].")


def test_a_model_below_a_shortcut():
    rows = many(sure(A, B, characters=(9, 5)))
    assert ("The model is below a shortcut: the longer response has 1.000, from which the model differs by "
            "-1.000 [-1.000, -1.000]." in sentences(rows))


def test_the_shortcuts_that_were_fitted_are_named():
    rows = many(sure(A, A, **FITTED), sure(B, B, **FITTED))
    assert sentences(rows)[0] == (
        "The model is above the longer response (0.500); the response with more Markdown (0.500); a regression on "
        "n-grams of the responses (0.500); a regression on n-grams of the prompt (0.500); this model without the "
        "prompt (0.500).")


def test_an_accuracy_that_is_not_shown_to_be_above_chance():
    assert sentences(TWO_LANGUAGES)[0] == "The accuracy, 0.667 [0.000, 1.000], is not shown to be above chance."
    assert not any("chance" in line for line in sentences(many(sure(A, A), sure(B, B))))


def test_languages_that_are_not_shown_to_be_above_chance():
    right, wrong = many(sure(A, A), sure(B, B)), many(sure(A, A, language="de"), sure(B, A, language="de"))
    assert any(line == "Not shown to be above chance in 1 of 2 languages: de." for line in sentences(right + wrong))
    assert not any("languages" in line for line in sentences(wrong))  # the only language is all there is
    alone = [sure(B, A, language="de", group="1")]  # of a single group of prompts, and without an interval
    assert any(line == "Not shown to be above chance in 1 of 2 languages: de." for line in sentences(right + alone))


FIRST, SECOND = row((2, 0), (0, 1)), row((0, 2), (1, 0))


@pytest.mark.parametrize(("rows", "side"), [
    (many(FIRST), ", mostly to the first response"), (many(SECOND), ", mostly to the second response"),
    (many(FIRST, SECOND), ""),
])
def test_verdicts_that_change_with_the_order(rows, side):
    assert (f"The verdict of 100% of the rows changes with the order of the responses{side}: read both orders, as is "
            "done here.") in sentences(rows)


def test_a_tenth_of_flips_is_not_often():
    assert not any("changes with the order" in line for line in sentences([FIRST, *many(sure(), times=9)]))
    assert any("The verdict of 11% of the rows" in line for line in sentences([FIRST, *many(sure(), times=8)]))


def test_calibration_without_temperatures():
    assert sentences([sure()])[-1] == ("Probabilities are off by 0.269 on average (expected calibration error); no "
                                       "temperature was fitted.")


def test_calibration_with_temperatures():
    # At 2 a margin of 1 is 0.622 in the place of 0.731: ln(1 + e^-0.5) and ln(1 + e^-1)
    assert sentences([sure(temperature=2.0)])[-1] == (
        "Probabilities are off by 0.378 on average (expected calibration error) with temperatures, 0.269 without; "
        "log-loss 0.474 and 0.313.")


def test_triples_that_go_in_a_circle():
    rows = [sure(A, A, content_a=a, content_b=b, group=str(number)) for number in range(20)
            for a, b in ("xy", "yz", "zx" if number % 2 else "xz")]
    said = "Of 20 triples of responses to one prompt 50.0% go in a circle (by lot: 25 %)."
    assert said in sentences(rows) and said not in sentences(rows[:57])


def test_a_classification_has_a_sentence_on_its_probabilities():
    assert sentences(TEXTS) == [
        "Probabilities are off by 0.125 on average (expected calibration error); no temperature was fitted."]


def test_rows_that_are_all_ties_have_sentences():
    assert sentences([row((1, 0), (1, 0), TIE)]) == [
        "Probabilities are off by 0.231 on average (expected calibration error); no temperature was fitted."]


# Pages

SVG = '<svg xmlns="http://www.w3.org/2000/svg"><path d="M 0 0"/></svg>'
MISTAKES = [("he  7  evasive  p 0.91", "he", [("prompt", "שלום"), ("better, by the label", "שלום 1 < 2"),
                                             ("preferred by the model", "x" * 701)])]


MAY_STAY_OPEN = ("meta", "li", "dt", "dd")


class Tags(HTMLParser):
    """Notes attributes and text; raises `AssertionError` for an end without its beginning."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.attributes, self.text = [], [], {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag not in MAY_STAY_OPEN:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.text.setdefault(self.open[-1], []).append(data)


def page(rows: list[dict], plots=(), texts=(), by=(("language", "kind"),), **others) -> str:
    metrics = {"about": {"model": "runs/1"}, **evaluation(rows, by), **others}
    return to_html("Evaluation of runs/1", blocks(metrics, dict.fromkeys(plots, SVG), texts))


def titles(rows: list[dict], **others) -> list[str]:
    return [block.title for block in blocks({"about": {}, **evaluation(rows), **others}, {"Lengths": SVG}, MISTAKES)]


RANKED = [sure(A, A, content_a=a, content_b=b, characters=(9, 5)) for a, b in ("xy", "yz", "xz")]


def test_the_parts_of_a_report():
    assert titles(TWO_LANGUAGES) == [
        "", "Overall", "Shortcuts", "Plots", "Language", "Length of the better response against the worse one",
        "The surest mistakes", "What this is"]
    assert titles(RANKED)[-3:] == ["Rankings of three and more responses", "The surest mistakes", "What this is"]
    assert titles(TEXTS) == ["", "Overall", "Plots", "Language", "Classes", "The surest mistakes", "What this is"]


@pytest.mark.parametrize("rows", [TWO_LANGUAGES, THREE, TEXTS, RANKED, [sure()], [row((1, 0), (1, 0), TIE)]])
def test_a_page_is_whole(rows):
    found = Tags(page(rows, ["Lengths"], MISTAKES, [["language", "kind"]]))
    assert found.text["h1"] == ["Evaluation of runs/1"]
    assert found.text["h2"][:1] == ["Overall"] and found.text["h2"][-1] == "What this is"


def test_a_page_needs_no_other_file():
    found = page(TWO_LANGUAGES, ["Lengths"], MISTAKES).replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not any(word in found for word in ("http://", "https://", "//cdn", "url(", "@import", "<script", "<link"))
    assert not any({"src", "href"} & attributes.keys() for _, attributes in Tags(found).attributes)


def test_a_text_has_its_language_and_its_direction():
    found = page(TWO_LANGUAGES, texts=MISTAKES)
    texts = [attributes for tag, attributes in Tags(found).attributes if tag == "dd"]
    assert texts == [{"dir": "auto", "lang": "he"}] * 3
    assert "<dt>prompt<dd dir=auto lang='he'>שלום<dt>" in found
    assert "<h3>he  7  evasive  p 0.91</h3>" in found


def test_a_long_text_is_cut():
    found = page(TWO_LANGUAGES, texts=MISTAKES)
    assert f">{'x' * 700} […]<" in found and "x" * 701 not in found


HOSTILE = "<script>alert('1')</script>"
ESCAPED = "&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;"


def test_what_a_user_wrote_is_escaped():
    rows = [sure(A, group="1", source=HOSTILE, kind=f"k{HOSTILE}", language=HOSTILE), sure(A, group="2")]
    rows = [one | {"shortcuts": {HOSTILE: 1.0}} for one in rows]
    texts = [(f"heading {HOSTILE}", HOSTILE, [(f"label {HOSTILE}", f"text {HOSTILE}")])]
    found = page(rows, texts=texts, difference={"other": f"file {HOSTILE}", "n": 1},
                 benchmark={"name": f"bench {HOSTILE}", "scores": {f"subset {HOSTILE}": 0.5},
                            "missing": [HOSTILE]},
                 about={"model": f"model {HOSTILE}"})
    for word in ("heading ", "label", "text", "file", "bench", "subset", "model"):
        assert f"{word.strip()} {ESCAPED}" in found
    assert found.count(f"<td dir=auto>{ESCAPED}</td>") >= 3  # source, language and shortcut
    assert f"<td dir=auto>k{ESCAPED}</td>" in found and f"lang='{ESCAPED}'" in found
    assert "<script" not in found
    Tags(found)


def test_the_classes_of_a_user_are_escaped():
    names = (HOSTILE, "b & c")
    found = page([text(HOSTILE, "b & c", names=names), text("b & c", "b & c", names=names)])
    assert f"<td dir=auto>{ESCAPED}</td>" in found and f"{ESCAPED} → b &amp; c (1)" in found
    assert "<script" not in found


def test_the_heading_of_a_page_is_escaped():
    assert f"<h1>Evaluation of {ESCAPED}</h1>" in to_html(f"Evaluation of {HOSTILE}", iter([]))


SCRIPTS = ["العربية", "עברית", "हिन्दी", "中文", "日本語", "한국어", "Ελληνικά", "ไทย"]


def test_names_in_any_script_stand_as_they_are():
    for found in (page([sure(source=name, kind=name) for name in SCRIPTS]),
                  page([text(name, name, names=SCRIPTS, source=name) for name in SCRIPTS])):
        assert all(f"<td dir=auto>{name}</td>" in found for name in SCRIPTS)


def test_crossed_dimensions_are_folded_and_not_in_markdown():
    metrics = {"about": {}, **evaluation(TWO_LANGUAGES, [["language", "kind"]])}
    found = Tags(to_html("t", blocks(metrics, {})))
    assert [tag for tag, _ in found.attributes if tag in ("details", "summary")] == ["details", "summary"]
    assert found.text["td"].count("de, k") == 1
    assert "de, k" not in to_markdown("t", blocks(metrics, {}))


def test_plots_and_texts_are_not_in_markdown():
    metrics = {"about": {"model": "runs/1"}, **evaluation(TWO_LANGUAGES)}
    found = to_markdown("Evaluation", blocks(metrics, {"Lengths": SVG}, MISTAKES))
    assert "<svg" not in found and "Plots" not in found and "mistakes" not in found
    assert found.startswith("# Evaluation\n\n- The accuracy, 0.667 [0.000, 1.000], is not shown to be above chance.\n")
    assert "\n\n## Language\n\n|  | n | accuracy |" in found
    assert "\n| de | 1 | 1.000 | - | 0.500 | 0.474 | 0.378 | 1.000 | 1.000 | 0.000 |\n" in found
    assert found.endswith("\n## What this is\n\n|  |  |\n|---|---|\n| model | runs/1 |\n")


def test_a_classification_in_markdown():
    found = to_markdown("t", blocks({"about": {}, **evaluation(TEXTS)}, {}))
    assert ("\n## Classes\n\n- taken most often for another class: neu → neg (2), neg → neu (1), neu → odd (1)\n\n"
            "| class | n | precision | recall | F1 |\n|---|---:|---:|---:|---:|\n"
            "| neg | 4 | 0.600 | 0.750 | 0.667 |\n") in found
    assert "Shortcuts" not in found


def test_a_note_stands_below_its_table():
    parts = [Block("Some", table=Table(["", "n"], [["x", "1"]]), note="Of two kinds.")]
    assert to_markdown("t", iter(parts)) == "# t\n\n## Some\n\n|  | n |\n|---|---:|\n| x | 1 |\n\nOf two kinds.\n"


def test_pipes_and_lines_stay_in_their_cell():
    assert markdown_table(Table(["a|b", "n"], [["x | y\nz\r\n", "1"]]), 9) == [
        "| a\\|b | n |", "|---|---:|", "| x \\| y z | 1 |"]


def test_a_long_table_says_how_many_lines_are_left_out():
    found = Table(["", "n"], [[f"row {number}", str(number)] for number in range(1203)])
    assert markdown_table(found, 2) == ["|  | n |", "|---|---:|", "| row 0 | 0 |", "| row 1 | 1 |", "",
                                        "and 1,201 more"]
    assert len(markdown_table(found, 1203)) == 2 + 1203


def test_an_empty_table_is_nothing():
    assert markdown_table(Table(["", "n"], []), 9) == []
    assert "<table" not in to_html("t", iter([Block("Some", table=Table(["", "n"], []))]))


def test_two_models_on_the_same_rows():
    rows, others = ([sure(A, verdict, content=str(number), group=str(number)) for number, verdict in enumerate(some)]
                    for some in ((A, A, B), (A, B)))
    metrics = {"about": {}, **evaluation(rows), "difference": {"other": "other.jsonl", **difference(rows, others)}}
    found = to_markdown("t", blocks(metrics, {})).partition("## Against the other model\n")[2].partition("\n## ")[0]
    assert "\n| n | 2 | - |\n| n alone | 1 | - |\n| accuracy | 0.500 | [" in found
    assert found.endswith("\nOf the rows that both have, this model minus other.jsonl.\n")


def test_the_scores_of_a_benchmark():
    metrics = {"about": {}, **evaluation([sure()]),
               "benchmark": {"name": "RewardBench", "scores": {"Chat": 1.0, "Score": None}, "missing": ["hep-js"]}}
    shown = "\n## RewardBench\n\n|  | score |\n|---|---:|\n| Chat | 1.000 |\n| Score | - |\n\nWithout a row: hep-js.\n"
    assert shown in to_markdown("t", blocks(metrics, {}))
    assert "RewardBench:\n       score\nChat   1.000\nScore      -\nWithout a row: hep-js." in report.table(metrics)


def test_what_a_report_is_about():
    metrics = {"about": {"data": ["one.jsonl", "two.jsonl"], "ranks": 1}, **evaluation([sure()])}
    assert to_markdown("t", blocks(metrics, {})).endswith("| data | one.jsonl two.jsonl |\n| ranks | 1 |\n")
