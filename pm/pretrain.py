"""Trains a language model, the base of preference models: python -m pm.pretrain [flags; see --help]

On several ranks: deepspeed --module pm.pretrain. The loop is that of train.py with another loss: a row is one sequence
(prompt, response, response, in an order drawn anew each epoch; or a text alone), of which every token is predicted.
"""

import shutil
import time
from functools import partial
from pathlib import Path

import deepspeed
import torch

from pm import checkpoint, distributed, memory
from pm.batches import Batches, seed_step
from pm.config import AUTO, Pretraining, parse
from pm.engine import (
    check_config,
    create_moments,
    drop_step,
    engine_config,
    get_state,
    prepare_start,
    set_state,
    update,
)
from pm.errors import UserError, run_main
from pm.language_card import language_card
from pm.model import LanguageModel, load_language_model, load_tokenizer, new_language_model, parameter_groups
from pm.perplexity import perplexities, score_language, table
from pm.run import Corpus, dtype_of, load_corpus, open_run, tokenizer_of
from pm.schedule import learning_rate
from pm.tracking import Tracker, quiet_libraries, read_history

DS_CONFIG = str(Path(__file__).parent / "ds_configs/pretrain.json")


def main(argv: list[str]) -> None:
    # 1. Settings, ranks, the run's folder
    quiet_libraries()
    arguments = parse(argv, Pretraining, DS_CONFIG)
    config, ds_config = arguments.config, arguments.ds_config
    distributed.set_environment()
    prepare_start()
    device = distributed.start()
    deepspeed.init_distributed(verbose=False)
    check_config(ds_config)
    run = open_run(arguments)
    newest = distributed.on_main(lambda: checkpoint.newest(run).path) if arguments.resume else None
    resumed = checkpoint.load(newest) if newest else None
    tracker = distributed.together(lambda: Tracker(run, config.wandb_project if config.wandb else "",
                                                   vars(config) | {"ds_config": ds_config}))

    # 2. Data
    corpus = distributed.main_first(lambda: load_corpus(config, run))
    distributed.say(f"run: {run}\n{corpus.summary}")
    batches = Batches(corpus.train, corpus.rates, corpus.encoder.template, ds_config["train_batch_size"],
                      config.evaluation_tokens, "random", config.seed, packing=True)
    total_steps = min(max(1, round(config.epochs * batches.per_epoch)), config.max_steps or 10**12)

    # 3. Model and engine
    model = distributed.together(lambda: build_language_model(config, run, dtype_of(ds_config)))
    optimizer = ds_config["optimizer"]["params"]
    engine, *_ = deepspeed.initialize(model=model, config=engine_config(ds_config),
                                      model_parameters=parameter_groups(model, optimizer.get("weight_decay", 0.0)))
    create_moments(engine)
    engine.train()
    progress = {"step": 0, "updates": 0, "best": None, "tokens_per_micro_batch": None}
    if resumed:
        progress |= resumed.trainer
        set_state(engine, resumed.state(), progress["updates"])
        distributed.say(f"resumed from {resumed.path} at step {progress['step']} of {total_steps}")
    if config.tokens_per_micro_batch == AUTO:
        batches.token_budget = (progress["tokens_per_micro_batch"] or
                                memory.fitting_budget(engine.module, batches, device))
    tracker.start(total_steps, progress["step"])

    # 4. The loop
    def evaluate() -> dict:
        losses_N = score_language(engine, corpus.test, corpus.encoder.template, config.evaluation_tokens, device,
                                  shared=True)
        return perplexities(corpus.test, losses_N)

    step, updates, best, skipped = progress["step"], progress["updates"], progress["best"], 0
    saved, found = resumed.path.name if resumed else None, None
    stop = distributed.StopSignal()
    while step < total_steps:
        started = time.perf_counter()
        rate = learning_rate(step, total_steps, optimizer["lr"], config.warmup, config.min_lr)
        seed_step(config.seed, step)
        _, micro_batches = batches.step(step)
        predicted = batches.predicted_tokens(step)
        sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, tokens, out of memory, stop
        with memory.Guard() as guard:
            for micro_batch in micro_batches:
                inputs, _, _ = micro_batch.on(device)
                loss = engine(**inputs).loss
                # DeepSpeed averages gradients over the ranks; this makes that the mean over the step's tokens.
                engine.backward(loss * (micro_batch.weight * distributed.world_size() / predicted))
                sums[0] += loss.detach() * micro_batch.weight
                sums[1] += micro_batch.tokens * micro_batch.weight
        if guard.ran_out:
            inputs = loss = None  # with them goes the memory
            drop_step(engine, batches.shortest().on(device)[0])
        norm, updated = update(engine, rate)
        sums[2], sums[3] = float(guard.ran_out), float(stop.received)
        total, tokens, out_of_memory, stops = distributed.all_reduce_sum(sums).tolist()
        if out_of_memory:
            batches.halve_budget()
            tracker.say(f"step {step + 1}: out of memory; again with {batches.token_budget:,} tokens of a micro-batch")
            continue
        step += 1
        updates, skipped = (updates + 1, 0) if updated else (updates, skipped + 1)
        if skipped == 3:
            raise UserError(f"three steps in a row were not finite, the last one step {step}; the run has stopped "
                            f"({f'its last checkpoint is {saved}' if saved else 'without a checkpoint'})")
        seconds = time.perf_counter() - started
        tracker.step({"step": step, "loss": total / predicted, "learning_rate": rate, "gradient_norm": norm,
                      "seconds": seconds, "tokens_per_second": tokens / seconds,
                      "peak_memory": memory.peak_bytes(device)}, show=step % config.log_every == 0)

        # 5. Perplexity and checkpoint
        last = step == total_steps
        evaluates = (last or (config.eval_every and step % config.eval_every == 0)) and len(corpus.test)
        if evaluates:
            found = evaluate()
            tracker.perplexity(step, found)
            tracker.say(f"step {step} test: perplexity {found['overall']['perplexity']:.2f}")
        if evaluates or last or stops:
            is_best = bool(evaluates) and checkpoint.is_better(found["overall"]["loss"], best, "log_loss")
            best = found["overall"]["loss"] if is_best else best
            state, trainer = get_state(engine), {"step": step, "updates": updates, "best": best,
                                                "tokens_per_micro_batch": batches.token_budget}
            saved = distributed.on_main(partial(checkpoint.commit, run, state, trainer, config.keep, is_best))
        if stops and not last:
            tracker.close()
            distributed.say(f"stopped at step {step}; continue with --resume {run}")
            return

    # 6. Export. A resumed run may have made its last step before
    found = found or (evaluate() if len(corpus.test) else None)
    distributed.on_main(lambda: export(run, saved, config, ds_config, corpus, found))
    tracker.close()
    if found:
        distributed.say(f"\n{table(found)}")
    distributed.say(f"\nexported to {run / 'export'}\nnext: deepspeed train.py --model {run / 'export'}")


def build_language_model(config: Pretraining, run: Path, dtype: torch.dtype, say=distributed.say) -> LanguageModel:
    """New weights for the run's own tokenizer, or the model to go on with. Raises `UserError`."""
    if config.random_base:
        model = new_language_model(config.shape, load_tokenizer(tokenizer_of(config, run)), config.seed, dtype)
    else:
        model = load_language_model(tokenizer_of(config, run), dtype)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    say(f"model: {config.shape if config.random_base else config.model}, {model.num_parameters():,} parameters, "
        f"{str(dtype).removeprefix('torch.')}")
    return model


def export(run: Path, name: str, config: Pretraining, ds_config: dict, corpus: Corpus, found: dict | None) -> None:
    """Writes checkpoint `name` as `run/export`, in the dtype of training, with the tokenizer and a card.

    Raises `UserError` where a weight, loaded afresh, has other bits than it was to have. Called on one rank.
    """
    dtype, folder, writing = dtype_of(ds_config), run / "export", run / ".export.writing"
    state = checkpoint.load(run / "checkpoints" / name).state()
    model = build_language_model(config, run, dtype, say=lambda text: None)
    for parameter_name, parameter in model.named_parameters():
        parameter.data = state[f"master/{parameter_name}"].to(dtype)
    shutil.rmtree(writing, ignore_errors=True)
    model.save_pretrained(writing)
    model.config.architectures = ["Cohere2ForCausalLM"]  # and not the class here, which others do not have
    model.config.save_pretrained(writing)
    load_tokenizer(tokenizer_of(config, run)).save_pretrained(writing)
    fresh = load_language_model(str(writing), dtype).state_dict()
    for parameter_name, parameter in model.state_dict().items():
        if not torch.equal(parameter, fresh[parameter_name]):
            raise UserError(f"the export, loaded afresh, has other values in {parameter_name}: it was not saved")
    (writing / "README.md").write_text(language_card(run, config, ds_config, corpus, read_history(run), found,
                                                     model.num_parameters()), "utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    writing.rename(folder)


if __name__ == "__main__":
    run_main(main, distributed.is_first_here, distributed.leave)
    distributed.end()
