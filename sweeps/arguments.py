"""The command line as Hydra must read it, and what is wrong with it, found before Hydra stops at the first of it.

Hydra reads values by a grammar: 20261127 is a number, a[b] a mistake, mha:lora(8) a function. A text is what it is, so
values of text options are quoted for it.
"""

import difflib
import re
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

Groups = Mapping[str, Sequence[str]]

# Hydra's own flags → whether a value follows.
_FLAGS = {
    **dict.fromkeys(("--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"), False),
    **dict.fromkeys(("--shell-completion", "-sc", "--experimental-rerun"), False),
    **dict.fromkeys(("--cfg", "-c", "--package", "-p", "--info", "-i"), True),
    **dict.fromkeys(("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"), True),
}


def read_arguments(arguments: Sequence[str], groups: Groups) -> tuple[list[str], list[str]]:
    """What Hydra is to be given, and a line for each argument that it cannot read.

    ``groups``: configuration group → its files.
    """
    given: list[str] = []
    problems: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in _FLAGS:
            given.append(argument)
            if _FLAGS[argument] and rest:
                given.append(rest.pop(0))
        elif argument.startswith("-"):
            name, equals, value = argument.lstrip("-").partition("=")
            if not equals and rest and "=" not in rest[0] and not rest[0].startswith("-"):
                value = rest.pop(0)
            shown = f"{argument} {value}" if value and not equals else argument
            problems.append(f"{shown}: options are written NAME=VALUE; {_likely(name, groups, value)}")
        elif (problem := _problem_of(argument, groups)) is not None:
            problems.append(problem)
        else:
            given.append(for_hydra(argument))
    return given, problems


def _problem_of(argument: str, groups: Groups) -> str | None:
    name, equals, value = argument.partition("=")
    bare = name.lstrip("+~")
    if bare.startswith("hydra.") or name.startswith("~"):
        return None
    if not equals:
        return f"{argument}: options are written NAME=VALUE; {_likely(bare, groups)}"
    if bare in groups:
        if value in groups[bare] or value == "null":
            return None
        near = difflib.get_close_matches(value, groups[bare], n=1)
        return f"{argument}: " + (
            f"did you mean {bare}={near[0]}?" if near else f"{bare} is one of {', '.join(groups[bare])}"
        )
    if "." not in bare and bare not in _options():
        return f"{argument}: unknown option; {_likely(bare, groups, value)}"
    try:
        OverridesParser.create().parse_overrides([for_hydra(argument)])
    except OverrideParseException as error:
        reason = str(error).splitlines()[0]
        return f"{argument}: the value cannot be read ({reason}); quote a text within it: {name}=\"'…'\""
    return None


def _likely(name: str, groups: Groups, value: str = "…") -> str:
    """What was meant, perhaps: an option by its last word, else by likeness."""
    if name in groups:
        return f"did you mean {name}={value or '…'}?"
    options = _options()
    by_last = [option for option in options if option == name or option.endswith(f".{name}")]
    if not by_last:
        words = {option.rpartition(".")[2]: option for option in options} | {option: option for option in options}
        words |= {group: group for group in groups} | {option.partition(".")[0]: f"{option}" for option in options}
        near = difflib.get_close_matches(name, words, n=1, cutoff=0.7)
        by_last = [option for option in options if option.startswith(f"{near[0]}.")] if near else []
        by_last = by_last[:1] or [words[word] for word in near]
    likely = " or ".join(f"{option}={value or '…'}" for option in by_last[:3])
    return f"did you mean {likely}?" if likely else "--help lists them all"


def _options() -> list[str]:
    from unfreeze.report.options import list_options

    return [option.name for option in list_options()]


def for_hydra(argument: str) -> str:
    """An argument as Hydra must read it.

    Hydra alone would stop at the first unknown key; forced in, all of them reach `load_config` and its one message.
    """
    from unfreeze.load import text_list_options, text_options

    match = re.fullmatch(r"(\+{0,2})(\w[\w.]*)=(.*)", argument, re.DOTALL)
    if match is None or match[2].startswith("hydra."):
        return argument
    force, name, value = match.groups()
    force = "++" if "." in name else force
    if name in text_options() and value != "null":
        value = _quoted(value)
    elif name in text_list_options() and value[:1] == "[" and value[-1:] == "]":
        texts = re.split(r",(?![^(]*\))", value[1:-1])  # not within brackets
        value = f"[{','.join(_quoted(text.strip()) for text in texts if text.strip())}]"
    return f"{force}{name}={value}"


def _quoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text
    escaped = re.sub(r"(\\*)(?='|$)", r"\1\1", text).replace("'", r"\'")  # before a quote, and there alone, \ is \\
    return f"'{escaped}'"
