"""`moeworks VERB ...`: finds the verb, runs it, and turns what goes wrong into a message and an exit code.

Exit codes:

    0              done
    1              a check of `moeworks doctor` failed
    2              an error: one message on standard error (with --debug its traceback), nothing on standard
                   output, with --json too
    129, 130, 143  stopped by SIGHUP, Ctrl-C (SIGINT) or SIGTERM: 128 and the signal's number; `train` has
                   saved
    141            nobody reads what the verb prints (`| head`)

A verb that writes files goes on when its reader goes away, and returns its own code. Its result is what it
prints only with --json; losing that is 141, or 2 when the device refuses (no space left).

A verb's module is imported when the verb runs, so that --help does not wait for torch.
"""

import importlib
import sys
import traceback
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import metadata

from moeworks.cli.renamed import current_spelling
from moeworks.cli.signals import exit_code, stoppable
from moeworks.cli.streams import OutputLost, Streams, protected
from moeworks.errors import ConfigError, MoeworksError, nearest

FAILED = 2
INTERRUPTED = 128 + 2
BROKEN_PIPE = 128 + 13

_GLOBAL = {"--debug": "--debug", "--quiet": "--quiet", "-q": "--quiet"}


@dataclass(frozen=True)
class Verb:
    """One entry of the table of verbs."""

    module: str
    """Module whose `parse(argv)` reads the arguments, without torch, so that --help and a slip answer at
    once."""
    work: str
    """Module whose `run` takes what parse returned, and returns an exit code or None."""
    summary: str
    """One line for --help."""
    prints: bool = False
    """The verb's only result is what it prints: it ends when nobody reads it."""


VERBS: dict[str, Verb] = {
    "train": Verb(
        "moeworks.cli.train",
        "moeworks.cli.training",
        "train a model, or continue a run with --resume; writes a report",
    ),
    "generate": Verb(
        "moeworks.cli.generate", "moeworks.cli.generation", "continue texts with any model", prints=True
    ),
    "eval": Verb(
        "moeworks.cli.eval",
        "moeworks.cli.evaluation",
        "bits per byte and perplexity of a model on texts",
        prints=True,
    ),
    "trace": Verb(
        "moeworks.cli.trace",
        "moeworks.cli.tracing",
        "record which experts a model chooses for some texts",
    ),
    "inspect": Verb(
        "moeworks.cli.inspect",
        "moeworks.cli.inspection",
        "a page on a trace or a run: experts, tokens, balance, in words and figures",
    ),
    "simulate": Verb(
        "moeworks.cli.simulate",
        "moeworks.cli.simulation",
        "what a cache, devices or speculation would do with a trace",
        prints=True,
    ),
    "lab": Verb(
        "moeworks.cli.lab",
        "moeworks.cli.labs",
        "short experiments that settle claims about MoE models: lab run, lab report",
    ),
    "doctor": Verb(
        "moeworks.cli.doctor",
        "moeworks.cli.diagnosis",
        "does this MoE do what it claims? named checks, also for transformers models",
    ),
    "config": Verb(
        "moeworks.cli.config",
        "moeworks.cli.config",
        "print a preset's whole config, every field explained",
        prints=True,
    ),
    "info": Verb(
        "moeworks.cli.info",
        "moeworks.cli.info",
        "parameters, cache and FLOPs of a published model or of a run",
        prints=True,
    ),
    "plan": Verb(
        "moeworks.cli.plan",
        "moeworks.cli.planning",
        "what serving or training a model takes: devices, speed, traffic, time, money",
        prints=True,
    ),
    "list": Verb(
        "moeworks.cli.listing",
        "moeworks.cli.listing",
        "what there is: presets, models, checks, gpus or labs",
        prints=True,
    ),
    "completion": Verb(
        "moeworks.cli.completion",
        "moeworks.cli.completion",
        "completion of verbs and options for bash or zsh",
        prints=True,
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Run `argv` (default: the process's arguments) and return the exit code.

    Raises SystemExit where a verb's own parser prints its help (code 0) or refuses an option (code 2).
    """
    words, flags = _global_flags(list(sys.argv[1:] if argv is None else argv))
    as_json = "--json" in words
    with protected(quiet="--quiet" in flags, json=as_json) as streams, stoppable():
        try:
            code = _guarded(words, streams, debug="--debug" in flags)
        except SystemExit as stop:
            # A parser has printed help, or a refusal.
            if not stop.code and (lost := _lost(streams)) is not None:
                return lost
            raise
        printed = _prints(words) or as_json
        lost = _lost(streams) if printed and code == 0 else None
        return code if lost is None else lost


def _guarded(words: list[str], streams: Streams, *, debug: bool) -> int:
    """The exit code of the verb, with a message for what went wrong."""
    streams.stdout.ends = _prints(words)
    try:
        return _dispatch(words)
    except OutputLost:
        return 0  # what becomes of that is decided by the caller
    except KeyboardInterrupt as stop:
        return exit_code(stop)
    except (MoeworksError, OSError) as error:  # OSError: a full disk, a folder without permission
        if debug:
            traceback.print_exc()
        print(f"moeworks: error: {error}", file=sys.stderr)
        return FAILED
    finally:
        streams.stdout.ends = False
        streams.stdout.flush()


def _prints(words: list[str]) -> bool:
    return not words or words[0] not in VERBS or VERBS[words[0]].prints


def _lost(streams: Streams) -> int | None:
    """The exit code for a result that could not be printed, or None; an error is told where there is one."""
    stdout = streams.stdout
    stdout.flush()
    if stdout.lost is None:
        return None
    if stdout.reader_gone:
        return BROKEN_PIPE
    reason = getattr(stdout.lost, "strerror", None) or stdout.lost
    print(f"moeworks: error: standard output cannot be written: {reason}", file=sys.stderr)
    return FAILED


def _global_flags(argv: list[str]) -> tuple[list[str], set[str]]:
    """The arguments without those that every verb takes, and these; what follows `--` is left alone."""
    end = argv.index("--") if "--" in argv else len(argv)
    flags = {_GLOBAL[word] for word in argv[:end] if word in _GLOBAL}
    return [word for word in argv[:end] if word not in _GLOBAL] + argv[end:], flags


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    if argv[0] == "--version":
        print(f"moeworks {metadata.version('moeworks')}")
        return 0
    if argv[0] not in VERBS:
        raise ConfigError(f"unknown verb {argv[0]!r}; {nearest(argv[0], VERBS)}")
    name, *rest = current_spelling(argv)
    verb = VERBS[name]
    arguments = importlib.import_module(verb.module).parse(rest)
    work = importlib.import_module(verb.work)
    with _sharing_cores():
        return work.run(arguments) or 0


def _sharing_cores() -> AbstractContextManager[None]:
    """For verbs that compute, that is those that have imported torch: leave other processes their cores."""
    if "torch" not in sys.modules:
        return nullcontext()
    return importlib.import_module("moeworks.ops.native.cores").sharing_cores()


def _help() -> str:
    verbs = "\n".join(f"  {name:<10} {verb.summary}" for name, verb in VERBS.items())
    return f"""usage: moeworks VERB ...

Train, inspect and plan Mixture-of-Experts language models.

verbs:
{verbs}

options:
  -h, --help     this page; `moeworks VERB --help` has the options of a verb
  --version      the version of moeworks
  -q, --quiet    with any verb: results and errors only, no progress and no notes
  --debug        with any verb: show the traceback of an error"""
