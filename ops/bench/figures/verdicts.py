"""How often the verdict claims without a cause and with one: a table with what it means."""

from cells import Record, Records, figures, prose, table

from unfreeze.evidence import verdict as rule


def verdict(records: Records) -> str:
    found = figures(records["verdict"])
    nulls = {name: f for name, f in found.items() if name.startswith("null/")}
    powers = {name: f for name, f in found.items() if name.startswith("power/")}
    worst = max(nulls.values(), key=lambda f: f["claim_rate"])
    coverages = [f["coverage"] for f in nulls.values()]
    mean = sum(coverages) / len(coverages)
    pooled = {name: f for name, f in found.items() if "pooled_coverage" in f}
    text = f"""Simulated sweeps whose plasticity has nothing to do with accuracy: the verdict claims something in
        {100 * min(f["claim_rate"] for f in nulls.values()):.1f} to {100 * worst["claim_rate"]:.1f} % of them, most in
        `{worst["name"]}` [{_interval(worst)}]; 5 % is the bar, and 34 to 52 % was the rate before labels were
        exchanged. The 95 % interval of β holds the truth in {100 * mean:.1f} % of all of them, by row in
        {100 * min(coverages):.1f} to {100 * max(coverages):.1f} %. A name is null / what makes accuracy / space /
        trials, and how many data sets where they are pooled; trials are drawn at random, in `proposed-…` the planner
        proposes them as in a real sweep."""
    pooled_text = ""
    if pooled:
        average, following = (
            sum(f[key] * f["repetitions"] for f in pooled.values()) / sum(f["repetitions"] for f in pooled.values())
            for key in ("pooled_coverage", "next_coverage")
        )
        pooled_text = f"""The average set's interval holds the truth in {100 * average:.1f} % of all simulated studies
            of several sets, the next set's in {100 * following:.1f} %."""
    more = f"""Power: the share called supported where one standard deviation of plasticity is worth what the published
        table implies (1x), or four times as much. Sets share the components, and so eleven are no eleven draws of
        them. {pooled_text}"""
    null_rows = [
        [
            f"`{name}`",
            f"{100 * f['claim_rate']:.1f} % [{_interval(f)}]",
            f"{100 * f['coverage']:.1f} %",
            str(f["repetitions"]),
        ]
        for name, f in nulls.items()
    ]
    return "\n\n".join(
        [
            prose("What the words mean, fixed beforehand:"),
            _words(),
            prose("""Over several data sets the same labels are exchanged in all of them at once, and the interval is of
                the average set's β; P(β > 0) is no part of it."""),
            prose(text),
            "![Error rates and power of the verdict](results/verdict.png)",
            table(["null", "claims [95 %]", "β's interval covers", "sweeps"], null_rows),
            prose(more),
            _power_table(powers),
            _runs(found),
        ]
    )


def _words() -> str:
    """The table at the head of the module that says them."""
    rows: list[list[str]] = []
    for line in (rule.__doc__ or "").splitlines():
        if line.startswith("|") and "---" not in line:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if cells[0]:
                rows.append(cells)
            else:  # goes on
                rows[-1] = [f"{before} {more}".strip() for before, more in zip(rows[-1], cells, strict=True)]
    return table(rows[0], rows[1:])


def _interval(figure: Record) -> str:
    low, high = figure["interval"]
    return f"{100 * low:.1f}, {100 * high:.1f}"


def _power_table(powers: Record) -> str:
    """A row for effect, space and trials, a column for the number of sets."""
    places = [name.split("/")[1:] for name in powers]
    sets = list(dict.fromkeys(place[3] for place in places))
    rows = []
    for times, space, trials in dict.fromkeys(tuple(place[:3]) for place in places):
        own = [powers.get(f"power/{times}/{space}/{trials}/{count}") for count in sets]
        cells = [f"{100 * f['power']:.0f} % [{_interval(f)}]" if f else "–" for f in own]
        rows.append([times, space, trials, *cells])
    return table(["effect", "space", "trials", *(f"{count} set{'s' * (count != '1')}" for count in sets)], rows)


def _runs(found: Record) -> str:
    """Which rows were measured by which command: the record keeps those of several runs."""
    rows: dict[tuple[str, str, str], dict[str, None]] = {}
    for name, f in found.items():
        kind, what, *place = name.split("/")
        sets = place[2] if len(place) > 2 else "1"
        told = f"{'proposed ' * what.startswith('proposed')}{kind}, {sets} set{'s' * (sets != '1')}"
        rows.setdefault((f["command"], f["machine"], f["date"]), {})[told] = None
    lines = [["; ".join(told), f"`{command}`", f"{machine}; {date}"] for (command, machine, date), told in rows.items()]
    return table(["rows", "command", "where and when"], lines)
