"""Trains a preference model: deepspeed train.py --deepspeed_config ds_config.json [flags; see --help]

Shapes: B sequences of a micro-batch, L tokens, N rows, O orders of each row, C classes.
"""

import time
from functools import cache, partial

import deepspeed
from datasets import Dataset

from pm import checkpoint, distributed, memory, report
from pm.batches import Batches, seed_step
from pm.calibration import fit_temperatures
from pm.config import AUTO, parse
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
from pm.loss import preference_loss
from pm.metrics import evaluation
from pm.model import parameter_groups, unswap
from pm.predict import calibrated, score
from pm.run import audit_run, build_model, dtype_of, fitted_shortcuts, load_training_data, open_run, prior
from pm.save import finish
from pm.schedule import learning_rate
from pm.shortcuts import with_shortcuts
from pm.tracking import StepStatistics, Tracker, quiet_libraries


def main(argv: list[str]) -> None:
    # 1. Settings, ranks, the run's folder
    quiet_libraries()
    arguments = parse(argv)
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
    data = distributed.main_first(lambda: load_training_data(config, run))
    noticed = distributed.on_main(lambda: audit_run(config, run, data))
    distributed.say("\n".join([f"run: {run}", data.summary, *noticed]))
    batches = Batches(data.train.encoded, data.rates, data.encoder.template, ds_config["train_batch_size"],
                      config.evaluation_tokens, config.orders or "none", config.seed, config.packing)
    total_steps = min(max(1, round(config.epochs * batches.per_epoch)), config.max_steps or 10**12)

    # 3. Model and engine
    model = distributed.together(lambda: build_model(config, run, data.task.labels, dtype_of(ds_config), prior(data)))
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
    def evaluate(rows: Dataset) -> list[dict]:
        return score(engine, rows, data.encoder.template, data.task, config.evaluation_tokens, device,
                     packing=config.packing, shared=True)

    shortcuts = cache(lambda: fitted_shortcuts(data, data.test.rows, config.cache_dir))

    def metrics_of(predictions: list[dict]) -> dict:
        return distributed.on_main(lambda: evaluation(with_shortcuts(predictions, shortcuts())))

    step, updates, best, skipped = progress["step"], progress["updates"], progress["best"], 0
    language = {"language": True} if config.lm_loss_weight else {}
    predictions, saved = [], resumed.path.name if resumed else None
    stop = distributed.StopSignal()
    while step < total_steps:
        started = time.perf_counter()
        rate = learning_rate(step, total_steps, optimizer["lr"], config.warmup, config.min_lr)
        seed_step(config.seed, step)
        rows_in_step, micro_batches = batches.step(step)
        statistics = StepStatistics(device, data.task.compares, batches.orders_per_row)
        with memory.Guard() as guard:
            for micro_batch in micro_batches:
                inputs, swapped_B, target_NC = micro_batch.on(device)
                output = engine(**inputs, **language)
                logits_NOC = unswap(output.logits, swapped_B).unflatten(0, (-1, batches.orders_per_row))
                loss_N = preference_loss(logits_NOC, target_NC, config.order_weight, config.consistency_weight,
                                         config.label_smoothing)
                loss, language_loss = loss_N.sum(), None
                if language:
                    language_loss = output.language_loss / batches.orders_per_row
                    loss = loss + config.lm_loss_weight * language_loss
                # DeepSpeed averages gradients over the ranks; this makes that the mean over the step's rows.
                engine.backward(loss * (micro_batch.weight * distributed.world_size() / rows_in_step))
                statistics.add(micro_batch, target_NC, logits_NOC, loss_N, language_loss)
        if guard.ran_out:
            inputs = output = loss = language_loss = logits_NOC = loss_N = None  # with them goes the memory
            drop_step(engine, batches.shortest().on(device)[0])
        norm, updated = update(engine, rate)
        values = statistics.reduce(rows_in_step, stop.received, guard.ran_out)
        if values.out_of_memory:
            batches.halve_budget()
            tracker.say(f"step {step + 1}: out of memory; again with {batches.token_budget:,} tokens of a micro-batch")
            continue
        step += 1
        updates, skipped = (updates + 1, 0) if updated else (updates, skipped + 1)
        if not updated:
            tracker.say(f"step {step}: loss or gradient is not finite, step skipped; rows: {statistics.suspects()}")
            if skipped == 3:
                raise UserError(f"three steps in a row were not finite, the last one step {step}; the run has stopped "
                                f"({f'its last checkpoint is {saved}' if saved else 'without a checkpoint'})")
        seconds = time.perf_counter() - started
        tracker.step({"step": step, **values.numbers, "learning_rate": rate, "gradient_norm": norm, "seconds": seconds,
                      "tokens_per_second": values.tokens / seconds, "peak_memory": memory.peak_bytes(device)},
                     show=step % config.log_every == 0)

        # 5. Evaluation and checkpoint; the last one is exported
        last = step == total_steps
        evaluates = last or (config.eval_every and step % config.eval_every == 0)
        if evaluates and len(data.test.encoded):
            predictions = evaluate(data.test.encoded)
            metrics = metrics_of(predictions)
            tracker.evaluation(step, metrics)
            tracker.say(f"step {step} test: {report.short(metrics['overall'])}")
        if evaluates or values.stop:
            found = metrics["overall"][config.best_metric] if evaluates and len(data.test.encoded) else None
            is_best = checkpoint.is_better(found, best, config.best_metric)
            best = found if is_best else best
            state, trainer = get_state(engine), {"step": step, "updates": updates, "best": best,
                                                "tokens_per_micro_batch": batches.token_budget}
            saved = distributed.on_main(partial(checkpoint.commit, run, state, trainer, config.keep, is_best))
        if values.stop and not last:
            tracker.close()
            distributed.say(f"stopped at step {step}; continue with: deepspeed train.py --deepspeed_config "
                            f"{run / 'ds_config.json'} --resume {run}")
            return

    # 6. Temperatures and export. A resumed run may have made its last step before
    calibration = fit_temperatures(evaluate(data.calibration.encoded))
    predictions = [calibrated(row, calibration) for row in predictions or evaluate(data.test.encoded)]
    metrics = metrics_of(predictions) if predictions else None
    shown = data.test.encoded if predictions else data.train.encoded.select(range(min(16, len(data.train.encoded))))
    scored = predictions or evaluate(shown)
    difference = distributed.on_main(lambda: finish(run, saved, shown, scored, calibration, metrics))
    tracker.export(run / "export", metrics)
    tracker.close()
    if metrics:
        distributed.say(f"\n{report.table(metrics)}")
    distributed.say(f"\nexported to {run / 'export'} (loaded afresh, logits differ by {difference:.1g})\n"
                    f"next: python eval.py --model {run}")


if __name__ == "__main__":
    run_main(main, distributed.is_first_here, distributed.leave)
    distributed.end()
