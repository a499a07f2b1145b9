"""The page, in a headless Chromium that runs permalinks; skipped where there is none."""

import html
import re
import shutil
import subprocess
from urllib.parse import urlencode

import pytest
from serving import Running
from tiny import NAMES, TWO, export

from pm.predict import PreferenceModel
from pm.serve import create_app
from pm.task import CLASSIFICATION, PREFERENCE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="the page is tested in a headless "
                                                   "Chromium, and there is none on this machine")]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    model = PreferenceModel.from_pretrained(export(tmp_path_factory.mktemp("export"), PREFERENCE, TWO, {
        "calibration": {"temperature": 2.0, "languages": {"de": 0.5}, "rows": 9}}), "cpu")
    running = Running(create_app(model, "tiny"))
    yield model, running.url
    running.stop()


def shown(url: str, tmp_path, **fields: str) -> str:
    """The page after a permalink has run."""
    result = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000", "--dump-dom",
         f"{url}/#{urlencode({**fields, 'run': ''})}"], capture_output=True, text=True, timeout=120, check=True)
    page = result.stdout.partition("<script")[0]
    assert "No answer:" not in page
    return page


def result_of(page: str) -> str:
    """What the result says, without its tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page[page.index('id="result"') :])).split())


def test_a_comparison_shows_both_orders_and_their_mean(served, tmp_path):
    model, url = served
    row, = model.predictions(["hello"], ["the fox"], ["lazy dog"], languages=["de"])
    text = result_of(shown(url, tmp_path, prompt="hello", a="the fox", b="lazy dog", language="de"))
    winner = max(row["probability"], key=row["probability"].get)
    assert f"Response {winner.upper()} is better, says the model: {100 * row['probability'][winner]:.1f}" in text
    assert "A, then B" in text and "B, then A" in text and "both, averaged" in text
    assert "Order sensitivity: P(A) differs by" in text
    assert "Calibrated on 9 held-out rows, with the temperature 0.50 of German" in text


def test_what_was_cut_is_marked_in_the_text(served, tmp_path):
    _, url = served
    page = shown(url, tmp_path, prompt="hello", a="fox " * 100, b="lazy dog")
    assert re.search(r"<mark>\d+ characters left out</mark>", page)
    assert "As the model read it" in result_of(page)


def test_several_responses_are_a_ranking(served, tmp_path):
    model, url = served
    responses = ["the fox", "lazy dog", "0 1 2", "quick", "hello hello"]
    page = shown(url, tmp_path, prompt="say", **dict(zip("abcde", responses, strict=True)))
    table = page[page.index('id="ranking"') : page.index("</table>", page.index('id="ranking"'))]
    found = re.findall(r'<div class="text clamp"[^>]*>([^<]*)</div>', table)
    assert found == [responses[place] for place in model.rank("say", responses).order]
    assert "10 comparisons, each in both orders" in result_of(page)


def test_texts_of_any_script_stay_texts(served, tmp_path):
    _, url = served
    arabic, markup = "ما هي عاصمة أستراليا؟", '<img src=x onerror="document.title=1"> שלום 你好 नमस्ते'
    page = shown(url, tmp_path, prompt=arabic, a=markup, b="fox", c="dog")
    assert "&lt;img src=x" in page and "<img" not in page
    assert "<title>1</title>" not in page
    assert re.search(r'<div class="text clamp" dir="auto"', page)


def test_a_model_that_classifies_has_one_text(tmp_path):
    model = PreferenceModel.from_pretrained(export(tmp_path / "export", CLASSIFICATION, NAMES), "cpu")
    running = Running(create_app(model, "tiny"))
    try:
        text = result_of(shown(running.url, tmp_path / "browser", prompt="the fox"))
    finally:
        running.stop()
    found, = model.classify(["the fox"])
    assert text.index(max(found, key=found.get)) < text.index(min(found, key=found.get))
    assert f"{100 * max(found.values()):.1f}" in text
