"""The work of `moeworks train`: set up, train, validate, sample, report."""

import signal
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch

from moeworks.checkpoint import Checkpoint, find_latest, read_checkpoint
from moeworks.cli.output import console, print_json
from moeworks.cli.progress import TrainingDisplay
from moeworks.cli.streams import is_quiet
from moeworks.cli.summary import print_summary, summarise
from moeworks.cli.train import TrainRequest, same_steps
from moeworks.config import RunConfig
from moeworks.config.codec import from_dict
from moeworks.config.pools import check_named
from moeworks.data.shards import PreparedCorpus, prepare
from moeworks.data.tokenizer import load_tokenizer
from moeworks.data.validation import ValidationSet
from moeworks.errors import CheckpointError, ConfigError
from moeworks.evaluate.bits_per_byte import Evaluation, evaluate
from moeworks.models.decoder import moe_modules
from moeworks.parallel.world import World, join_world
from moeworks.report import write_report
from moeworks.train.loop import Callbacks, train
from moeworks.train.metrics import MetricsSink, open_loggers
from moeworks.train.run_dir import write_json
from moeworks.train.schedule import lr_scale
from moeworks.train.step import autocast
from moeworks.train.trainer import Trainer, check_division

Result = TypeVar("Result")


def run(request: TrainRequest) -> int:
    """Train; returns 0, or 128 and the number of the signal that stopped the run (its state is saved)."""
    if request.config.train.threads is not None:
        torch.set_num_threads(request.config.train.threads)
    with join_world(request.config.train.device) as world:
        return _Session(request, world).run()


def extension_words(config: RunConfig, before: int, step: int) -> str:
    """What it means for a run at `step` to take config.train.steps instead of `before` steps."""
    steps, optimizer = config.train.steps, config.optimizer
    words = f"extended from {before:,} to {steps:,} steps: "
    for earlier in range(step):
        if lr_scale(earlier, before, optimizer) != lr_scale(earlier, steps, optimizer):
            return words + (
                f"steps {earlier + 1:,} to {step:,} had the learning rate of the shorter schedule"
                f" ({optimizer.schedule}), the following ones have that of the longer one; a run of {steps:,}"
                " steps from the start would end elsewhere"
            )
    return words + f"bit for bit a run of {steps:,} steps from the start"


class _Session:
    """One call of the verb on one rank."""

    def __init__(self, request: TrainRequest, world: World) -> None:
        self.config, self.directory, self.resume = request.config, request.directory, request.resume
        self.world, self.as_json = world, request.as_json
        self.console = console(quiet=not world.is_main)
        self.signal = signal.SIGINT.value
        """Number of the signal that stopped the run."""

    def run(self) -> int:
        with ExitStack() as claim:  # until the report is written
            return self._run(claim)

    def _run(self, claim: ExitStack) -> int:
        with ExitStack() as stack:
            trainer, sink = self._main_first(lambda: self._set_up(claim, stack))
            progress = trainer.progress
            display = TrainingDisplay(self.console, self.config.train.steps, progress.step, progress.alarms)
            stack.enter_context(display)
            finished = train(trainer, self.directory, sink, self._callbacks(trainer, display))
        if not finished:
            return self._close_stopped(trainer) if self.world.is_main else 0
        try:
            final = self._evaluate(trainer, None)
            return self._close(trainer, final) if self.world.is_main else 0
        except KeyboardInterrupt:
            self.console.print(
                "stopped after the last step, which is saved; validate and report with:"
                f" moeworks train --resume {self.directory.root}"
            )
            raise

    def _main_first(self, work: Callable[[], Result]) -> Result:
        """Do `work` on the main rank and then on the others, which leave in silence if it failed there."""
        if not self.world.is_main:
            if self.world.any(False, preparing=True):
                raise SystemExit(2)
            return work()
        failed = True
        try:
            result = work()
            failed = False
        finally:
            self.world.any(failed, preparing=True)
        return result

    def _set_up(self, claim: ExitStack, stack: ExitStack) -> tuple[Trainer, MetricsSink | None]:
        """All that can fail before the first step."""
        check_division(self.config.train, self.world)
        check_named(self.config.model.router)
        with self._claimed_directory(claim):
            corpus = self._prepare_corpus()
            trainer = Trainer(self.config, corpus, self.world)
            self._restore(trainer)
            if self.world.is_main:
                corpus.tokenizer.save(self.directory.tokenizer)
                self._note_changes(trainer)
            self._say_backend(trainer)
            return trainer, self._open_sink(trainer, stack)

    @contextmanager
    def _claimed_directory(self, claim: ExitStack) -> Generator[None]:
        """Lock the run's folder until `claim` ends, and make it before anything slow happens, so that
        --resume works from then on. A start that fails takes away what it made.
        """
        if not self.world.is_main:
            yield
            return
        is_new = claim.enter_context(self.directory.locked())
        if self.resume:
            yield
            return
        root = self.directory.root
        if self.directory.config.exists():
            raise ConfigError(
                f"--name {root.name}: {root} is a run already; continue it with --resume {root}, or choose"
                " another --name"
            )
        if not self.directory.is_empty():
            raise ConfigError(f"--name {root.name}: {root} is not empty, and no run; choose another --name")
        try:
            self.directory.save_config(self.config)
            yield
        except BaseException:
            self.directory.discard(folder=is_new)
            raise

    def _prepare_corpus(self) -> PreparedCorpus:
        """The main rank prepares the shards; the others then find them in the cache."""
        corpus = prepare(
            self.config.data,
            self.config.corpus,
            self.config.model.vocab_size,
            progress=self._say,
        )
        if self.resume and self.directory.tokenizer.is_file():
            saved = load_tokenizer(self.directory.tokenizer)
            if saved.fingerprint != corpus.tokenizer.fingerprint:
                raise CheckpointError(
                    f"{self.directory.tokenizer}: a vocabulary of {saved.vocab_size}, and not the tokenizer"
                    f" that the corpus gives now, of {corpus.tokenizer.vocab_size}: this file or those in"
                    f" {', '.join(self.config.data)} have changed"
                )
        return corpus

    def _saved_config(self, checkpoint: Checkpoint) -> RunConfig:
        """The config in `checkpoint`; settings younger than it have their defaults.

        Raises CheckpointError when it takes other steps than this run.
        """
        try:
            saved = from_dict(RunConfig, checkpoint.state["config"])
        except ConfigError:
            saved = None
        if saved is None or not same_steps(self.config, saved):
            raise CheckpointError(
                f"{checkpoint.path}: a checkpoint of another config than {self.directory.config}"
            )
        return saved

    def _restore(self, trainer: Trainer) -> None:
        """Load the latest checkpoint of a resumed run; one that was killed before its first starts over."""
        if not self.resume:
            return
        latest = find_latest(self.directory.checkpoints)
        if latest is None:
            self._say("no checkpoint yet: starting from step 0")
            return
        checkpoint = read_checkpoint(latest, verify=False)
        saved = self._saved_config(checkpoint)
        trainer.restore(checkpoint)
        self._say(f"resuming {checkpoint.path}")
        if saved.train.steps != self.config.train.steps:
            self._say(extension_words(self.config, saved.train.steps, trainer.progress.step))
        before = checkpoint.state["processes"]
        if before != self.world.size:
            self._say(
                f"{before} process(es) before, {self.world.size} now: the same batches, but not bit for bit"
                " what an uninterrupted run would give"
            )

    def _note_changes(self, trainer: Trainer) -> None:
        """Keep the options that --resume has changed, and take back the summary of an end that is none
        now."""
        if self.resume:
            self.directory.save_config(self.config)
            if trainer.progress.step < self.config.train.steps:
                self.directory.summary.unlink(missing_ok=True)

    def _say_backend(self, trainer: Trainer) -> None:
        """What computes the experts, and why: the slow path must not go unnoticed."""
        moe = next(iter(moe_modules(trainer.model)), None)
        if moe is None:
            return
        x = torch.empty(1, self.config.model.d_model, device=self.world.device)
        with autocast(self.config, self.world.device):
            self._say(f"experts by {moe.explain_backend(x)}")

    def _open_sink(self, trainer: Trainer, stack: ExitStack) -> MetricsSink | None:
        if not self.world.is_main:
            return None
        loggers = open_loggers(self.config, self.directory.root)
        sink = MetricsSink(self.directory.metrics, loggers, keep_bytes=trainer.progress.metrics_bytes)
        stack.callback(sink.close)
        return sink

    def _callbacks(self, trainer: Trainer, display: TrainingDisplay) -> Callbacks:
        limit = self.config.train.eval_tokens
        return Callbacks(
            evaluate=lambda model: self._evaluate(trainer, limit).record(),
            on_step=lambda trainer, step: display.step(trainer.progress.step),
            on_record=display.record,
            on_signal=self._stopped_by,
        )

    def _stopped_by(self, number: int) -> None:
        self.signal = number

    def _say(self, text: str) -> None:
        """A line about the progress, which --quiet silences."""
        if not is_quiet():
            self.console.print(text)

    def _evaluate(self, trainer: Trainer, max_tokens: int | None) -> Evaluation:
        """Validate on at most that much text; all ranks take part."""
        train_config, corpus = self.config.train, trainer.corpus
        validation = ValidationSet(
            corpus.validation, train_config.seq_len, train_config.batch_size, max_tokens
        )
        with autocast(self.config, self.world.device):
            return evaluate(trainer.model, validation, corpus.domains, self.world)

    def _close_stopped(self, trainer: Trainer) -> int:
        """Report of a run that a signal has stopped, on the main rank."""
        report = write_report(self.directory.root)
        root, step = self.directory.root, trainer.progress.step
        self.console.print(f"stopped at step {step}; saved. Continue with: moeworks train --resume {root}")
        if self.as_json:
            print_json({"name": root.name, "finished": False, "steps": step, "report": str(report)})
        return 128 + self.signal

    def _close(self, trainer: Trainer, final: Evaluation) -> int:
        """Summary and report on the main rank: first the files, then what is printed."""
        summary = summarise(trainer, final, self.directory.root.name)
        write_json(self.directory.summary, summary)
        report = write_report(self.directory.root)
        print_summary(self.console, summary)
        self.console.print(f"\nreport: {report}")
        if self.as_json:
            print_json({**summary, "finished": True, "report": str(report)})
        return 0
