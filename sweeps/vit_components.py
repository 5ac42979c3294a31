"""The sweep: which components of this model should be unfrozen for this data, at which learning rate?

python sweeps/vit_components.py experiment=demo
ray job submit --working-dir . -- python sweeps/vit_components.py experiment=demo
"""

from entry import launch


def main(config) -> None:  # type: ignore[no-untyped-def]
    from unfreeze.sweep.run import run_sweep
    from unfreeze.tracking.report import terminal_report

    evidence = run_sweep(config)
    print(terminal_report(evidence))


if __name__ == "__main__":
    launch(main)
