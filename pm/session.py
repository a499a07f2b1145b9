"""What the loops of train.py and pm.pretrain have around them: settings and ranks, the run's folder and log, counters,
checkpoints."""

from collections.abc import Callable, Sequence
from functools import partial

from pm import checkpoint, distributed, memory
from pm.batches import Batches, seed_step
from pm.config import AUTO, Common, Config, parse
from pm.engine import check_config, create_moments, get_state, set_state, start_engine
from pm.errors import UserError
from pm.run import open_run
from pm.schedule import learning_rate
from pm.tracking import Tracker, quiet_libraries, read_history


class Session:
    """A run in progress, the same on all ranks: `step` and `updates` made of `total_steps`, the name of the checkpoint
    that was `saved` last; `unevaluated`, for a resumed run, whether the evaluation of that one was broken off. Raises
    `UserError` where it cannot begin."""

    def __init__(self, argv: Sequence[str], kind: type[Common] = Config, ds_config: str = "ds_config.json"):
        """`kind` of settings, and the ds_config.json where `argv` names none."""
        quiet_libraries()
        arguments = parse(argv, kind, ds_config)
        self.config, self.ds_config = arguments.config, arguments.ds_config
        distributed.set_environment()
        self.device = distributed.start()
        start_engine()
        check_config(self.ds_config)
        self.run = open_run(arguments)
        self._resumed = distributed.on_main(lambda: checkpoint.to_resume(self.run)) if arguments.resume else None
        self.saved = self._resumed.path.name if self._resumed else None
        project = self.config.wandb_project if self.config.wandb else ""
        shown = vars(self.config) | {"ds_config": self.ds_config}
        self.tracker = distributed.together(lambda: Tracker(self.run, project, shown))
        self.step = self.updates = self.total_steps = self._skipped = 0
        self.unevaluated = False

    def begin(self, engine, batches: Batches, **more) -> None:
        """Takes the engine that trains on the batches, and puts a resumed run's state into it. `more` is what the model
        is called with beside a micro-batch."""
        self._engine, self._batches = engine, batches
        self.total_steps = min(max(1, round(self.config.epochs * batches.per_epoch)), self.config.max_steps or 10**12)
        engine.train()
        setting, budget = self.config.tokens_per_micro_batch, None
        self._budget_of = distributed.on_main(lambda: [  # where one is known, all ranks must take it
            setting, distributed.device_name(), distributed.world_size(), engine.zero_optimization_stage(),
            getattr(self.config, "packing", True)])
        if self._resumed:
            trainer = self._resumed.trainer
            self.step, self.updates = trainer["step"], trainer["updates"]
            if trainer.get("token_budget_of") == self._budget_of:
                budget = trainer["token_budget"]  # found, or halved, by the run so far
            set_state(engine, self._resumed.state(), self.updates)
            self.unevaluated = self.evaluates and not distributed.on_main(lambda: any(
                line["phase"] == "eval" and line["step"] == self.step for line in read_history(self.run)))
            distributed.say(f"resumed from {self._resumed.path} at step {self.step} of {self.total_steps}")
        else:
            create_moments(engine)
        if budget is not None:
            batches.token_budget = budget
        elif setting == AUTO:
            batches.token_budget = memory.fitting_budget(engine.module, batches, self.device, **more)
        self._stop = distributed.StopSignal()
        self.tracker.start(self.total_steps, self.step)

    def begin_step(self) -> float:
        """The learning rate of the next step; also seeds its dropout."""
        seed_step(self.config.seed, self.step)
        return learning_rate(self.step, self.total_steps, self.ds_config["optimizer"]["params"]["lr"],
                             self.config.warmup, self.config.min_lr)

    @property
    def stops(self) -> bool:
        """Whether this rank was asked to stop."""
        return self._stop.received

    def again(self) -> None:
        """Before the step is made again, since memory ran out on a rank."""
        self._batches.halve_budget()
        self.tracker.say(f"step {self.step + 1}: out of memory; again with {self._batches.token_budget:,} tokens of a "
                         "micro-batch")

    def count(self, updated: bool, suspects: Callable[[], str]) -> None:
        """The step was made, with an update of the weights or without; `suspects()` are the rows that may be why.

        Raises `UserError` at the third in a row without one."""
        self.step += 1
        if updated:
            self.updates, self._skipped = self.updates + 1, 0
            return
        self._skipped += 1
        self.tracker.say(f"step {self.step}: loss or gradient is not finite, step skipped; rows: {suspects()}")
        if self._skipped == 3:
            raise UserError(f"three steps in a row were not finite, the last one step {self.step}; the run has stopped "
                            f"({f'its last checkpoint is {self.saved}' if self.saved else 'without a checkpoint'})")

    @property
    def ended(self) -> bool:
        return self.step == self.total_steps

    @property
    def evaluates(self) -> bool:
        """Whether it is time for an evaluation."""
        return self.ended or bool(self.config.eval_every and self.step % self.config.eval_every == 0)

    def say_stopped(self, command: str) -> None:
        """The last lines of a run that was asked to stop."""
        self.tracker.close()
        distributed.say(f"stopped at step {self.step}; continue with: {command} --deepspeed_config "
                        f"{self.run / 'ds_config.json'} --resume {self.run}")

    def save(self) -> None:
        """A checkpoint."""
        trainer = {"step": self.step, "updates": self.updates, "token_budget": self._batches.token_budget,
                   "token_budget_of": self._budget_of}
        self.saved = distributed.on_main(partial(checkpoint.commit, self.run, get_state(self._engine), trainer,
                                                 self.config.keep))

    def judge(self, value: float | None, metric: str) -> None:
        """`value` of the `metric` says whether the checkpoint that was saved last is the best one so far."""
        distributed.on_main(partial(checkpoint.judge, self.run, self.saved, value, metric, self.config.keep))
