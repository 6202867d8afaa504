"""What `moeworks train` does: set up, train, validate, sample, report."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from rich.console import Console

from moeworks.checkpoint import latest_checkpoint, list_checkpoints, read_checkpoint
from moeworks.cli.progress import TrainingDisplay
from moeworks.cli.summary import print_summary, summarise
from moeworks.cli.train import TrainRequest
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
from moeworks.train.run_dir import RunDir, write_json
from moeworks.train.step import autocast
from moeworks.train.trainer import Trainer, check_division

Result = TypeVar("Result")


def run(request: TrainRequest) -> int:
    """Returns 0, or 130 when a signal stopped it (the state is saved)."""
    if request.config.train.threads is not None:
        torch.set_num_threads(request.config.train.threads)
    with join_world(request.config.train.device) as world:
        return _Session(request.config, request.directory, world, resume=request.resume).run()


class _Session:
    """One call of the verb on one rank."""

    def __init__(self, config: RunConfig, directory: RunDir, world: World, *, resume: bool) -> None:
        self.config, self.directory, self.world, self.resume = config, directory, world, resume
        self.console = Console(quiet=not world.is_main, soft_wrap=True)

    def run(self) -> int:
        with ExitStack() as stack:
            trainer, sink = self._main_first(lambda: self._set_up(stack))
            progress = trainer.progress
            display = TrainingDisplay(self.console, self.config.train.steps, progress.step, progress.alarms)
            stack.enter_context(display)
            finished = train(trainer, self.directory, sink, self._callbacks(trainer, display))
        final = self._evaluate(trainer, None) if finished else None
        return self._close(trainer, final) if self.world.is_main else 0

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

    def _set_up(self, stack: ExitStack) -> tuple[Trainer, MetricsSink | None]:
        """All that can fail before the first step."""
        check_division(self.config.train, self.world)
        check_named(self.config.model.router)
        with self._claimed_directory():
            corpus = self._prepare_corpus()
            trainer = Trainer(self.config, corpus, self.world)
            self._restore(trainer)
            if self.world.is_main:
                corpus.tokenizer.save(self.directory.tokenizer)
            self._say_backend(trainer)
            return trainer, self._open_sink(trainer, stack)

    @contextmanager
    def _claimed_directory(self) -> Iterator[None]:
        """Make the run's folder before anything slow happens: from then on --resume works.

        A start that fails takes it away again.
        """
        if self.resume or not self.world.is_main:
            yield
            return
        root = self.directory.root
        if self.directory.config.exists():
            raise ConfigError(
                f"--name {root.name}: {root} is a run already; continue it with --resume {root}, or choose"
                " another --name"
            )
        if root.exists() and any(root.iterdir()):
            raise ConfigError(f"--name {root.name}: {root} is not empty, and no run; choose another --name")
        try:
            self.directory.save_config(self.config)
            yield
        except BaseException:
            self.directory.discard()
            raise

    def _prepare_corpus(self) -> PreparedCorpus:
        """The main rank prepares the shards; the others then find them in the cache."""
        corpus = prepare(
            self.config.data,
            self.config.corpus,
            self.config.model.vocab_size,
            progress=lambda text: self.console.print(text, highlight=False),
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

    def _is_own(self, saved: Any) -> bool:
        """Whether a checkpoint's config is this run's; settings younger than it have their defaults."""
        try:
            return from_dict(RunConfig, saved) == self.config
        except ConfigError:
            return False

    def _restore(self, trainer: Trainer) -> None:
        """Load the latest checkpoint of a resumed run; one that was killed before its first starts over."""
        if not self.resume:
            return
        if not list_checkpoints(self.directory.checkpoints):
            self.console.print("no checkpoint yet: starting from step 0")
            return
        checkpoint = read_checkpoint(latest_checkpoint(self.directory.checkpoints), verify=False)
        if not self._is_own(checkpoint.state["config"]):
            raise CheckpointError(
                f"{checkpoint.path}: a checkpoint of another config than {self.directory.config}"
            )
        trainer.restore(checkpoint)
        self.console.print(f"resuming {checkpoint.path}", highlight=False)
        before = checkpoint.state["processes"]
        if before != self.world.size:
            self.console.print(
                f"{before} process(es) before, {self.world.size} now: the same batches, but not bit for bit"
                " what an uninterrupted run would give",
                highlight=False,
            )

    def _say_backend(self, trainer: Trainer) -> None:
        """What computes the experts, and why: the slow path must not go unnoticed."""
        moe = next(iter(moe_modules(trainer.model)), None)
        if moe is None:
            return
        x = torch.empty(1, self.config.model.d_model, device=self.world.device)
        with autocast(self.config, self.world.device):
            self.console.print(f"experts by {moe.explain_backend(x)}", highlight=False)

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
        )

    def _evaluate(self, trainer: Trainer, max_tokens: int | None) -> Evaluation:
        """Validate on at most that much text; all ranks take part."""
        train_config, corpus = self.config.train, trainer.corpus
        validation = ValidationSet(
            corpus.validation, train_config.seq_len, train_config.batch_size, max_tokens
        )
        with autocast(self.config, self.world.device):
            return evaluate(trainer.model, validation, corpus.domains, self.world)

    def _close(self, trainer: Trainer, final: Evaluation | None) -> int:
        """Summary and report on the main rank; `final` is None when a signal stopped the run."""
        if final is None:
            write_report(self.directory.root)
            self.console.print(
                f"stopped at step {trainer.progress.step}; saved. Continue with:"
                f" moeworks train --resume {self.directory.root}",
                highlight=False,
            )
            return 130
        summary = summarise(trainer, final, self.directory.root.name)
        write_json(self.directory.summary, summary)
        print_summary(self.console, summary)
        self.console.print(f"\nreport: {write_report(self.directory.root)}", highlight=False)
        return 0
