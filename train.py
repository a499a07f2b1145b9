"""Trains a preference model: deepspeed train.py --deepspeed_config ds_config.json [flags; see --help]

Shapes: B sequences of a micro-batch, L tokens, N rows, O orders of each row, C classes.
"""

import time

import deepspeed

from pm import checkpoint, distributed, report
from pm.batches import Batches, seed_step
from pm.config import parse
from pm.engine import (
    create_moments,
    engine_config,
    get_state,
    keep_buffers,
    prepare_start,
    restore_buffers,
    set_state,
    update,
)
from pm.errors import UserError, run_main
from pm.export import export
from pm.loss import preference_loss
from pm.metrics import summarise
from pm.model import parameter_groups, unswap
from pm.predict import score
from pm.run import build_model, dtype_of, load_data, open_run
from pm.schedule import learning_rate
from pm.tracking import StepStatistics, Tracker, quiet_libraries


def main(argv: list[str]) -> None:
    # 1. Settings, ranks, the run's folder
    quiet_libraries()
    arguments = parse(argv)
    config, ds_config = arguments.config, arguments.ds_config
    distributed.set_environment()
    prepare_start()
    deepspeed.init_distributed(verbose=False, timeout=distributed.TIMEOUT)
    device = distributed.set_device()
    run = open_run(arguments)
    resumed = checkpoint.newest(run, distributed.say) if arguments.resume else None

    # 2. Data
    data = distributed.main_first(lambda: load_data(config, run))
    distributed.say(f"run: {run}\n{data.summary}")
    batches = Batches(data.train, data.encoder.template, ds_config["train_batch_size"], config.tokens_per_micro_batch,
                      config.orders, config.seed)
    total_steps = min(max(1, round(config.epochs * batches.per_epoch)), config.max_steps or 10**12)

    # 3. Model and engine
    model = build_model(config, run, dtype_of(ds_config))
    buffers = keep_buffers(model)
    optimizer = ds_config["optimizer"]["params"]
    engine, *_ = deepspeed.initialize(model=model, config=engine_config(ds_config),
                                      model_parameters=parameter_groups(model, optimizer.get("weight_decay", 0.0)))
    restore_buffers(engine, buffers)
    create_moments(engine)
    progress = resumed.trainer if resumed else {"step": 0, "updates": 0, "best": None}
    if resumed:
        set_state(engine, resumed.state(), progress["updates"])
        distributed.say(f"resumed from {resumed.path} at step {progress['step']} of {total_steps}")
    tracker = Tracker(run, total_steps, progress["step"], config.wandb_project if config.wandb else "",
                      vars(config) | {"ds_config": ds_config})

    # 4. The loop
    updates, best, skipped = progress["updates"], progress["best"], 0
    predictions, saved = [], resumed.path.name if resumed else None
    stop = distributed.StopSignal()
    engine.train()
    for step in range(progress["step"], total_steps):
        started = time.perf_counter()
        rate = learning_rate(step, total_steps, optimizer["lr"], config.warmup, config.min_lr)
        seed_step(config.seed, step)
        rows_in_step, micro_batches = batches.step(step)
        statistics = StepStatistics(device)
        for micro_batch in micro_batches:
            batch = {name: tensor.to(device) for name, tensor in micro_batch.tensors.items()}
            logits_BC = engine(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            logits_NOC = unswap(logits_BC, batch["swapped"]).view(len(micro_batch.ids), batches.orders_per_row, -1)
            loss_N = preference_loss(logits_NOC, batch["target"], config.order_weight)
            # DeepSpeed averages gradients over the ranks; this makes that the mean over the step's rows.
            engine.backward(loss_N.sum() * (micro_batch.weight * distributed.world_size() / rows_in_step))
            statistics.add(micro_batch, batch["target"], logits_NOC, loss_N)
        norm, updated = update(engine, rate)
        updates, skipped = (updates + 1, 0) if updated else (updates, skipped + 1)
        values = statistics.reduce(rows_in_step, stop.received)
        if not updated:
            tracker.say(f"step {step + 1}: loss or gradient is not finite, step skipped; rows: {statistics.suspects()}")
            if skipped == 3:
                raise UserError(f"three steps in a row were not finite, the last one step {step + 1}; the run has "
                                f"stopped ({f'its last checkpoint is {saved}' if saved else 'without a checkpoint'})")
        seconds = time.perf_counter() - started
        tracker.step({"step": step + 1, **values.numbers, "learning_rate": rate, "gradient_norm": norm,
                      "tokens_per_second": values.tokens / seconds}, show=(step + 1) % config.log_every == 0)

        # 5. Evaluation and checkpoint; the last one is exported
        last = step + 1 == total_steps
        evaluates = last or (config.eval_every and (step + 1) % config.eval_every == 0)
        if evaluates and len(data.test):
            predictions = score(engine, data.test, data.encoder.template, config.tokens_per_micro_batch, device, True)
            summary = summarise(predictions)
            tracker.evaluation({"step": step + 1, **summary})
            tracker.say(f"step {step + 1} test: {report.short(summary)}")
        if evaluates or values.stop:
            found = summary[config.best_metric] if evaluates and len(data.test) else None
            is_best = checkpoint.is_better(found, best, config.best_metric)
            best = found if is_best else best
            state = get_state(engine)
            if distributed.is_main():
                saved = checkpoint.commit(run, state, {"step": step + 1, "updates": updates, "best": best},
                                          config.keep, is_best)
            saved = distributed.from_main(saved)
        if values.stop and not last:
            tracker.close()
            distributed.say(f"stopped at step {step + 1}; continue with: deepspeed train.py --deepspeed_config "
                            f"ds_config.json --resume {run}")
            return
    tracker.close()

    # 6. Export
    if not predictions:  # a resumed run that had made its last step, or one without a test split
        predictions = score(engine, data.test, data.encoder.template, config.tokens_per_micro_batch, device, True)
    shown = data.test if len(data.test) else data.train
    few = shown.select(sorted(range(len(shown)), key=shown["tokens"][:].__getitem__)[:4])
    live = score(engine, few, data.encoder.template, config.tokens_per_micro_batch, device, True)
    if distributed.is_main():
        metrics = report.evaluation(predictions) if predictions else None
        difference = export(run, checkpoint.load(run / "checkpoints" / saved), run / "export", metrics, (few, live))
        if metrics:
            print(f"\n{report.table(metrics)}\n\n{report.LEGEND}")
        print(f"\nexported to {run / 'export'} (loaded afresh, logits differ by {difference:.1g})\n"
              f"next: python eval.py --model {run}", flush=True)


if __name__ == "__main__":
    run_main(main, distributed.is_main)
