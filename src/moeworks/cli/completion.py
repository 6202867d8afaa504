"""`moeworks completion bash|zsh`: a script that completes verbs and their options.

    eval "$(moeworks completion bash)"        # in ~/.bashrc
    eval "$(moeworks completion zsh)"         # in ~/.zshrc

The options are those that each verb's --help shows; what is no option is completed as a file.
"""

import contextlib
import importlib
import io
import re
from dataclasses import dataclass
from typing import Literal

import tyro

from moeworks.cli import main as table
from moeworks.cli.listing import LISTS
from moeworks.cli.options import parse_options
from moeworks.cli.streams import result_stream

_LINE = re.compile(r"^[│| ]{0,3}(--?\w.*?)(?: {2,}|$)", re.MULTILINE)
"""The beginning of an option's line in a page of help; what it means stands further right."""
_OPTION = re.compile(r"--[a-z][\w.-]*")

_SUBCOMMANDS = {
    "lab": ("run", "report"),
    "simulate": ("cache", "placement", "communication", "speculation"),
    "list": tuple(LISTS),
    "completion": ("bash", "zsh"),
}

_SCRIPT = """\
_moeworks() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{verbs}"
  else
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _moeworks moeworks
"""
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


@dataclass(frozen=True)
class CompletionOptions:
    """Print a script that completes verbs and options: eval "$(moeworks completion bash)"."""

    shell: tyro.conf.Positional[Literal["bash", "zsh"]]
    """Shell that runs the script."""


def parse(argv: list[str]) -> CompletionOptions:
    """The options that `argv` spells."""
    return parse_options(CompletionOptions, argv, "moeworks completion")


def run(options: CompletionOptions) -> None:
    """Print the script."""
    cases = "\n".join(f'      {verb}) words="{" ".join(words_of(verb))}" ;;' for verb in table.VERBS)
    script = _SCRIPT.format(verbs=" ".join(table.VERBS), cases=cases)
    result_stream().write((_ZSH if options.shell == "zsh" else "") + script)


def words_of(verb: str) -> list[str]:
    """Subcommands and options of `verb`, as its help names them."""
    names = _SUBCOMMANDS.get(verb, ())
    kinds = [[name] for name in names] if verb in ("lab", "simulate") else [[]]
    pages = "".join(_help([verb, *kind]) for kind in kinds)
    return [*names, *sorted({option for line in _LINE.findall(pages) for option in _OPTION.findall(line)})]


def _help(words: list[str]) -> str:
    page = io.StringIO()
    parse_verb = importlib.import_module(table.VERBS[words[0]].module).parse
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        parse_verb([*words[1:], "--help"])
    return page.getvalue()
