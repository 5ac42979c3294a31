"""The report of a sweep, finished or still running, from its ledger.

python sweeps/report.py sweep.name=demo
"""

from typing import TYPE_CHECKING

from entry import launch

if TYPE_CHECKING:
    from unfreeze.config import Config


def main(config: "Config") -> None:
    from unfreeze.report.page import html_report, terminal_report
    from unfreeze.storage.ledger import Ledger
    from unfreeze.sweep.gather import read_evidence

    ledger = Ledger(config.storage, config.sweep.name)
    evidence = read_evidence(ledger)
    ledger.write_bytes("report.html", html_report(evidence).encode())
    print(terminal_report(evidence))
    print(f"report: {ledger.url('report.html')}")


if __name__ == "__main__":
    launch(main)
