"""The text of `--help`: usage, the configuration groups, and every option or those asked for."""

import difflib
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from unfreeze.config import Config
from unfreeze.errors import ConfigError
from unfreeze.report.options import Option, list_options

_COLUMN = 44  # where meanings begin at most: the longest name, finetune.activation_checkpointing, is 33
_NO_BREAK = "\N{NO-BREAK SPACE}"

Groups = Mapping[str, Sequence[str]]


def find_groups(conf: Path) -> dict[str, list[str]]:
    """Configuration group → its files."""
    folders = sorted(path for path in conf.iterdir() if path.is_dir())
    return {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}


def help_for(arguments: Sequence[str], about: str, conf: Path, *, width: int) -> str:
    """What ``--help`` prints for a command line: names beside the flag narrow it, settings are passed over.

    ``arguments``: what the user calls, and then those that it was given.

    Raises:
        ConfigError: nothing has one of the names.
    """
    names = [argument for argument in arguments[1:] if not argument.startswith("-") and "=" not in argument]
    groups = find_groups(conf)
    return help_on(names, groups, width=width) if names else help_text(arguments[0], about, groups, width=width)


def help_text(command: str, about: str, groups: Groups, *, width: int) -> str:
    """All of it, for the entry script that ``command`` starts and ``about`` describes."""
    usage = f"""\
usage: {command} [GROUP=FILE ...] [OPTION=VALUE ...]
  --help [NAME ...]  all of this, or a group, a section, an option alone
  --cfg job          print the composed configuration, start nothing
  --hydra-help       Hydra's own flags"""
    parts = [usage, about.strip(), _group_text(groups, groups, width), *_section_texts(list_options(), width)]
    return "\n\n".join(parts) + "\n"


def help_on(names: Sequence[str], groups: Groups, *, width: int) -> str:
    """The groups, sections and options of these names alone.

    Raises:
        ConfigError: nothing has one of the names.
    """
    options = list_options()
    unknown = [name for name in names if name not in groups and not any(o.is_called(name) for o in options)]
    if unknown:
        lines = (f"  {name}: {_hint(name, groups, options)}" for name in unknown)
        raise ConfigError("\n".join(["no group, section or option has this name:", *lines]))
    chosen = [option for option in options if any(option.is_called(name) for name in names)]
    asked = [group for group in groups if group in names]
    parts = [*([_group_text(asked, groups, width)] if asked else []), *_section_texts(chosen, width)]
    return "\n\n".join(parts) + "\n"


def _hint(name: str, groups: Groups, options: Sequence[Option]) -> str:
    if "." in name:  # the section alone makes many names alike
        near = difflib.get_close_matches(name, [option.name for option in options], n=1)
    else:
        known = {*groups, *(part for option in options for part in option.name.split("."))}
        near = difflib.get_close_matches(name, sorted(known))
    sections = dict.fromkeys(option.section for option in options if option.section)
    return f"did you mean {' or '.join(near)}?" if near else f"the sections are {', '.join(sections)}"


def _group_text(names: Iterable[str], groups: Groups, width: int) -> str:
    title = "groups: files that set several options at once; what stands on the command line comes on top"
    lines = _wrap(title, width, first="", rest="  ")
    for name in names:
        lines += _hanging(f"  {name}=", ", ".join(groups[name]), column=15, width=width)
    return "\n".join(lines)


def _section_texts(options: Sequence[Option], width: int) -> list[str]:
    """One text a section; options of no section come first, as neighbours."""
    texts = []
    for section in sorted(dict.fromkeys(option.section for option in options), key=lambda section: section is not None):
        own = [option for option in options if option.section == section]
        lefts = [f"  {option.name} = {option.default}" for option in own]
        column = min(max(map(len, lefts)) + 2, _COLUMN, width // 2)
        title = f"{section}: {getattr(Config(), section).__doc__}" if section else "general:"
        lines = _wrap(title, width, first="", rest="  ")
        for left, option in zip(lefts, own, strict=True):
            lines += _hanging(left, f"{option.meaning} ({_kept_together(option.allowed)})", column=column, width=width)
        texts.append("\n".join(lines))
    return texts


def _kept_together(text: str) -> str:
    """A short text that no line break parts: ``number > 0``."""
    return text.replace(" ", _NO_BREAK) if len(text) <= 36 else text


def _hanging(left: str, right: str, *, column: int, width: int) -> list[str]:
    """``left``, and from ``column`` on ``right``: beside it where there is room, else below it."""
    beside = len(left) + 2 <= column
    above = [] if beside else _wrap(left, width, first="", rest="    ")
    return above + _wrap(right, width, first=left.ljust(column) if beside else " " * column, rest=" " * column)


def _wrap(text: str, width: int, *, first: str, rest: str) -> list[str]:
    lines = textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace(_NO_BREAK, " ") for line in lines]
