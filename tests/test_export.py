"""Exports, as others load them: in a process of their own, with the code of their model card.

The runs are not trained: their checkpoints hold random numbers, large enough to matter.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import NAMES, THREE, TOKENIZER, TWO
from torch import nn
from transformers import AutoModelForSequenceClassification, Cohere2Config, Cohere2ForCausalLM

from pm.checkpoint import commit, judge, newest
from pm.config import parse
from pm.errors import UserError
from pm.export import main
from pm.merge import drift, merged
from pm.model import Cohere2ForSequenceClassification, add_lora, load_model
from pm.predict import PreferenceModel
from pm.publish import saved_metrics
from pm.run import audit_run, build_model, dtype_of, load_data, open_run
from pm.save import Form, export, init

ROOT = Path(__file__).parents[1]
QUESTION = ("What is the capital of Australia?", "Canberra.", "Sydney.")
BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}, "zero_optimization": {"stage": 2}}
THETA = 5e4


def refusal(call, *arguments) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Rows of each task, two settings of DeepSpeed, and a causal language model in a folder and in the hub's cache."""
    folder = tmp_path_factory.mktemp("export")
    languages = ("en", "de", "pt-br")
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for number in range(60):
            file.write(json.dumps({
                "id": f"row{number}", "prompt": f"Say hello {number}!", "response_a": f"hello {number}",
                "response_b": f"the lazy dog {number}", "winner": ("a", "b", "tie")[number % 3],
                "language": languages[number % 3]}) + "\n")
    with (folder / "texts.jsonl").open("w", encoding="utf-8") as file:
        for number in range(60):
            file.write(json.dumps({"text": f"{number} lazy dogs", "label": NAMES[number % 3], "language": "en"}) + "\n")
    settings = json.loads((ROOT / "ds_config.json").read_text())
    (folder / "fp32.json").write_text(json.dumps(settings))
    (folder / "bf16.json").write_text(json.dumps(settings | BF16))
    causal = folder / "causal"
    torch.manual_seed(0)
    config = Cohere2Config(
        vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, sliding_window=8, layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=256, pad_token_id=TOKENIZER.pad_token_id, bos_token_id=TOKENIZER.bos_token_id,
        eos_token_id=TOKENIZER.eos_token_id, rope_parameters={"rope_type": "default", "rope_theta": THETA})
    model = Cohere2ForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.2)
    model.to(torch.bfloat16).save_pretrained(causal)
    TOKENIZER.save_pretrained(causal)
    (causal / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A base\n")
    cached = folder / "hub" / "models--acme--tiny"
    shutil.copytree(causal, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    return folder


RANDOM = ("--model", "small-random", "--tune", "lora", "--vocab_size", "400")


def write_run(workplace: Path, name: str, *flags: str, settings: str = "fp32", std: float = 0.1) -> Path:
    """A run with one checkpoint, as train.py leaves it, but for the training."""
    run = workplace / name
    data = () if "--data" in flags else ("--data", str(workplace / "pairs.jsonl"))
    arguments = parse(["--deepspeed_config", str(workplace / f"{settings}.json"), "--output", str(run), "--cache_dir",
                       str(workplace / "cache"), "--max_length", "96", "--test_fraction", "0.4",
                       "--calibration_fraction", "0.3", *data, *(() if "--model" in flags else RANDOM), *flags])
    config = arguments.config
    open_run(arguments)
    data = load_data(config, run)
    audit_run(config, run, data)
    model = build_model(config, run, data.task.labels, dtype_of(arguments.ds_config), say=lambda text: None)
    torch.manual_seed(1)
    state = {f"master/{name}": parameter.detach().float() + std * torch.randn(parameter.shape)
             for name, parameter in model.named_parameters() if parameter.requires_grad}
    judge(run, commit(run, state, {"step": 7}, keep=1), 0.5, "log_loss", keep=1)
    return run


def exported(run: Path, output: Path, **form) -> dict:
    return export(run, newest(run, say=print), output, form=Form(**form))


@pytest.fixture(scope="module")
def run(workplace):
    """LoRA and embeddings over the small random model, in fp32."""
    return write_run(workplace, "run")


@pytest.fixture(scope="module")
def adapter(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "export"
    exported(run, folder)
    return folder


# Merging


def test_merging_in_fp32_changes_no_verdict_and_hardly_a_logit(run, tmp_path):
    found = exported(run, tmp_path / "merged", merged=True)["drift"]
    assert found["of"] == "the test split" and found["rows"] == 25
    assert found["flipped"] == 0 and 0 < found["mean"] <= found["largest"] < 1e-4


def test_a_merged_export_judges_as_the_adapter_does(run, adapter, tmp_path):
    exported(run, tmp_path / "merged", merged=True)
    one, other = (PreferenceModel.from_pretrained(folder, "cpu") for folder in (adapter, tmp_path / "merged"))
    assert not isinstance(other.model, PeftModel)
    questions = [[text] for text in QUESTION]
    assert other.compare(*questions)[0] == pytest.approx(one.compare(*questions)[0], abs=1e-5)
    assert abs(one.compare(*questions)[0]["a"] - 0.5) > 1e-3


def test_each_weight_is_the_fp32_sum_rounded_once():
    config = Cohere2Config(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                           num_key_value_heads=1, intermediate_size=16, eos_token_id=2, bos_token_id=1)
    torch.manual_seed(0)
    model = add_lora(Cohere2ForSequenceClassification(config), 4, 8.0, 0.0, train_embeddings=True)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.01 if parameter.requires_grad else parameter.data.bfloat16()
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    wanted = layer.base_layer.weight.float() + 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    embeddings = model.base_model.model.model.embed_tokens.modules_to_save["default"].weight.clone()
    head = model.base_model.model.score.modules_to_save["default"].weight.clone()
    whole = merged(model, torch.bfloat16)
    assert type(whole) is Cohere2ForSequenceClassification
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.bfloat16}
    assert torch.equal(whole.model.layers[0].mlp.up_proj.weight, wanted.bfloat16())
    assert torch.equal(whole.model.embed_tokens.weight, embeddings.bfloat16())
    assert torch.equal(whole.score.weight, head.bfloat16())
    assert whole.model.rotary_emb.inv_freq.dtype == torch.float32
    assert not any(isinstance(module, PeftModel) for module in whole.modules())


def test_drift_of_two_rows():
    before = [{"logits_ab": [1.0, 0.0], "logits_ba": [1.0, 0.5]}, {"logits_ab": [0.0, 0.5], "logits_ba": [0.0, 0.0]}]
    after = [{"logits_ab": [1.0, 0.0], "logits_ba": [1.0, 0.5]}, {"logits_ab": [1.0, 0.5], "logits_ba": [0.0, 0.0]}]
    assert drift(before, after) == {"rows": 2, "largest": 1.0, "mean": 1 / 8, "flipped": 1}
    tied = [{"logits_ab": [0.0, 0.0, 1.0], "logits_ba": [0.0, 0.0, 1.0]}]
    assert drift(tied, [{"logits_ab": [0.0, 0.0, -1.0], "logits_ba": [0.0, 0.0, -1.0]}])["flipped"] == 0
    assert drift([{"logits": [0.0, 1.0]}], [{"logits": [0.0, -1.0]}])["flipped"] == 1


def test_without_its_data_a_run_is_compared_on_the_sample_and_keeps_its_temperatures(workplace, tmp_path, capsys):
    source = tmp_path / "gone.jsonl"
    shutil.copy(workplace / "pairs.jsonl", source)
    run = write_run(workplace, "gone", "--data", str(source))
    exported(run, run / "export")
    wanted = json.loads((run / "export" / "preference.json").read_text())["calibration"]
    source.unlink()
    found = exported(run, tmp_path / "merged", merged=True, rows=50)["drift"]
    assert found["of"] == "the embedded sample" and found["rows"] == 50 and found["flipped"] == 0
    assert "without the run's data" in capsys.readouterr().out
    assert wanted["rows"] > 0
    assert json.loads((tmp_path / "merged" / "preference.json").read_text())["calibration"] == wanted


# What others find in the folder


def test_a_merged_export_has_the_names_that_others_read(workplace, tmp_path):
    run = write_run(workplace, "names", "--model", str(workplace / "causal"), settings="bf16")
    exported(run, tmp_path / "merged", merged=True)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["architectures"] == ["Cohere2ForSequenceClassification"] and config["model_type"] == "cohere2"
    assert config["id2label"] == {"0": "a", "1": "b"} and config["label2id"] == {"a": 0, "b": 1}
    assert config["pad_token_id"] == TOKENIZER.pad_token_id and config["dtype"] == "bfloat16"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == THETA
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert "score.weight" in tensors and "score.bias" not in tensors
    assert all(name.startswith(("model.", "score.")) for name in tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert tensors.keys() == load_file(workplace / "causal" / "model.safetensors").keys() | {"score.weight"}


def test_no_export_names_a_folder_of_the_machine(run, adapter, tmp_path):
    exported(run, tmp_path / "merged", merged=True)
    for path in (*adapter.rglob("*"), *(tmp_path / "merged").rglob("*")):
        if path.suffix in (".json", ".md"):
            assert str(run.parent) not in path.read_text("utf-8"), path


def test_metrics_that_were_measured_go_on_with_the_checkpoint(run, tmp_path):
    metrics = {"overall": {"n": 24, "n_groups": 24, "accuracy": 0.75}, "by_language": {}, "by_kind": {}}
    (run / "metrics.jsonl").write_text(json.dumps(
        {"phase": "eval", "step": 7, **metrics["overall"], "by_language": {}, "by_kind": {}}) + "\n")
    try:
        assert saved_metrics(run, "step_000007", 7)["overall"]["accuracy"] == 0.75
        assert saved_metrics(run, "step_000008", 8) is None
    finally:
        (run / "metrics.jsonl").unlink()
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "preference.json").write_text(json.dumps({"checkpoint": "step_000007"}))
    (tmp_path / "export" / "metrics.json").write_text(json.dumps(metrics))
    assert saved_metrics(tmp_path, "step_000007", 7) == metrics
    report = tmp_path / "evaluation" / "report"
    report.mkdir(parents=True)
    for data, wanted in ((["other.jsonl"], metrics), ("the run's test split", None)):
        found = {"about": {"checkpoint": "step_000007", "data": data}}
        (report / "metrics.json").write_text(json.dumps(found))
        assert saved_metrics(tmp_path, "step_000007", 7) == (wanted or found)


# In a fresh process


def in_a_fresh_process(code: str, given: str = "", **environment) -> list[str]:
    """The lines that it prints; `given` is its standard input."""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=False,
                            input=given, env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment)
    assert result.returncode == 0, result.stderr
    return [line for line in result.stdout.splitlines() if "real_accelerator" not in line]


def code_of_card(folder: Path) -> list[str]:
    """The Python blocks of the export's README.md."""
    card = (folder / "README.md").read_text("utf-8").replace("path/to/this/folder", str(folder))
    return re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)


HUB = ("--model", "acme/tiny")
TEXTS = ("--task", "classification", "--data", "texts.jsonl")
TIES = ("--labels", "a", "b", "tie")
CASES = {  # flags of train.py, its precision, flags of pm.export
    "adapter": ((), "fp32", []),
    "merged": ((), "fp32", ["--merged"]),
    "merged in bf16": ((), "fp32", ["--merged", "--dtype", "bf16"]),
    "ties, adapter": (TIES, "fp32", []),
    "ties, merged": (TIES, "fp32", ["--merged"]),
    "local base, merged": (("--model", "causal"), "bf16", ["--merged"]),
    "hub base, adapter": (HUB, "bf16", []),
    "hub base, ties, adapter": ((*HUB, *TIES), "bf16", []),
    "hub base, ties, merged in fp32": ((*HUB, *TIES), "bf16", ["--merged", "--dtype", "float32"]),
    "texts, adapter": (TEXTS, "fp32", []),
    "texts, merged": (TEXTS, "fp32", ["--merged"]),
    "full, in bf16": (("--tune", "full"), "fp32", ["--dtype", "bf16"]),
    "full": (("--tune", "full"), "bf16", []),
}
WRITE = """
import json, sys
sys.path.insert(0, "tests")
import test_export as t
workplace = t.Path({workplace!r})
for name, (flags, settings, command) in t.CASES.items():
    flags = [str(workplace / flag) if flag in ("causal", "texts.jsonl") else flag for flag in flags]
    run = t.write_run(workplace, f"cases/{{name}}", *flags, settings=settings, std=0.2)
    for kind, extra in (("own", []), ("export", command)):
        t.main([str(run), "--output", str(run / kind), *extra])
    model = t.PreferenceModel.from_pretrained(run / "own", "cpu")
    texts = [[text] for text in t.QUESTION]
    print(json.dumps((model.compare(*texts) if model.task.compares else model.classify(["Guten Morgen"]))[0]))
"""
READ = """
import ast, contextlib, io, json, sys
for blocks in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        names = {}
        exec(blocks[0], names)
        names["judge"] = names["model"]
        for block in blocks[1:]:
            exec(block, names)
    judged, logits = printed.getvalue().splitlines()
    print(json.dumps({"judged": ast.literal_eval(judged)[0], "logits": ast.literal_eval(logits[7:-1]),
                      "temperature": names["judge"].calibration.temperature, "class": type(names["model"]).__name__}))
"""


@pytest.fixture(scope="module")
def reloaded(workplace):
    """By case: the verdict of the run's own export, and what the code of the other one's card says in a process that
    has exported nothing."""
    here = {"HF_HUB_CACHE": str(workplace / "hub")}
    written = in_a_fresh_process(WRITE.format(workplace=str(workplace)), **here)
    wanted = [json.loads(line) for line in written if line.startswith("{")]
    cards = [code_of_card(workplace / "cases" / name / "export") for name in CASES]
    read = map(json.loads, in_a_fresh_process(READ, json.dumps(cards), **here))
    drifts = sum(line.startswith("against the model as it was trained, on ") for line in written)
    assert drifts == sum(bool(command) for _, _, command in CASES.values())
    return {name: (own, found) for name, own, found in zip(CASES, wanted, read, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_code_of_the_card_gives_the_same_verdict_in_a_fresh_process(reloaded, name):
    """By PreferenceModel, and by the Auto class or PEFT."""
    flags, settings, command = CASES[name]
    wanted, found = reloaded[name]
    tolerance = 1e-3 if settings == "fp32" and "bf16" not in command else 0.01
    assert found["judged"] == pytest.approx(wanted, abs=tolerance)
    probability = (torch.tensor(found["logits"]) / found["temperature"]).softmax(-1).tolist()
    assert probability == pytest.approx(list(found["judged"].values()), abs=tolerance)
    assert max(found["judged"], key=found["judged"].get) == max(wanted, key=wanted.get)
    assert max(wanted.values()) - min(wanted.values()) > tolerance
    adapter = "--tune" not in flags and "--merged" not in command
    assert found["class"] == ("PeftModelForSequenceClassification" if adapter else "Cohere2ForSequenceClassification")


@pytest.mark.slow
def test_an_adapter_for_a_and_b_loads_over_the_base_without_its_config(workplace, reloaded):
    """As PEFT's own pages show it. With other classes the base does not know how many there are."""
    printed, = in_a_fresh_process(f"""
import pm, torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification
export = {str(workplace / "cases" / "hub base, adapter" / "export")!r}
short = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained("acme/tiny"), export).eval()
config = AutoConfig.from_pretrained(export)
long = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained("acme/tiny", config=config), export)
ids = torch.arange(9, 29)[None]
print(torch.equal(short(ids).logits, long.eval()(ids).logits) and bool(short(ids).logits.any()))
""", HF_HUB_CACHE=str(workplace / "hub"))
    assert printed == "True"


# The untrained base


def test_the_untrained_base_is_the_backbone_with_a_head_of_zeros(workplace, tmp_path):
    causal = str(workplace / "causal")
    init(causal, tmp_path / "base", THREE)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    assert type(model) is Cohere2ForSequenceClassification and model.dtype == torch.bfloat16
    assert model.score.weight.shape == (3, 32) and not model.score.weight.any() and not model.score.bias.any()
    given, untrained = Cohere2ForCausalLM.from_pretrained(causal).model, model.model
    for (name, wanted), (_, found) in zip(given.named_parameters(), untrained.named_parameters(), strict=True):
        assert torch.equal(wanted, found), name
    card = (tmp_path / "base" / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card and "every verdict is even odds" in card


def test_the_head_of_an_untrained_base_is_new_to_a_run(workplace, tmp_path):
    """It then begins at the shares of the classes, as over the causal language model."""
    init(str(workplace / "causal"), tmp_path / "base", THREE, torch.float32)
    assert load_model(str(tmp_path / "base"), torch.float32, THREE)[1] is False
    assert load_model(str(workplace / "causal"), torch.float32, THREE)[1] is False


def test_what_is_no_base_is_refused(workplace, adapter, tmp_path):
    head = tmp_path / "head"
    model, _ = load_model(str(workplace / "causal"), torch.float32, TWO)
    nn.init.ones_(model.score.weight)
    model.save_pretrained(head)
    TOKENIZER.save_pretrained(head)
    assert refusal(init, str(head), tmp_path / "base", TWO) == f"--init {head} has a trained score head"
    assert refusal(init, str(head), adapter, TWO) == f"--output {adapter} is there already"
    message = refusal(init, str(head), tmp_path / "base", THREE)
    assert message == f"--init {head} has a head for the classes a, b; one for a, b, tie is needed"
    assert refusal(init, str(tmp_path), tmp_path / "base", TWO).startswith(f"--init {tmp_path} cannot be loaded")
    model.half().save_pretrained(head)
    model.score.weight.data.zero_()
    model.save_pretrained(head)
    assert refusal(init, str(head), tmp_path / "base", TWO) == f"--init {head} holds float16; give --dtype"
    assert not (tmp_path / "base").exists()


@pytest.mark.slow
@pytest.mark.parametrize("labels", [(), ("--labels", "a", "b", "tie")], ids=["a b", "a b tie"])
def test_an_untrained_base_gives_the_run_of_the_model_it_is_from(workplace, tmp_path, labels):
    main(["--init", str(workplace / "causal"), "--output", str(tmp_path / "base"), *labels])
    states = []
    for model in (workplace / "causal", tmp_path / "base"):
        run = tmp_path / f"run_{model.name}"
        command = [sys.executable, "train.py", "--deepspeed_config", str(workplace / "bf16.json"), "--model",
                   str(model), "--data", str(workplace / "pairs.jsonl"), "--cache_dir", str(workplace / "cache"),
                   "--output", str(run), "--max_steps", "2", "--epochs", "100", *labels]
        result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
        assert result.returncode == 0, result.stderr
        assert "score head new" in result.stdout
        states.append((newest(run).path / "state.safetensors").read_bytes())
        assert (run / "export" / "README.md").read_text().startswith("---\n")
    assert states[0] == states[1]


# The hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as an upload of small files needs."""

    def log_message(self, *words):
        pass

    def answer(self, value, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        path = self.path.partition("?")[0]
        if self.headers.get("Authorization") != "Bearer hf_right":
            self.answer({"error": "Invalid username or password."}, 401)
        elif path == "/api/whoami-v2":
            self.answer({"name": "jo", "type": "user"})
        elif path.startswith("/api/models/jo/judge/tree/"):
            self.answer([{"type": "file", "path": name, "size": 1, "oid": "0"} for name in self.server.files])
        elif path.startswith("/api/models/jo/judge"):
            self.answer({"id": "jo/judge", "private": self.server.private, "sha": "0" * 40,
                         "siblings": [{"rfilename": name} for name in self.server.files]})
        else:
            self.answer({"error": "not found"}, 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            self.server.created = json.loads(body)
            self.answer({"url": f"http://{self.headers['Host']}/jo/judge"}, 409 if self.server.files else 200)
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path == "/api/models/jo/judge/preupload/main":
            self.answer({"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                                   for file in json.loads(body)["files"]]})
        elif path == "/api/models/jo/judge/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del self.server.files[line["value"]["path"]]
            self.answer({"commitUrl": f"http://{self.headers['Host']}/jo/judge/commit/1", "commitOid": "1" * 40,
                         "success": True})
        else:
            self.answer({"error": "not found"}, 404)


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.private, server.created = {}, False, None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def export_command(hub, *arguments: str, token: str = "hf_right") -> subprocess.CompletedProcess:
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    return subprocess.run([sys.executable, "-m", "pm.export", *arguments], cwd=ROOT, text=True, capture_output=True,
                          check=False, env=os.environ | environment)


@pytest.mark.slow
def test_an_export_is_pushed_whole_and_replaces_one_of_another_kind(hub, run):
    result = export_command(hub, str(run), "--push_to_hub", "judge", "--private")
    assert result.returncode == 2
    assert result.stderr.endswith("error: --private: jo/judge is there already, and is public\n")
    hub.private = True
    result = export_command(hub, str(run), "--push_to_hub", "judge", "--private")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith("pushed to http") and hub.created["visibility"] == "private"
    for path in (path for path in (run / "export").rglob("*") if path.is_file()):
        assert hub.files.pop(str(path.relative_to(run / "export"))) == path.read_bytes()
    assert not hub.files
    assert 'PreferenceModel.from_pretrained("jo/judge")' in (run / "export" / "README.md").read_text()
    hub.files |= {"adapter_config.json": b"{}", "base/config.json": b"{}", "picture.png": b"1"}
    result = export_command(hub, str(run), "--merged", "--push_to_hub", "jo/judge")
    assert result.returncode == 0, result.stderr
    assert set(hub.files) - {"picture.png"} == {path.name for path in (run / "merged").iterdir()}
    assert hub.files["picture.png"] == b"1"


@pytest.mark.slow
def test_what_cannot_be_pushed_is_said_on_one_line_before_any_work(hub, workplace):
    run = write_run(workplace, "local", "--model", str(workplace / "causal"), settings="bf16")
    for arguments, token, words in (
            ([str(run), "--push_to_hub", "jo/judge"], "hf_wrong", "error: --push_to_hub jo/judge: "),
            ([str(run), "--push_to_hub", "jo/judge"], "hf_right", "error: --push_to_hub jo/judge: nobody else has the "
                                                                  "adapter's base"),
            ([str(run), "--push_to_hub", "a/b/c"], "hf_right", "error: --push_to_hub a/b/c: Repo id must be")):
        result = export_command(hub, *arguments, token=token)
        assert result.returncode == 2 and "Traceback" not in result.stderr
        assert result.stderr.splitlines()[-1].startswith(words), result.stderr
    hub.server_close()
    result = export_command(hub, str(run), "--merged", "--push_to_hub", "jo/judge")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert not (run / "export").exists() and not (run / "merged").exists() and not hub.files


# The command line


@pytest.mark.parametrize(("arguments", "words"), [
    (["--dtype", "bf16"], "--dtype is of whole weights: it needs --merged"),
    (["--rows", "0"], "--rows 0: must be at least 1"),
    (["--labels", "a", "b"], "--labels are of --init; a run has its own"),
    (["--private"], "--private is of --push_to_hub"),
    (["--init", "x"], "--init x writes no run: take RUN, --checkpoint and --merged out"),
    (["--checkpoint", "step_000009"], "checkpoint step_000009 of {} cannot be read: "),
])
def test_a_wrong_command_says_what_is_wrong(run, arguments, words):
    assert refusal(main, [str(run), *arguments]).startswith(words.format(run))


def test_init_needs_an_output_and_two_labels():
    assert refusal(main, ["--init", "x"]) == "--init x needs --output, the folder to be written"
    message = refusal(main, ["--init", "x", "--output", "y", "--labels", "a", "a"])
    assert message == "--labels a a: at least two different ones are needed"


def test_a_folder_of_something_else_is_not_replaced(run, tmp_path):
    (tmp_path / "thesis.tex").write_text("Chapter 1")
    assert refusal(main, [str(run), "--output", str(tmp_path)]).endswith("is there already, and is no export")
    assert (tmp_path / "thesis.tex").read_text() == "Chapter 1"
