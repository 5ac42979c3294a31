"""What a person ends with, and whether what is said of the choice holds: tables with what they mean."""

from cells import NOTHING, Record, Records, figures, number, prose, table


def outcome(records: Records) -> str:
    found = figures(records["outcome"])
    splits = [f for name, f in found.items() if "/" in name]
    rows = []
    for f in splits:
        rows.append([f"`{f['name']}`", "the sweep", *_got(f["sweep"])])
        rows += [[NOTHING, f"`{name}`, tuned", *_got(got)] for name, got in f["alternatives"].items()]
    headings = ["set/split", "how", "chosen", "sealed test, % [95 %]", "stated, %", "training images"]
    sums = [_sum(f, records["outcome"]["splits"]) for name, f in found.items() if "/" not in name]
    text = f"""A sweep with the search's default options (32 trials and 6 confirmations) against full finetuning and a
        linear probe, each with its learning rate tuned: six rates, three seeds, from one end of the range to the other,
        which the sweep alone may leave. Chosen by validation alone; the test was opened for what was chosen. "Stated"
        is the accuracy that was expected from validation.
        {" ".join(sums)}"""
    return "\n\n".join([prose(text), table(headings, rows)])


def _got(got: Record) -> list[str]:
    low, high = got["interval"]
    chosen = f"`{got['selection']}` at {number(got['learning_rate'])}"
    return [
        chosen,
        f"{number(got['test'], 1)} [{number(low, 1)}, {number(high, 1)}]",
        number(got["stated"], 1),
        f"{got['images']:,}",
    ]


def _sum(f: Record, splits: int) -> str:
    interval = f["gain_interval"]
    sure = "" if interval is None else f" [{number(interval[0], 1)}, {number(interval[1], 1)}] (Student's)"
    below = "never" if f["never_below"] else "at least once"
    return f"""On {f["name"]} the sweep gains {number(f["gain"], 1)} points{sure} over the better alternative by
        validation, mean over {splits} splits, and is {below} below an alternative's interval; what it stated lay in its
        test's interval in {f["stated_lies_in_interval"]} of {splits}."""


def calibration(records: Records) -> str:
    record = records["calibration"]
    found = figures(record)
    rows = []
    for name, f in found.items():
        low, high = f["chosen_near_interval"]
        within = f"{100 * f['chosen_near']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
        gap, covered = number(f["ours"], 1), f"{100 * f['coverage_95']:.0f} %"
        rows.append([f"`{name}`", gap, f"{100 * f['chosen_said']:.0f} %", within, covered])
    headings = ["prior/after trials", "largest gap, points", "choice: said", "choice: was", "95 % intervals cover"]
    text = f"""{record["tables"]} planted tables on which nothing was chosen, each searched once. Of every configuration
        the model says how likely it is to be within half a point of the best: "largest gap" is between what was said
        and what was, over bins of 100 configurations or more (5 points are asked); "choice" is the same of what would
        be recommended. After 8 trials without a good score it is too sure of its choice, after 16 and 32 it is as sure
        as it should be; the intervals of accuracy are too narrow, most of all after 8 trials."""
    return "\n\n".join([prose(text), table(headings, rows)])
