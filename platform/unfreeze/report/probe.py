"""Linear probes as plain text: blocks × components, then the best in detail."""

from unfreeze.probe.linear import ProbeResult, ProbeTable
from unfreeze.records import COMPONENTS
from unfreeze.report.terminal import NOTHING, make_console, make_table, print_lines, text_of

_NUM_DETAILED = 8  # most sites shown with all their numbers


def terminal_probe(table: ProbeTable) -> str:
    """Validation accuracy at every site that was probed, with its 95 % interval."""
    console = make_console()
    num_val = table.results[0].num_val
    in_blocks = [result for result in table.results if "." in result.site]
    if in_blocks:
        title = f"Linear probe: validation accuracy, % [95 % Wilson, n = {num_val:,}]"
        console.print(make_table(title, ("block", *COMPONENTS), block_rows(in_blocks)))
    outside = [result for result in table.results if "." not in result.site]
    best = sorted(table.results, key=lambda result: -result.val_accuracy)[: _NUM_DETAILED - len(outside)]
    shown = [*outside, *(result for result in best if result not in outside)]
    title = "Linear probe in detail" + ("" if len(shown) == len(table.results) else ", the best sites")
    strength = "penalty" if table.method == "ridge" else "C"
    headings = ("output of", "width", "train, %", "validation, %", strength, "seconds")
    console.print(make_table(title, headings, [detail_row(result) for result in shown]))
    print_lines(console, _notes(table))
    return text_of(console)


def block_rows(results: list[ProbeResult]) -> list[tuple[str, ...]]:
    """Block, then its components' accuracies."""
    cells = {result.site: _accuracy(result) for result in results}
    blocks = sorted({int(result.site.partition(".")[0]) for result in results})
    return [(str(b), *(cells.get(f"{b}.{name}", NOTHING) for name in COMPONENTS)) for b in blocks]


def detail_row(result: ProbeResult) -> tuple[str, ...]:
    return (
        result.site,
        f"{result.width:,}",
        f"{100 * result.train_accuracy:.1f}",
        _accuracy(result),
        f"{result.regularization:.3g}",
        f"{result.seconds:.2f}",
    )


def _accuracy(result: ProbeResult) -> str:
    return f"{100 * result.val_accuracy:.1f} [{100 * result.val_low:.0f}, {100 * result.val_high:.0f}]"


def _notes(table: ProbeTable) -> list[str]:
    num_val = table.results[0].num_val
    chosen = (
        "each penalty by leaving out one training image after another"
        if table.method == "ridge"
        else f"the {num_val:,} validation images chose C too, so each accuracy is a little too good"
    )
    lines = [
        f"{table.method}, {'class token' if table.pool == 'token' else 'mean over tokens'}, {table.num_train:,} "
        f"training images of {table.num_classes} classes; {chosen}. The best of many sites is a little too good; test "
        f"images stayed sealed.",
        f"features {table.feature_seconds:.1f} s and {table.feature_bytes / 2**20:,.0f} MiB, fits "
        f"{sum(result.seconds for result in table.results):.1f} s",
    ]
    same = [result.site for result in table.results if not result.num_varying]
    if same:
        lines.append(
            f"The features are the same in every image at {', '.join(same)}: before the first attention the class "
            f"token has seen nothing; probe.pool=mean has."
        )
    return lines
