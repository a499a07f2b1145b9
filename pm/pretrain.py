"""Trains a language model, the base of preference models: python -m pm.pretrain [flags; see --help]

On several ranks: deepspeed --module pm.pretrain. The loop is that of train.py with another loss: a row is one sequence
(prompt, response, response, in an order drawn anew each epoch; or a text alone), of which every token is predicted.
"""

import time
from pathlib import Path

import deepspeed
import torch

from pm import checkpoint, distributed, memory
from pm.batches import Batches
from pm.config import Pretraining
from pm.engine import drop_step, engine_config, update
from pm.errors import UserError, run_main
from pm.files import written_aside
from pm.fused import compile_activation
from pm.language_card import language_card
from pm.model import (
    LanguageModel,
    load_language_model,
    load_tokenizer,
    new_language_model,
    parameter_groups,
    save_model,
)
from pm.packing import sequence_sums
from pm.perplexity import perplexities, score_language, table
from pm.run import Corpus, dtype_of, load_corpus, tokenizer_of
from pm.session import Session
from pm.tracking import read_history, suspects

DS_CONFIG = str(Path(__file__).parent / "ds_configs/pretrain.json")


def main(argv: list[str]) -> None:
    # 1. Settings, ranks, the run's folder
    session = Session(argv, Pretraining, DS_CONFIG)
    config, ds_config, run, tracker, device = (session.config, session.ds_config, session.run, session.tracker,
                                               session.device)

    # 2. Data
    corpus = distributed.main_first(lambda: load_corpus(config, run))
    distributed.say(f"run: {run}\n{corpus.summary}")
    batches = Batches(corpus.train, corpus.rates, corpus.encoder.template, ds_config["train_batch_size"],
                      config.token_budget, "random", config.seed, packing=True)

    # 3. Model and engine
    model = distributed.together(lambda: build_language_model(config, run, dtype_of(ds_config)))
    weight_decay = ds_config["optimizer"]["params"].get("weight_decay", 0.0)
    engine, *_ = deepspeed.initialize(model=model, config=engine_config(ds_config),
                                      model_parameters=parameter_groups(model, weight_decay))
    session.begin(engine, batches)

    # 4. The loop
    def evaluate() -> dict:
        losses_N = score_language(engine, corpus.test, corpus.encoder.template, config.token_budget, device,
                                  shared=True)
        return perplexities(corpus.test, losses_N)

    def evaluate_saved() -> dict:
        """The test split's perplexities by the checkpoint that was just saved, or resumed from."""
        found = evaluate()
        session.judge(found["overall"]["loss"], "log_loss")
        tracker.perplexity(session.step, found)
        tracker.say(f"step {session.step} test: perplexity {found['overall']['perplexity']:.2f}")
        return found

    found = evaluate_saved() if session.unevaluated and len(corpus.test) else None
    while not session.ended:
        started = time.perf_counter()
        rate = session.begin_step()
        _, micro_batches = batches.step(session.step)
        predicted = batches.predicted_tokens(session.step)
        made = []  # ids of rows, their pack and the losses of its tokens
        sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, tokens, out of memory, stop
        left = len(micro_batches)
        with memory.Guard() as guard:
            for micro_batch in micro_batches:
                inputs, _, _ = micro_batch.on(device)
                output = engine(**inputs)
                # DeepSpeed averages gradients over the ranks; this makes that the mean over the step's tokens.
                engine.backward(output.loss * (micro_batch.weight * distributed.world_size() / predicted))
                left -= 1
                if micro_batch.weight:
                    made.append((micro_batch.ids, inputs["pack"], output.losses))
                    sums[0] += output.loss.detach()
                    sums[1] += micro_batch.tokens
        if guard.ran_out:
            inputs = output = None  # with them goes the memory
            drop_step(engine, batches.shortest().on(device)[0], left)
        norm, updated = update(engine, rate)
        sums[2], sums[3] = float(guard.ran_out), float(session.stops)
        total, tokens, out_of_memory, stops = distributed.all_reduce_sum(sums).tolist()
        if out_of_memory:
            session.again()
            continue
        session.count(updated, lambda made=made: suspects(
            [(ids, torch.tensor(sequence_sums(pack, losses_T))) for ids, pack, losses_T in made]))
        step, seconds = session.step, time.perf_counter() - started
        tracker.step({"step": step, "loss": total / predicted, "learning_rate": rate, "gradient_norm": norm,
                      "seconds": seconds, "tokens_per_second": tokens / seconds,
                      "peak_memory": memory.peak_bytes(device)}, show=step % config.log_every == 0)

        # 5. Checkpoint and perplexity
        if session.evaluates or stops:
            session.save()
        if session.evaluates and len(corpus.test):
            found = evaluate_saved()
        if stops and not session.ended:
            session.say_stopped("deepspeed --module pm.pretrain")
            return

    # 6. Export. A resumed run may have made its last step before
    found = found or (evaluate() if len(corpus.test) else None)
    distributed.on_main(lambda: export(run, session.saved, config, ds_config, corpus, found))
    tracker.export(run / "export", session.step, found["overall"] if found else {})
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
    if config.compile:
        compile_activation()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    say(f"model: {config.shape if config.random_base else config.model}, {model.num_parameters():,} parameters, "
        f"{str(dtype).removeprefix('torch.')}")
    return model


def export(run: Path, name: str, config: Pretraining, ds_config: dict, corpus: Corpus, found: dict | None) -> None:
    """Writes checkpoint `name` as `run/export`, in the dtype of training, with the tokenizer and a card.

    Raises `UserError` where a weight, loaded afresh, has other bits than it was to have. Called on one rank.
    """
    dtype = dtype_of(ds_config)
    state = checkpoint.load(run / "checkpoints" / name).state()
    model = build_language_model(config, run, dtype, say=lambda text: None)
    for parameter_name, parameter in model.named_parameters():
        parameter.data = state[f"master/{parameter_name}"].to(dtype)
    with written_aside(run / "export") as folder:
        save_model(folder, model, load_tokenizer(tokenizer_of(config, run)), "Cohere2ForCausalLM")
        fresh = load_language_model(str(folder), dtype).state_dict()
        for parameter_name, parameter in model.state_dict().items():
            if not torch.equal(parameter, fresh[parameter_name]):
                raise UserError(f"the export, loaded afresh, has other values in {parameter_name}: it was not saved")
        (folder / "README.md").write_text(language_card(run, config, ds_config, corpus, read_history(run), found,
                                                        model.num_parameters()), "utf-8")


if __name__ == "__main__":
    run_main(main, distributed.is_first_here, distributed.leave)
    distributed.end()
