"""Trains a preference model: deepspeed train.py --deepspeed_config ds_config.json [flags; see --help]

Shapes: B sequences of a micro-batch, L tokens, N rows, O orders of each row, C classes.
"""

import time
from functools import cache

import deepspeed
from datasets import Dataset

from pm import distributed, memory, report
from pm.batches import Batches
from pm.calibration import fit_temperatures
from pm.engine import drop_step, engine_config, update
from pm.errors import run_main
from pm.loss import preference_loss
from pm.metrics import evaluation
from pm.model import parameter_groups, unswap
from pm.predict import calibrated, score
from pm.run import audit_run, build_model, dtype_of, fitted_shortcuts, load_training_data, prior
from pm.save import finish
from pm.session import Session
from pm.shortcuts import with_shortcuts
from pm.tracking import StepStatistics


def main(argv: list[str]) -> None:
    # 1. Settings, ranks, the run's folder
    session = Session(argv)
    config, ds_config, run, tracker, device = (session.config, session.ds_config, session.run, session.tracker,
                                               session.device)

    # 2. Data
    data = distributed.main_first(lambda: load_training_data(config, run))
    noticed = distributed.on_main(lambda: audit_run(config, run, data))
    distributed.say("\n".join([f"run: {run}", data.summary, *noticed]))
    batches = Batches(data.train.encoded, data.rates, data.encoder.template, ds_config["train_batch_size"],
                      config.token_budget, config.orders or "none", config.seed, config.packing)

    # 3. Model and engine
    model = distributed.together(lambda: build_model(config, run, data.task.labels, dtype_of(ds_config), prior(data)))
    weight_decay = ds_config["optimizer"]["params"].get("weight_decay", 0.0)
    engine, *_ = deepspeed.initialize(model=model, config=engine_config(ds_config),
                                      model_parameters=parameter_groups(model, weight_decay))
    language = {"language": True} if config.lm_loss_weight else {}
    session.begin(engine, batches, **language)

    # 4. The loop
    def evaluate(rows: Dataset) -> list[dict]:
        return score(engine, rows, data.encoder.template, data.task, config.token_budget, device,
                     packing=config.packing, shared=True)

    shortcuts = cache(lambda: fitted_shortcuts(data, data.test.rows, config.cache_dir))

    def metrics_of(predictions: list[dict]) -> dict:
        return distributed.on_main(lambda: evaluation(with_shortcuts(predictions, shortcuts())))

    def evaluate_saved() -> list[dict]:
        """The test split's predictions by the checkpoint that was just saved, or resumed from."""
        predictions = evaluate(data.test.encoded)
        metrics = metrics_of(predictions)
        overall = metrics["overall"]
        session.judge(overall[config.best_metric], config.best_metric)
        tracker.evaluation(session.step, metrics)
        tracker.say(f"step {session.step} test: {report.short(overall)}")
        return predictions

    predictions = evaluate_saved() if session.unevaluated and len(data.test.encoded) else []
    while not session.ended:
        started = time.perf_counter()
        rate = session.begin_step()
        rows_in_step, micro_batches = batches.step(session.step)
        statistics = StepStatistics(device, data.task.compares, batches.orders_per_row)
        left = len(micro_batches)
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
                left -= 1
                statistics.add(micro_batch, target_NC, logits_NOC, loss_N, language_loss)
        if guard.ran_out:
            inputs = output = loss = language_loss = logits_NOC = loss_N = None  # with them goes the memory
            drop_step(engine, batches.shortest().on(device)[0], left)
        norm, updated = update(engine, rate)
        values = statistics.reduce(rows_in_step, session.stops, guard.ran_out)
        if values.out_of_memory:
            session.again()
            continue
        session.count(updated, statistics.suspects)
        step, seconds = session.step, time.perf_counter() - started
        tracker.step({"step": step, **values.numbers, "learning_rate": rate, "gradient_norm": norm, "seconds": seconds,
                      "tokens_per_second": values.tokens / seconds, "peak_memory": memory.peak_bytes(device)},
                     show=step % config.log_every == 0)

        # 5. Checkpoint and evaluation; the last one is exported
        if session.evaluates or values.stop:
            session.save()
        if session.evaluates and len(data.test.encoded):
            predictions = evaluate_saved()
        if values.stop and not session.ended:
            session.say_stopped("deepspeed train.py")
            return

    # 6. Temperatures and export. A resumed run may have made its last step before
    calibration = fit_temperatures(evaluate(data.calibration.encoded))
    predictions = [calibrated(row, calibration) for row in predictions or evaluate(data.test.encoded)]
    metrics = metrics_of(predictions) if predictions else None
    shown = data.test.encoded if predictions else data.train.encoded.select(range(min(16, len(data.train.encoded))))
    scored = predictions or evaluate(shown)
    difference = distributed.on_main(lambda: finish(run, session.saved, shown, scored, calibration, metrics))
    tracker.export(run / "export", session.step, metrics["overall"] if metrics else {})
    tracker.close()
    if metrics:
        distributed.say(f"\n{report.table(metrics)}")
    distributed.say(f"\nexported to {run / 'export'} (loaded afresh, logits differ by {difference:.1g})\n"
                    f"next: python eval.py --model {run}")


if __name__ == "__main__":
    run_main(main, distributed.is_first_here, distributed.leave)
    distributed.end()
