"""What the entry scripts share: Hydra composes, `load_config` checks, an error of the user's is one message."""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

_HERE = Path(__file__).resolve().parent
_CONF = _HERE / "conf"
# A disk or a folder of the machine's, not a fault of ours: the temporary folder, the home, Ray's spill.
_SURROUNDINGS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
# A job's working directory has the source, not an installed package.
sys.path.insert(0, str(_HERE.parent / "platform"))

if TYPE_CHECKING:
    from unfreeze.config import Config


def launch(action: Callable[["Config"], None], *, experiment: str | None = None) -> None:
    """Compose the configuration from the command line, over ``experiment`` if given, and run ``action`` with it.

    Exit codes: 2 for what the user must mend, 75 where cluster or store broke down under the sweep (EX_TEMPFAIL: the
    same command goes on), 130 after Ctrl-C and 143 after SIGTERM, 141 when nobody reads the result any more.
    """
    from unfreeze.report.streams import sound_streams

    with sound_streams():
        _check_folder()
        _launch(action, experiment)


def run(main: Callable[[list[str]], None]) -> None:
    """A command that is no sweep and has no configuration: ``main`` with its arguments; exit codes as of `launch`."""
    from unfreeze.report.streams import sound_streams

    with sound_streams(), _exit_codes():
        _check_folder()
        main(sys.argv[1:])


def _check_folder() -> None:
    """Exit code 2 in a folder that has been removed meanwhile: no path is absolute there, and nothing can be kept."""
    from unfreeze.report.streams import say

    try:
        os.getcwd()
    except FileNotFoundError:
        say("error: the current folder has been removed; cd to one that is there")
        sys.exit(2)


def _launch(action: Callable[["Config"], None], experiment: str | None) -> None:
    from arguments import read_arguments

    from unfreeze.report.help import find_groups
    from unfreeze.report.streams import say, show

    if {"--help", "-h"}.intersection(sys.argv[1:]):
        from unfreeze.command import called
        from unfreeze.report.help import help_for
        from unfreeze.report.terminal import terminal_width

        with _exit_codes():  # instead of Hydra's help, which knows the defaults and neither meaning nor range
            about = sys.modules[action.__module__].__doc__ or ""
            show(help_for([called(sys.argv[0]), *sys.argv[1:]], about, _CONF, width=terminal_width()).rstrip("\n"))
        return
    if experiment is not None:
        other = [argument for argument in sys.argv[1:] if argument.startswith("experiment=")]
        if other:
            say(f"error: this command is for experiment={experiment} alone, but got {other[0]}")
            sys.exit(2)
        sys.argv.insert(1, f"experiment={experiment}")
    given, problems = read_arguments(sys.argv[1:], find_groups(_CONF))
    sys.argv[1:] = given

    store_defaults()

    @hydra.main(version_base="1.3", config_path=str(_CONF), config_name="config")
    def main(raw: DictConfig) -> None:
        from unfreeze.load import load_config

        with _exit_codes():
            action(load_config(raw, problems, typed=_names(given)))

    main()


def store_defaults() -> None:
    """Hand Hydra every option with its default, below all files: `every_option` in conf/config.yaml."""
    from unfreeze.config import Config, config_to_dict

    ConfigStore.instance().store(name="every_option", node=config_to_dict(Config()))


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    """An error that somebody must mend as one message, and its exit code as `launch` says."""
    from unfreeze.errors import InfrastructureError, SweepInterrupted, UnfreezeError
    from unfreeze.report.streams import say

    stopped: list[SweepInterrupted] = []

    def stop(number: int, _: object) -> None:
        """The first signal says how to go on and unwinds the command, the second ends it where it stands."""
        for again in (signal.SIGINT, signal.SIGTERM):
            signal.signal(again, lambda number, _: os._exit(128 + number))
        stopped.append(SweepInterrupted(number))
        with contextlib.suppress(OSError):  # at once, since a job that is stopped has three seconds; and not by
            os.write(2, f"{stopped[0]}\n".encode())  # `print`, in the middle of which the signal may have come
        raise stopped[0]

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        yield
    except UnfreezeError as error:
        say(f"error: {error}")
        sys.exit(2)
    except InfrastructureError as error:
        say(f"error: {error}")
        sys.exit(75)
    except KeyboardInterrupt:  # from a call of Ray a plain one, in place of the handler's (`check_status`, _raylet.pyx)
        if not stopped:
            raise
        sys.exit(stopped[0].exit_code)
    except OSError as error:
        if error.errno not in _SURROUNDINGS:
            raise
        say(f"error: {error.strerror}: {error.filename or 'no file named'}; make room there, or see to its permissions")
        sys.exit(2)


def recompose(experiment: str, *overrides: str) -> "Config":
    """This command line's configuration over another experiment; what is in ``overrides`` comes last. For an action.

    Raises:
        ConfigError: as `load_config`.
    """
    from unfreeze.load import load_config

    given = [text for text in HydraConfig.get().overrides.task if not text.startswith("experiment=")]
    composed = hydra.compose("config", overrides=[f"experiment={experiment}", *given, *overrides])
    return load_config(composed, typed=_names(given))


def _names(given: list[str]) -> set[str]:
    """The options that arguments set."""
    return {argument.lstrip("+~").partition("=")[0] for argument in given}
