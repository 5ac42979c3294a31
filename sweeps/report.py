"""The report of a sweep, finished or still running, from its ledger; or of several data sets' sweeps together.

python sweeps/report.py sweep.name=demo
python sweeps/report.py sweep=birds,flowers,pets
python sweeps/report.py sweep.name=demo every_s=30
python sweeps/report.py sweep.name=demo format=csv > trials.csv
python sweeps/report.py sweep.name=demo sync=true tracking.uri=http://mlflow:5000
"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent))  # neither `python -m sweeps.…` nor PYTHONSAFEPATH=1 does

from entry import launch

if TYPE_CHECKING:
    from unfreeze.config import Config
    from unfreeze.records import Evidence
    from unfreeze.storage.ledger import Ledger


def main(config: "Config") -> None:
    from unfreeze.errors import ConfigError
    from unfreeze.storage.ledger import Ledger
    from unfreeze.sweep.gather import read_evidence

    names = config.report.sweeps or [config.sweep.name]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"report.sweeps names {', '.join(twice)} twice, which would count twice; leave one out")
    ledgers = {name: Ledger(config.storage, name) for name in names}
    if config.report.sync:
        from unfreeze.report.streams import show
        from unfreeze.sweep.publish import synchronise

        for ledger in ledgers.values():
            show(synchronise(config.tracking, ledger))
        return
    evidence = {name: read_evidence(ledger) for name, ledger in ledgers.items()}
    if config.report.format != "text":
        hand_over(evidence, config.report.format)
    elif config.report.sweeps:
        tell_several(evidence, config.storage)
    else:
        tell_one(evidence[config.sweep.name], ledgers[config.sweep.name], every_s=config.report.every_s)


def hand_over(evidence: "dict[str, Evidence]", form: str) -> None:
    from unfreeze.report.formats import evidence_json, markdown_report, trials_csv, trials_parquet
    from unfreeze.report.streams import show, show_bytes

    if form == "parquet":
        show_bytes(trials_parquet(evidence.values()))
    elif form == "csv":
        show(trials_csv(evidence.values()).rstrip("\n"))
    elif form == "json":
        show(evidence_json(evidence))
    else:
        show("\n".join(map(markdown_report, evidence.values())).rstrip("\n"))


def tell_one(evidence: "Evidence", ledger: "Ledger", *, every_s: float) -> None:
    """``every_s`` above 0: again and again until the sweep has ended, and then what came of it."""
    from unfreeze.report.page import terminal_report
    from unfreeze.report.streams import say, show
    from unfreeze.sweep.gather import read_evidence

    while every_s and not evidence.has_ended:
        write_page(evidence, ledger)
        ended = sum(trial.state.is_final for trial in evidence.trials)
        say(f"{ended} of {len(evidence.trials)} trials begun have ended; once more in {every_s:g} s, Ctrl-C ends this")
        time.sleep(every_s)
        evidence = read_evidence(ledger)
    show(terminal_report(evidence))
    write_page(evidence, ledger)


def write_page(evidence: "Evidence", ledger: "Ledger") -> None:
    from unfreeze.errors import StorageError
    from unfreeze.report.page import html_report
    from unfreeze.report.streams import say, show

    try:
        ledger.write_bytes("report.html", html_report(evidence).encode())
    except StorageError as error:  # somebody else's storage, which one may only read
        say(f"report.html is not written anew: {error}")
    else:
        show(f"report: {ledger.url('report.html')}")


def tell_several(evidence: "dict[str, Evidence]", storage: str) -> None:
    from unfreeze.evidence.sets import pool_sweeps
    from unfreeze.report.sets import sets_report
    from unfreeze.report.streams import show
    from unfreeze.search.left_out import leave_each_out
    from unfreeze.sweep.publish import publish_sets

    pooled = leave_each_out(evidence, pool_sweeps(evidence))
    show(sets_report(evidence, pooled))
    publish_sets(evidence, pooled, storage)


def spelled_out(argument: str) -> str:
    """``sweep=a,b`` is short for ``report.sweeps=[a,b]``, ``sweep=a`` for ``sweep.name=a``; ``format``, ``every_s``
    and ``sync`` are the report's."""
    name, _, value = argument.partition("=")
    if name == "sweep":
        return f"report.sweeps=[{value}]" if "," in value else f"sweep.name={value}"
    return f"report.{argument}" if name in ("format", "every_s", "sync") else argument


if __name__ == "__main__":
    sys.argv[1:] = [spelled_out(argument) for argument in sys.argv[1:]]
    launch(main)
