"""`moeworks VERB ...`: finds the verb, runs it, and turns what goes wrong into a message and an exit code.

Exit codes: 0 done, 2 an error of the input (one message, and a traceback with --debug), 130 interrupted,
1 the reader of the output went away. A verb's module is imported when the verb runs, so that --help does not
wait for torch.
"""

import importlib
import os
import sys
import traceback
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import metadata

from moeworks.errors import ConfigError, MoeworksError, nearest

INTERRUPTED = 128 + 2
BROKEN_PIPE = 1  # as rich does on its own


@dataclass(frozen=True)
class Verb:
    """One entry of the table of verbs."""

    module: str
    """Its `parse(argv)` reads the arguments, without torch, so that --help and a slip answer at once."""
    work: str
    """The module whose `run` takes what parse returned, and returns an exit code or None."""
    summary: str
    """One line for --help."""


VERBS: dict[str, Verb] = {
    "train": Verb(
        "moeworks.cli.train",
        "moeworks.cli.training",
        "train a model, or go on with --resume; writes a report",
    ),
    "generate": Verb("moeworks.cli.generate", "moeworks.cli.generation", "continue texts with any model"),
    "eval": Verb(
        "moeworks.cli.eval", "moeworks.cli.evaluation", "bits per byte and perplexity of a model on texts"
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
    ),
    "lab": Verb(
        "moeworks.cli.lab",
        "moeworks.cli.labs",
        "short experiments that settle claims about MoE models: lab list, run, report",
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
    ),
    "info": Verb(
        "moeworks.cli.info",
        "moeworks.cli.info",
        "parameters, cache and FLOPs of a published model or of a run",
    ),
    "plan": Verb(
        "moeworks.cli.plan",
        "moeworks.cli.planning",
        "what serving or training a model takes: devices, speed, traffic, time, money",
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Run `argv` (default: the process's arguments) and return the exit code.

    Raises SystemExit where a verb's own parser prints its help (code 0) or refuses an option (code 2).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        code = _dispatch([word for word in argv if word != "--debug"])
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it exits; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (MoeworksError, OSError) as error:  # OSError: a full disk, a folder without permission
        if debug:
            traceback.print_exc()
        print(f"moeworks: error: {error}", file=sys.stderr)
        return 2


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    if argv[0] == "--version":
        print(f"moeworks {metadata.version('moeworks')}")
        return 0
    if argv[0] not in VERBS:
        raise ConfigError(f"unknown verb {argv[0]!r}; {nearest(argv[0], VERBS)}")
    verb = VERBS[argv[0]]
    arguments = importlib.import_module(verb.module).parse(argv[1:])
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
  --debug        with any verb: show the traceback of an error"""
