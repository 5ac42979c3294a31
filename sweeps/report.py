"""The report of a sweep, finished or still running, from its ledger.

python sweeps/report.py sweep.name=demo
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent))  # neither `python -m sweeps.…` nor PYTHONSAFEPATH=1 does

from entry import launch

if TYPE_CHECKING:
    from unfreeze.config import Config


def main(config: "Config") -> None:
    from unfreeze.errors import StorageError
    from unfreeze.report.page import html_report, terminal_report
    from unfreeze.report.streams import say, show
    from unfreeze.storage.ledger import Ledger
    from unfreeze.sweep.gather import read_evidence

    ledger = Ledger(config.storage, config.sweep.name)
    evidence = read_evidence(ledger)
    show(terminal_report(evidence))
    try:
        ledger.write_bytes("report.html", html_report(evidence).encode())
    except StorageError as error:  # somebody else's storage, which one may only read
        say(f"report.html is not written anew: {error}")
    else:
        show(f"report: {ledger.url('report.html')}")


if __name__ == "__main__":
    launch(main)
