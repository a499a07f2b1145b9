"""Flags and ds_config.json: what is taken, and what is refused with which words."""

import copy
import dataclasses
import json
import os
from pathlib import Path

import pytest

from pm.config import Config, Pretraining, load_config, newest_run, parse, read_ds_config
from pm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
DS = {
    "train_batch_size": 8,
    "managed_gradient_accumulation": False,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    "zero_optimization": {"stage": 1},
}


def write_ds(folder: Path, ds_config=DS) -> Path:
    path = folder / "ds.json"
    path.write_text(json.dumps(ds_config))
    return path


def read_flags(folder: Path, *flags: str) -> Config:
    return parse([*flags, "--deepspeed_config", str(write_ds(folder))]).config


def refusal(call, *arguments) -> str:
    """What a `UserError` says, on one line."""
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def changed(**changes) -> dict:
    """DS with other values; `a__b` is key b inside a; None takes the key out."""
    ds_config = copy.deepcopy(DS)
    for keys, value in changes.items():
        *outer, last = keys.split("__")
        place = ds_config
        for key in outer:
            place = place.setdefault(key, {})
        place.pop(last, None) if value is None else place.update({last: value})
    return ds_config


# ds_config.json


def test_shipped_ds_configs_pass():
    for path in [ROOT / "ds_config.json", *sorted((ROOT / "pm" / "ds_configs").glob("*.json"))]:
        assert read_ds_config(path)["train_batch_size"] >= 1, path


def test_a_good_ds_config_is_returned_as_it_is(tmp_path):
    assert read_ds_config(write_ds(tmp_path)) == DS


@pytest.mark.parametrize("changes", [
    {"bf16": {"enabled": True}},
    {"bf16": {"enabled": False}, "zero_optimization__stage": 0},
    {"zero_optimization": None},
    {"zero_optimization__stage": 2},
    {"zero_optimization__stage": 3},
    {"optimizer__type": "Adam"},
    {"train_batch_size": 1},
    {"steps_per_print": 10},
])
def test_allowed_ds_configs(tmp_path, changes):
    assert read_ds_config(write_ds(tmp_path, changed(**changes))) == changed(**changes)


@pytest.mark.parametrize(("changes", "words"), [
    ({"gradient_clipping": "auto"}, 'gradient_clipping is "auto"; give its value'),
    ({"optimizer__params__lr": "auto"}, 'optimizer.params.lr is "auto"; give its value'),
    ({"zero_optimization__inner__deep": "auto"}, 'zero_optimization.inner.deep is "auto"; give its value'),
    ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu contradicts train_batch_size, which alone "
                                            "says what a step is; take it out (--tokens_per_micro_batch sets"),
    ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps contradicts train_batch_size"),
    ({"scheduler": {"type": "WarmupLR"}}, "scheduler is set by --warmup and --min_lr; take it out"),
    ({"fp16": {"enabled": True}}, "fp16 is not supported; use bf16"),
    ({"gradient_cliping": 1.0}, "gradient_cliping is not a known key; gradient_clipping is"),
    ({"zzz": 1}, "zzz is not a known key"),
    ({"train_batch_size": None}, "train_batch_size must be a whole number of pairs, at least 1, not None"),
    ({"train_batch_size": 0}, "train_batch_size must be a whole number of pairs, at least 1, not 0"),
    ({"train_batch_size": 8.0}, "train_batch_size must be a whole number of pairs, at least 1, not 8.0"),
    ({"train_batch_size": True}, "train_batch_size must be a whole number of pairs, at least 1, not True"),
    ({"train_batch_size": "8"}, "train_batch_size must be a whole number of pairs, at least 1, not '8'"),
    ({"managed_gradient_accumulation": None}, "managed_gradient_accumulation must be false"),
    ({"managed_gradient_accumulation": True}, "managed_gradient_accumulation must be false"),
    ({"optimizer": None}, "optimizer.type must be Adam or AdamW, not None"),
    ({"optimizer": "AdamW"}, "optimizer must be an object, not 'AdamW'"),
    ({"optimizer__type": "Lion"}, "optimizer.type must be Adam or AdamW, not 'Lion'"),
    ({"optimizer__params": [1]}, "optimizer.params must be an object, not [1]"),
    ({"optimizer__params__lr": float("nan")}, "optimizer.params.lr must be a number above 0, not nan"),
    ({"optimizer__params__betas": ["auto", 0.9]}, 'optimizer.params.betas.0 is "auto"; give its value'),
    ({"optimizer__params__weight_decay": "x"}, "optimizer.params.weight_decay must be a number, at least 0, not 'x'"),
    ({"gradient_clipping": -1}, "gradient_clipping must be a number, at least 0, not -1"),
    ({"optimizer__params__beta": 0.9}, "optimizer.params.beta is not a known key; known are betas, eps, lr"),
    ({"optimizer__params__betas": 0.9}, "optimizer.params.betas must be two numbers, at least 0 and below 1, not 0.9"),
    ({"bf16": {"enabled": True, "check_grad_overflow": False}}, "bf16.check_grad_overflow is not supported"),
    ({"bf16": {"enabled": "yes"}}, "bf16.enabled must be true or false, not 'yes'"),
    ({"zero_optimization__overlap_comm": True}, "zero_optimization.overlap_comm needs stage 2 or 3; it is 1"),
    ({"zero_optimization__cpu_offload": True}, "zero_optimization.cpu_offload is not supported"),
    ({"bf16": True}, "bf16 must be an object, not True"),
    ({"optimizer__params": None}, "optimizer.params.lr must be a number above 0, not None"),
    ({"optimizer__params__lr": None}, "optimizer.params.lr must be a number above 0, not None"),
    ({"optimizer__params__lr": 0}, "optimizer.params.lr must be a number above 0, not 0"),
    ({"optimizer__params__lr": "1e-3"}, "optimizer.params.lr must be a number above 0, not '1e-3'"),
    ({"optimizer__params__lr": True}, "optimizer.params.lr must be a number above 0, not True"),
    ({"optimizer__params__torch_adam": None}, "optimizer.params.torch_adam must be true"),
    ({"optimizer__params__torch_adam": False}, "optimizer.params.torch_adam must be true"),
    ({"zero_optimization__stage": 4}, "zero_optimization.stage must be 0, 1, 2 or 3, not 4"),
    ({"zero_optimization__stage": "1"}, "zero_optimization.stage must be 0, 1, 2 or 3, not '1'"),
    ({"zero_optimization": 1}, "zero_optimization must be an object, not 1"),
    ({"zero_optimization__offload_optimizer": {}}, "zero_optimization.offload_optimizer is not supported"),
    ({"zero_optimization__offload_param": {}}, "zero_optimization.offload_param is not supported"),
    ({"bf16": {"enabled": True}, "zero_optimization__stage": 0}, "bf16 needs zero_optimization.stage 1 or more"),
    ({"bf16": {"enabled": True}, "zero_optimization": None}, "bf16 needs zero_optimization.stage 1 or more"),
])
def test_refused_ds_configs(tmp_path, changes, words):
    path = write_ds(tmp_path, changed(**changes))
    assert refusal(read_ds_config, path).startswith(f"{path}: {words}")


def test_missing_ds_config_is_named(tmp_path):
    path = tmp_path / "none.json"
    assert refusal(parse, ["--deepspeed_config", str(path)]) == f"--deepspeed_config {path}: No such file or directory"


def test_folder_as_ds_config_is_named(tmp_path):
    assert refusal(read_ds_config, tmp_path) == f"--deepspeed_config {tmp_path}: Is a directory"


@pytest.mark.parametrize("content", [b"", b"{", b"{'a': 1}", b"\xff\xfe"])
def test_ds_config_that_is_not_json_is_named(tmp_path, content):
    path = tmp_path / "ds.json"
    path.write_bytes(content)
    assert refusal(read_ds_config, path).startswith(f"--deepspeed_config {path} is not JSON: ")


def test_ds_config_that_is_no_object_is_named(tmp_path):
    path = write_ds(tmp_path, [])
    assert refusal(read_ds_config, path) == f"{path}: must hold an object"


# Flags


def test_nothing_given_is_enough(monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = parse([])
    assert arguments.ds_config == json.loads((ROOT / "ds_config.json").read_text())
    assert arguments.resume is None
    config = arguments.config
    assert (config.data, config.model, config.tune) == (["sample"], "base", "lora")


def test_defaults_that_depend_on_the_model(tmp_path):
    base, large = read_flags(tmp_path), read_flags(tmp_path, "--model", "some/model")
    assert (base.tune, base.train_embeddings, base.gradient_checkpointing) == ("lora", False, False)
    assert (large.tune, large.train_embeddings, large.gradient_checkpointing) == ("lora", False, True)
    random = ("--model", "small-random")
    small, adapted = read_flags(tmp_path, *random), read_flags(tmp_path, *random, "--tune", "lora")
    assert (small.tune, small.train_embeddings, small.gradient_checkpointing) == ("full", False, False)
    assert (adapted.tune, adapted.train_embeddings) == ("lora", True)
    assert read_flags(tmp_path, *random, "--tune", "lora", "--no-train_embeddings").train_embeddings is False
    assert read_flags(tmp_path, "--model", "some/model", "--train_embeddings").train_embeddings is True


def test_the_vocabulary_is_chosen_only_for_new_weights(tmp_path):
    assert read_flags(tmp_path, "--model", "small-random", "--vocab_size", "500").vocab_size == 500
    assert refusal(read_flags, tmp_path, "--vocab_size", "500") == (
        "--vocab_size 500 is of --model small-random; base has its own")


@pytest.mark.parametrize(("flags", "message"), [
    (["--tune", "full", "--lora_rank", "4"], "--lora_rank 4 is of --tune lora; here all weights are trained"),
    (["--model", "small-random", "--lora_dropout", "0.1"],
     "--lora_dropout 0.1 is of --tune lora; here all weights are trained"),
    (["--orders", "random", "--order_weight", "0.9"], "--order_weight 0.9 is of --orders both"),
])
def test_a_flag_that_would_say_nothing_is_refused(tmp_path, flags, message):
    assert refusal(read_flags, tmp_path, *flags) == message


def test_a_new_shape_or_tokenizer_is_of_new_weights(tmp_path):
    for name in ("shape", "tokenizer_temperature", "vocab_size"):
        value = {"shape": "my.json", "tokenizer_temperature": "0.25", "vocab_size": "500"}[name]
        with pytest.raises(UserError) as error:
            parse(["--model", "base", f"--{name}", value], Pretraining, str(ROOT / "pm/ds_configs/pretrain.json"))
        assert str(error.value) == f"--{name} {value} is of --model small-random; base has its own"
        parse([f"--{name}", value], Pretraining, str(ROOT / "pm/ds_configs/pretrain.json"))


def test_default_test_fraction_depends_on_the_data(tmp_path):
    assert read_flags(tmp_path).test_fraction == 0.25
    assert read_flags(tmp_path, "--data", "a.jsonl").test_fraction == 0.05
    assert read_flags(tmp_path, "--data", "a.jsonl", "--test_data", "b.jsonl").test_fraction == 0.0
    assert read_flags(tmp_path, "--test_fraction", "0.5").test_fraction == 0.5


def test_given_values_arrive_in_their_type(tmp_path):
    config = read_flags(tmp_path, "--data", "a.jsonl", "b.csv", "--lora_rank", "4", "--epochs", "2", "--max_steps", "7",
                        "--orders", "random", "--wandb", "--output", "runs/x")
    assert config.data == ["a.jsonl", "b.csv"]
    assert (config.lora_rank, config.epochs, config.max_steps) == (4, 2.0, 7)
    assert (config.orders, config.wandb, config.output) == ("random", True, "runs/x")
    assert type(config.epochs) is float


def test_what_shapes_the_targets_arrives(tmp_path):
    config = read_flags(tmp_path, "--teacher", "p.jsonl", "--teacher_temperature", "2", "--teacher_weight", "1",
                        "--margin_scale", "0.5", "--language_temperature", "0.3", "--consistency_weight", "0.2",
                        "--label_smoothing", "0.1", "--detect_languages", "--format", "pair")
    assert (config.teacher, config.teacher_temperature, config.teacher_weight) == ("p.jsonl", 2.0, 1.0)
    assert (config.margin_scale, config.language_temperature) == (0.5, 0.3)
    assert (config.consistency_weight, config.label_smoothing) == (0.2, 0.1)
    assert (config.detect_languages, config.format) == (True, "pair")


def test_without_flags_targets_stay_as_they_are(tmp_path):
    config = read_flags(tmp_path)
    assert (config.teacher, config.consistency_weight, config.label_smoothing) == (None, 0.0, 0.0)
    assert (config.margin_scale, config.language_temperature, config.detect_languages) == (1.0, 1.0, False)
    assert config.format is None


# Packing


def packing(folder: Path, *flags: str, stage: int = 1) -> bool | None:
    path = write_ds(folder, changed(zero_optimization__stage=stage))
    return parse([*flags, "--deepspeed_config", str(path)]).config.packing


def test_sequences_are_packed_where_they_can_be(tmp_path):
    assert [packing(tmp_path, stage=stage) for stage in (0, 1, 2, 3)] == [True, True, True, False]
    assert packing(tmp_path, "--lora_dropout", "0.1") is False
    assert packing(tmp_path, "--packing", stage=2) is True
    assert packing(tmp_path, "--no-packing") is False
    assert packing(tmp_path, "--no-packing", "--lora_dropout", "0.1", stage=3) is False


@pytest.mark.parametrize(("flags", "stage"), [
    ([], 3), (["--lora_dropout", "0.25"], 1), (["--lora_dropout", "0.25"], 3)])
def test_packing_is_refused_where_it_cannot_be(tmp_path, flags, stage):
    path = write_ds(tmp_path, changed(zero_optimization__stage=stage))
    message = refusal(parse, ["--packing", *flags, "--deepspeed_config", str(path)])
    assert message.startswith("--packing runs without zero_optimization.stage 3")
    assert message.endswith(f"and without --lora_dropout, which is {0.25 if flags else 0.0}")


# The language model's loss


def test_the_loss_of_the_language_model_is_left_out_unless_told(tmp_path):
    assert read_flags(tmp_path).lm_loss_weight == 0.0
    config = read_flags(tmp_path, "--lm_loss_weight", "0.1")
    assert (config.lm_loss_weight, config.packing) == (0.1, True)
    for flags, stage in ((["--no-packing"], 1), (["--lora_dropout", "0.1"], 1), ([], 3)):
        assert packing(tmp_path, "--lm_loss_weight", "0", *flags, stage=stage) is False


@pytest.mark.parametrize(("flags", "stage"), [
    (["--no-packing"], 1), (["--lora_dropout", "0.25"], 1), (["--lora_dropout", "0.25", "--no-packing"], 2), ([], 3)])
@pytest.mark.parametrize("asked", [["--lm_loss_weight", "0.1"], ["--compile"]])
def test_what_needs_packing_is_refused_without(tmp_path, asked, flags, stage):
    path = write_ds(tmp_path, changed(zero_optimization__stage=stage))
    message = refusal(parse, [*asked, *flags, "--deepspeed_config", str(path)])
    assert message == f"{asked[0]} needs packing: no --no-packing, no --lora_dropout, no zero_optimization.stage 3"


def test_a_resumed_run_may_be_compiled(tmp_path):
    run = saved_run(tmp_path)
    assert not load_config(run).compile
    assert read_flags(tmp_path, "--resume", str(run), "--compile").compile


def test_a_run_that_knew_no_loss_of_the_language_model_goes_on_without(tmp_path):
    run = saved_run(tmp_path)
    settings = json.loads((run / "config.json").read_text())
    assert settings.pop("lm_loss_weight") == 0.0
    (run / "config.json").write_text(json.dumps(settings))
    assert load_config(run).lm_loss_weight == 0.0
    message = refusal(read_flags, tmp_path, "--resume", str(run), "--lm_loss_weight", "0.1")
    assert message == f"--resume {run} with --lm_loss_weight 0.1: the run has 0.0"


def test_a_resumed_run_with_the_loss_of_the_language_model_stays_packed(tmp_path):
    run = saved_run(tmp_path, "--lm_loss_weight", "0.1")
    assert packing(tmp_path, "--resume", str(run)) is True
    message = refusal(packing, tmp_path, "--resume", str(run), "--no-packing")
    assert message.startswith("--lm_loss_weight needs packing")


# Pretraining


def pretraining(folder: Path, *flags: str, stage: int = 1) -> Pretraining:
    path = write_ds(folder, changed(zero_optimization__stage=stage))
    return parse([*flags, "--deepspeed_config", str(path)], Pretraining).config


def test_pretraining_needs_no_flag():
    """Its own settings of DeepSpeed are those of the package, wherever it is called."""
    path = ROOT / "pm/ds_configs/pretrain.json"
    arguments = parse([], Pretraining, str(path))
    assert (arguments.ds_config, arguments.resume) == (json.loads(path.read_text()), None)
    config = arguments.config
    assert (config.data, config.model, config.test_fraction) == (["sample"], "small-random", 0.25)
    assert (config.vocab_size, config.max_length, config.epochs) == (12_000, 1024, 3.0)
    assert (config.language_temperature, config.tokenizer_temperature) == (1.0, 0.5)
    assert config.gradient_checkpointing is False
    assert json.loads(Path(config.shape).read_text())["model_type"] == "cohere2"


def test_pretraining_reads_texts_beside_comparisons(tmp_path):
    reading = pretraining(tmp_path, "--detect_languages", "--max_bad_fraction", "0.5", "--format", "text").reading
    assert (reading.task, reading.format, reading.detect_languages, reading.max_bad_fraction) == (
        "language", "text", True, 0.5)
    assert pretraining(tmp_path, "--format", "orca").reading.format == "orca"


def test_a_model_to_go_on_with_is_not_so_small(tmp_path):
    config = pretraining(tmp_path, "--model", "some/model", "--data", "en.txt")
    assert (config.random_base, config.gradient_checkpointing, config.test_fraction) == (False, True, 0.05)


def test_help_of_pretraining_names_its_flags_and_no_others(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"], Pretraining)
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: pm.pretrain ")
    assert [item.name for item in dataclasses.fields(Pretraining) if f"--{item.name}" not in text] == []
    for name in ("tune", "task", "labels", "lora_rank", "packing", "orders", "lm_loss_weight", "best_metric"):
        assert f"--{name}" not in text


@pytest.mark.parametrize(("flags", "words"), [
    (["--tune", "full"], "unrecognized arguments: --tune full"),
    (["--task", "classification"], "unrecognized arguments: --task classification"),
    (["--lm_loss_weight", "0.1"], "unrecognized arguments: --lm_loss_weight 0.1"),
    (["--no-packing"], "unrecognized arguments: --no-packing"),
    (["--format", "classification"], "--format classification is of --task classification"),
    (["--tokenizer_temperature", "-1"], "--tokenizer_temperature -1.0: must be a number, at least 0"),
    (["--tokenizer_temperature", "inf"], "--tokenizer_temperature inf: must be a number, at least 0"),
    (["--vocab_size", "399"], "--vocab_size 399: must be at least 400"),
    (["--epochs", "0"], "--epochs 0.0: must be above 0"),
    (["--keep", "0"], "--keep 0: must be at least 1"),
    (["--max_bad_fraction", "2"], "--max_bad_fraction 2.0: must be between 0 and 1"),
    (["--test_data", "b.txt", "--test_fraction", "0.1"], "--test_data and --test_fraction 0.1 say two things"),
])
def test_flags_that_pretraining_refuses(tmp_path, flags, words):
    assert refusal(pretraining, tmp_path, *flags).startswith(words)


def test_pretraining_refuses_zero_3(tmp_path):
    def on_zero_3(*flags: str) -> Pretraining:
        return pretraining(tmp_path, *flags, stage=3)

    run = saved_pretraining(tmp_path)
    for flags in ([], ["--resume", str(run)], ["--tokens_per_micro_batch", "auto"]):
        assert refusal(on_zero_3, *flags) == (
            "pm.pretrain runs without zero_optimization.stage 3, which gathers only the weights of modules that are "
            "called")
    assert [pretraining(tmp_path, stage=stage).seed for stage in (0, 1, 2)] == [0, 0, 0]


def test_only_pretraining_reads_texts(tmp_path):
    assert refusal(read_flags, tmp_path, "--format", "text").startswith("--format text is of ")
    assert refusal(read_flags, tmp_path, "--task", "language").startswith("argument --task: invalid choice: 'language'")


def saved_pretraining(folder: Path, *flags: str) -> Path:
    run = folder / "pretraining"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(dataclasses.asdict(pretraining(folder, *flags))))
    (run / "ds_config.json").write_text(json.dumps(DS))
    return run


def test_resumed_pretraining_has_its_own_settings(tmp_path):
    run = saved_pretraining(tmp_path, "--data", "en.txt", "--max_steps", "9", "--vocab_size", "500")
    resumed = pretraining(tmp_path, "--resume", str(run))
    assert resumed == load_config(run, Pretraining)
    assert (resumed.data, resumed.max_steps, resumed.vocab_size) == (["en.txt"], 9, 500)
    changed = pretraining(tmp_path, "--resume", str(run), "--keep", "7", "--license", "apache-2.0",
                          "--tokens_per_micro_batch", "auto", "--gradient_checkpointing", "--max_steps", "9")
    assert changed == dataclasses.replace(resumed, keep=7, license="apache-2.0", tokens_per_micro_batch="auto",
                                          gradient_checkpointing=True)


@pytest.mark.parametrize(("flags", "words"), [
    (["--data", "de.txt"], "--data ['de.txt']: the run has ['en.txt']"),
    (["--shape", "large.json"], "--shape large.json: the run has "),
    (["--vocab_size", "600"], "--vocab_size 600: the run has 12000"),
    (["--tokenizer_temperature", "1"], "--tokenizer_temperature 1.0: the run has 0.5"),
    (["--max_length", "512"], "--max_length 512: the run has 1024"),
    (["--epochs", "1"], "--epochs 1.0: the run has 3.0"),
    (["--seed", "1"], "--seed 1: the run has 0"),
    (["--eval_every", "5"], "--eval_every 5: the run has 500"),
])
def test_resumed_pretraining_refuses_what_would_change_the_result(tmp_path, flags, words):
    run = saved_pretraining(tmp_path, "--data", "en.txt")
    assert refusal(pretraining, tmp_path, "--resume", str(run), *flags).startswith(f"--resume {run} with {words}")


def test_a_run_of_one_kind_is_none_of_the_other(tmp_path):
    language, preference = saved_pretraining(tmp_path), saved_run(tmp_path)
    assert refusal(read_flags, tmp_path, "--resume", str(language)).startswith(f"{language} is not a run: ")
    assert refusal(pretraining, tmp_path, "--resume", str(preference)).startswith(f"{preference} is not a run: ")


def test_the_newest_run_of_either_kind_is_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    language = saved_pretraining(tmp_path / "runs")
    (tmp_path / "runs/pretrain").mkdir()
    language = language.rename(tmp_path / "runs/pretrain/20260102").relative_to(tmp_path)
    preference = saved_run(tmp_path / "runs").rename(tmp_path / "runs/20260101").relative_to(tmp_path)
    os.utime(preference / "config.json", (1, 1))
    for run in (language, preference):
        (run / "checkpoints").mkdir()
        (run / "checkpoints/latest").touch()
    flags = ["--resume", "--deepspeed_config", str(write_ds(tmp_path))]
    assert (parse(flags, Pretraining).resume, parse(flags).resume) == (language, preference)


# Tasks


def test_a_preference_has_two_classes_and_both_orders_unless_told(tmp_path):
    config = read_flags(tmp_path)
    assert (config.task, config.labels, config.orders) == ("preference", ["a", "b"], "both")
    config = read_flags(tmp_path, "--labels", "a", "b", "tie", "--orders", "random")
    assert (config.labels, config.orders) == (["a", "b", "tie"], "random")


def test_a_classification_has_the_classes_of_its_data_and_no_orders(tmp_path):
    flags = ("--task", "classification", "--data", "a.jsonl")
    config = read_flags(tmp_path, *flags)
    assert (config.task, config.labels, config.orders) == ("classification", [], None)
    assert read_flags(tmp_path, *flags, "--labels", "no", "yes").labels == ["no", "yes"]


@pytest.mark.parametrize("labels", [["b", "a"], ["a"], ["a", "b", "c"], ["a", "tie", "b"], ["tie", "a", "b"],
                                    ["a", "b", "b"], ["A", "B"]])
def test_other_classes_of_a_preference_are_refused(tmp_path, labels):
    assert refusal(read_flags, tmp_path, "--labels", *labels) == (
        f"--labels {' '.join(labels)}: those of a preference are a b, or a b tie")


@pytest.mark.parametrize("labels", [["yes"], ["no", "yes", "no"]])
def test_a_classification_needs_two_different_classes(tmp_path, labels):
    flags = ("--task", "classification", "--data", "a.jsonl", "--labels", *labels)
    assert refusal(read_flags, tmp_path, *flags) == (
        f"--labels {' '.join(labels)}: at least two different ones are needed")


@pytest.mark.parametrize(("flags", "words"), [
    (["--orders", "both"], "--orders both is of two responses; --task classification has none"),
    (["--orders", "random"], "--orders random is of two responses; --task classification has none"),
    (["--consistency_weight", "0.5"], "--consistency_weight 0.5 compares two orders; it needs --orders both"),
    (["--format", "pair"], "--format pair is of --task preference"),
    (["--format", "orca"], "--format orca is of --task preference"),
    (["--data", "sample"], "--task classification needs --data: the embedded sample holds comparisons"),
])
def test_a_classification_refuses_what_is_of_comparisons(tmp_path, flags, words):
    flags = ("--task", "classification", "--data", "a.jsonl", *flags)
    assert refusal(read_flags, tmp_path, *flags) == words


def test_a_classification_without_data_is_refused(tmp_path):
    assert refusal(read_flags, tmp_path, "--task", "classification") == (
        "--task classification needs --data: the embedded sample holds comparisons")


def test_a_preference_refuses_the_form_of_texts(tmp_path):
    assert refusal(read_flags, tmp_path, "--format", "classification") == (
        "--format classification is of --task classification")
    assert read_flags(tmp_path, "--task", "classification", "--data", "a.jsonl", "--format",
                      "classification").format == "classification"


def test_consistency_needs_both_orders(tmp_path):
    assert refusal(read_flags, tmp_path, "--orders", "random", "--consistency_weight", "0.25") == (
        "--consistency_weight 0.25 compares two orders; it needs --orders both")
    assert read_flags(tmp_path, "--orders", "random", "--consistency_weight", "0").orders == "random"


@pytest.mark.parametrize("local_rank", [["--local_rank=1"], ["--local_rank", "1"]])
def test_local_rank_of_the_launcher_is_accepted(tmp_path, local_rank):
    assert read_flags(tmp_path, *local_rank) == read_flags(tmp_path)


def test_help_names_each_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert [item.name for item in dataclasses.fields(Config) if f"--{item.name}" not in text] == []


@pytest.mark.parametrize(("flags", "words"), [
    (["--nonesuch", "3"], "unrecognized arguments: --nonesuch 3"),
    (["word"], "unrecognized arguments: word"),
    (["--lora_ran", "3"], "unrecognized arguments: --lora_ran 3"),
    (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
    (["--train_batch_size", "8"], "unrecognized arguments: --train_batch_size 8"),
    (["--lora_rank", "many"], "argument --lora_rank: invalid int value: 'many'"),
    (["--lora_rank", "1.5"], "argument --lora_rank: invalid int value: '1.5'"),
    (["--tokens_per_micro_batch", "most"],
     "argument --tokens_per_micro_batch: most: must be a whole number, or auto"),
    (["--epochs", "all"], "argument --epochs: invalid float value: 'all'"),
    (["--lora_rank"], "argument --lora_rank: expected one argument"),
    (["--data"], "argument --data: expected at least one argument"),
    (["--tune", "some"], "argument --tune: invalid choice: 'some'"),
    (["--orders", "ab"], "argument --orders: invalid choice: 'ab'"),
    (["--orders", "none"], "argument --orders: invalid choice: 'none'"),
    (["--task", "ranking"], "argument --task: invalid choice: 'ranking'"),
    (["--format", "csv"], "argument --format: invalid choice: 'csv'"),
    (["--labels"], "argument --labels: expected at least one argument"),
    (["--teacher"], "argument --teacher: expected one argument"),
    (["--teacher_weight", "half"], "argument --teacher_weight: invalid float value: 'half'"),
    (["--best_metric", "loss"], "argument --best_metric: invalid choice: 'loss'"),
    (["--wandb=yes"], "argument --wandb/--no-wandb: ignored explicit argument 'yes'"),
])
def test_refused_flags(tmp_path, flags, words):
    assert refusal(read_flags, tmp_path, *flags).startswith(words)


@pytest.mark.parametrize(("name", "value", "rule"), [
    ("test_fraction", -0.1, "at least 0 and below 1"),
    ("test_fraction", 1.0, "at least 0 and below 1"),
    ("max_bad_fraction", 1.5, "between 0 and 1"),
    ("margin_scale", 0.0, "a number above 0"),
    ("margin_scale", float("inf"), "a number above 0"),
    ("language_temperature", -0.1, "a number, at least 0"),
    ("language_temperature", float("inf"), "a number, at least 0"),
    ("teacher_temperature", 0.0, "a number above 0"),
    ("teacher_temperature", float("nan"), "a number above 0"),
    ("teacher_weight", 0.0, "above 0, at most 1"),
    ("teacher_weight", 1.5, "above 0, at most 1"),
    ("consistency_weight", -1.0, "a number, at least 0"),
    ("consistency_weight", float("nan"), "a number, at least 0"),
    ("label_smoothing", -0.1, "at least 0 and below 1"),
    ("label_smoothing", 1.0, "at least 0 and below 1"),
    ("lm_loss_weight", -0.1, "a number, at least 0"),
    ("lm_loss_weight", float("inf"), "a number, at least 0"),
    ("lm_loss_weight", float("nan"), "a number, at least 0"),
    ("vocab_size", 399, "at least 400: 256 bytes, the control tokens and some letters"),
    ("lora_rank", 0, "at least 1"),
    ("lora_dropout", 1.0, "at least 0 and below 1"),
    ("order_weight", -0.5, "between 0 and 1"),
    ("order_weight", 1.5, "between 0 and 1"),
    ("epochs", 0.0, "above 0"),
    ("epochs", float("nan"), "above 0"),
    ("max_steps", 0, "at least 1"),
    ("warmup", 1.1, "between 0 and 1"),
    ("warmup", float("nan"), "between 0 and 1"),
    ("min_lr", -0.1, "between 0 and 1"),
    ("tokens_per_micro_batch", 0, "at least 1, or auto"),
    ("eval_every", -1, "at least 0"),
    ("keep", 0, "at least 1"),
    ("log_every", 0, "at least 1"),
])
def test_values_out_of_range_are_named(tmp_path, name, value, rule):
    assert refusal(read_flags, tmp_path, f"--{name}={value}") == f"--{name} {value}: must be {rule}"


@pytest.mark.parametrize(("name", "value"), [
    ("test_fraction", 0.0), ("max_bad_fraction", 1.0), ("vocab_size", 400), ("lora_rank", 1), ("lora_dropout", 0.0),
    ("language_temperature", 0.0), ("consistency_weight", 0.0), ("label_smoothing", 0.0),
    ("order_weight", 0.0), ("order_weight", 1.0), ("max_steps", 1), ("warmup", 0.0), ("warmup", 1.0), ("min_lr", 0.0),
    ("tokens_per_micro_batch", 1), ("eval_every", 0), ("keep", 1), ("log_every", 1),
])
def test_values_at_the_edge_are_taken(tmp_path, name, value):
    random = ["--model", "small-random", "--tune", "lora"]
    assert getattr(read_flags(tmp_path, f"--{name}={value}", *random), name) == value


def test_test_data_and_test_fraction_exclude_each_other(tmp_path):
    assert refusal(read_flags, tmp_path, "--test_data", "b.jsonl", "--test_fraction", "0.1") == (
        "--test_data and --test_fraction 0.1 say two things; give one")


def test_train_embeddings_and_tune_full_exclude_each_other(tmp_path):
    assert refusal(read_flags, tmp_path, "--tune", "full", "--train_embeddings") == (
        "--train_embeddings: --tune full trains them anyway")


# Resume


def saved_run(folder: Path, *flags: str) -> Path:
    """A run's folder as far as its settings go."""
    run = folder / "run"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(dataclasses.asdict(read_flags(folder, *flags))))
    (run / "ds_config.json").write_text(json.dumps(DS))
    return run


def test_resumed_run_has_its_own_settings(tmp_path):
    run = saved_run(tmp_path, "--lora_rank", "4", "--data", "a.jsonl", "--max_steps", "9", "--keep", "5")
    arguments = parse(["--resume", str(run), "--deepspeed_config", str(write_ds(tmp_path))])
    assert arguments.resume == run
    assert arguments.config == load_config(run)
    assert (arguments.config.lora_rank, arguments.config.keep, arguments.config.test_fraction) == (4, 5, 0.05)


def test_a_run_that_knew_no_calibration_held_out_nothing(tmp_path):
    run = saved_run(tmp_path, "--data", "a.jsonl")
    settings = json.loads((run / "config.json").read_text())
    assert settings.pop("calibration_fraction") == 0.05
    (run / "config.json").write_text(json.dumps(settings))
    assert load_config(run).calibration_fraction == 0.0


def test_a_run_that_knew_no_packing_goes_on_without_unless_told(tmp_path):
    run = saved_run(tmp_path, "--data", "a.jsonl")
    settings = json.loads((run / "config.json").read_text())
    assert settings.pop("packing") is True
    (run / "config.json").write_text(json.dumps(settings))
    assert load_config(run).packing is False
    assert packing(tmp_path, "--resume", str(run)) is False
    assert packing(tmp_path, "--resume", str(run), "--packing") is True
    assert packing(tmp_path, "--resume", str(run), stage=3) is False


def test_a_resumed_run_packs_as_it_did_unless_told(tmp_path):
    packed, padded = saved_run(tmp_path / "1"), saved_run(tmp_path / "2", "--no-packing")
    assert packing(tmp_path, "--resume", str(packed)) is True
    assert packing(tmp_path, "--resume", str(padded)) is False
    assert packing(tmp_path, "--resume", str(packed), "--no-packing") is False
    assert packing(tmp_path, "--resume", str(packed), "--no-packing", stage=3) is False


@pytest.mark.parametrize("labels", [[], ["--labels", "no", "yes"]])
def test_resumed_classification_has_its_own_settings(tmp_path, labels):
    run = saved_run(tmp_path, "--task", "classification", "--data", "a.jsonl", *labels)
    config = read_flags(tmp_path, "--resume", str(run))
    assert config == load_config(run)
    assert (config.task, config.labels, config.orders) == ("classification", labels[1:], None)


def test_resumed_run_may_be_given_its_own_settings_again(tmp_path):
    run = saved_run(tmp_path, "--lora_rank", "4", "--data", "a.jsonl")
    assert read_flags(tmp_path, "--resume", str(run), "--lora_rank", "4", "--data", "a.jsonl") == load_config(run)


@pytest.mark.parametrize(("flags", "words"), [
    (["--lora_rank", "8"], "--lora_rank 8: the run has 4"),
    (["--seed", "1"], "--seed 1: the run has 0"),
    (["--data", "b.jsonl"], "--data ['b.jsonl']: the run has ['a.jsonl']"),
    (["--max_steps", "5"], "--max_steps 5: the run has None"),
    (["--task", "classification"], "--task classification: the run has preference"),
    (["--labels", "a", "b", "tie"], "--labels ['a', 'b', 'tie']: the run has ['a', 'b']"),
    (["--teacher", "p.jsonl"], "--teacher p.jsonl: the run has None"),
    (["--label_smoothing", "0.1"], "--label_smoothing 0.1: the run has 0.0"),
])
def test_resumed_run_refuses_what_would_change_the_result(tmp_path, flags, words):
    run = saved_run(tmp_path, "--lora_rank", "4", "--data", "a.jsonl")
    assert refusal(read_flags, tmp_path, "--resume", str(run), *flags) == f"--resume {run} with {words}"


def test_resumed_run_takes_what_does_not_change_the_result(tmp_path):
    run = saved_run(tmp_path, "--lora_rank", "4")
    config = read_flags(tmp_path, "--resume", str(run), "--keep", "7", "--tokens_per_micro_batch", "512", "--log_every",
                        "1", "--gradient_checkpointing", "--wandb", "--cache_dir", "elsewhere")
    assert config == dataclasses.replace(load_config(run), keep=7, tokens_per_micro_batch=512, log_every=1,
                                         gradient_checkpointing=True, wandb=True, cache_dir="elsewhere")


def test_resumed_run_checks_changed_values(tmp_path):
    run = saved_run(tmp_path)
    assert refusal(read_flags, tmp_path, "--resume", str(run), "--keep", "0") == "--keep 0: must be at least 1"


@pytest.mark.parametrize(("key", "changes"), [
    ("train_batch_size", {"train_batch_size": 16}),
    ("optimizer", {"optimizer__params__lr": 2e-3}),
    ("gradient_clipping", {"gradient_clipping": 0.5}),
    ("bf16", {"bf16": {"enabled": True}}),
])
def test_resumed_run_refuses_another_ds_config(tmp_path, key, changes):
    run = saved_run(tmp_path)
    path = write_ds(tmp_path, changed(**changes))
    message = refusal(parse, ["--resume", str(run), "--deepspeed_config", str(path)])
    assert message == (f"--resume {run}: {key} is {changed(**changes)[key]} in the ds_config, but {DS.get(key)} "
                       "in the run's")


def test_resumed_run_may_have_another_zero_stage(tmp_path):
    run = saved_run(tmp_path)
    path = write_ds(tmp_path, changed(zero_optimization__stage=3))
    assert parse(["--resume", str(run), "--deepspeed_config", str(path)]).ds_config["zero_optimization"] == {"stage": 3}


def test_resume_without_a_name_takes_the_newest_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old, new = (saved_run(tmp_path / "runs" / name).rename(tmp_path / "runs" / f"{name}-run") for name in "ba")
    (tmp_path / "runs" / "zzz").mkdir()  # not a run
    os.utime(old / "config.json", (1, 1))
    assert newest_run("config.json") == new.relative_to(tmp_path)
    for run in (old, new):
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "latest").touch()
    assert parse(["--deepspeed_config", str(write_ds(tmp_path)), "--resume"]).resume == new.relative_to(tmp_path)


@pytest.mark.parametrize("folder", ["elsewhere", "runs", "runs/without-config"])
def test_no_run_to_resume_is_said(tmp_path, folder):
    root = tmp_path / "runs"
    (tmp_path / folder).mkdir(parents=True)
    message = refusal(newest_run, "export/preference.json", root)
    assert message == f"there is no run with export/preference.json in {root}/; train one first, or name one"


@pytest.mark.parametrize("content", [None, "{", "[]", "null", '{"nonesuch": 1}'])
def test_resume_of_what_is_no_run_is_named(tmp_path, content):
    run = tmp_path / "run"
    run.mkdir()
    if content is not None:
        (run / "config.json").write_text(content)
    message = refusal(read_flags, tmp_path, "--resume", str(run))
    assert message.startswith(f"{run} is not a run: config.json cannot be read: ")


def test_a_flag_given_its_default_is_still_a_flag_on_resume(tmp_path):
    run = saved_run(tmp_path, "--lora_rank", "8", "--keep", "5", "--wandb")
    message = refusal(read_flags, tmp_path, "--resume", str(run), "--lora_rank", "16")
    assert message == f"--resume {run} with --lora_rank 16: the run has 8"
    config = read_flags(tmp_path, "--resume", str(run), "--keep", "2", "--no-wandb")
    assert (config.lora_rank, config.keep, config.wandb) == (8, 2, False)


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_a_run_whose_ds_config_is_damaged_cannot_be_resumed(tmp_path, content):
    run = saved_run(tmp_path)
    (run / "ds_config.json").unlink()
    if content is not None:
        (run / "ds_config.json").write_text(content)
    assert str(run / "ds_config.json") in refusal(read_flags, tmp_path, "--resume", str(run))


def test_a_run_whose_settings_have_a_wrong_type_cannot_be_resumed(tmp_path):
    run = saved_run(tmp_path)
    settings = json.loads((run / "config.json").read_text()) | {"keep": "five"}
    (run / "config.json").write_text(json.dumps(settings))
    assert refusal(read_flags, tmp_path, "--resume", str(run)).startswith(f"{run} is not a run")
