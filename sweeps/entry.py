"""What the entry scripts share: Hydra composes, `load_config` checks, an error of the user's is one message."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

_HERE = Path(__file__).resolve().parent
_CONF = _HERE / "conf"
# A job's working directory has the source, not an installed package.
sys.path.insert(0, str(_HERE.parent / "platform"))

if TYPE_CHECKING:
    from unfreeze.config import Config


def launch(action: Callable[["Config"], None], *, experiment: str | None = None) -> None:
    """Compose the configuration from the command line, over ``experiment`` if given, and run ``action`` with it.

    Exit codes: 2 for what the user must mend, 130 for an interrupted sweep.
    """
    if {"--help", "-h"}.intersection(sys.argv[1:]):
        from unfreeze.report.help import help_for
        from unfreeze.report.terminal import terminal_width

        with _exit_codes():  # instead of Hydra's help, which knows the defaults and neither meaning nor range
            about = sys.modules[action.__module__].__doc__ or ""
            print(help_for(sys.argv, about, _CONF, width=terminal_width()), end="")
        return
    if experiment is not None:
        other = [argument for argument in sys.argv[1:] if argument.startswith("experiment=")]
        if other:
            print(f"error: this command is for experiment={experiment} alone, but got {other[0]}", file=sys.stderr)
            sys.exit(2)
        sys.argv.insert(1, f"experiment={experiment}")
    # Hydra alone would stop at the first unknown key; forced in, all of them reach `load_config` and its one message.
    sys.argv[1:] = [re.sub(r"^(?!hydra\.)(?=\w+\.[\w.]+=)", "++", argument) for argument in sys.argv[1:]]

    store_defaults()

    @hydra.main(version_base="1.3", config_path=str(_CONF), config_name="config")
    def main(raw: DictConfig) -> None:
        from unfreeze.load import load_config

        with _exit_codes():
            action(load_config(raw))

    main()


def store_defaults() -> None:
    """Hand Hydra every option with its default, below all files: `every_option` in conf/config.yaml."""
    from unfreeze.config import Config, config_to_dict

    ConfigStore.instance().store(name="every_option", node=config_to_dict(Config()))


@contextmanager
def _exit_codes() -> Iterator[None]:
    from unfreeze.errors import SweepInterrupted, UnfreezeError

    try:
        yield
    except UnfreezeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SweepInterrupted as interruption:
        print(interruption, file=sys.stderr)
        sys.exit(130)


def recompose(experiment: str, *overrides: str) -> "Config":
    """This command line's configuration over another experiment; what is in ``overrides`` comes last. For an action.

    Raises:
        ConfigError: as `load_config`.
    """
    from unfreeze.load import load_config

    given = [text for text in HydraConfig.get().overrides.task if not text.startswith("experiment=")]
    return load_config(hydra.compose("config", overrides=[f"experiment={experiment}", *given, *overrides]))
