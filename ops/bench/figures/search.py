"""What the replayed searches came to, as a table with what it means."""

from cells import Record, Records, figures, number, prose, table, times


def replay(records: Records) -> str:
    record = records["search_replay"]
    rows = []
    for f in figures(record).values():
        regrets = [f"{100 * f[key]:.2f}" for key in ("mean_regret_32", "regret_8", "regret_16", "regret_32")]
        rows.append([f"`{f['name']}`", number(f["ours"]), times(f["ratio"]), *regrets])
    headings = ["table/sampler:prior", "trials", "better than TPE", "mean regret", "after 8", "16", "32"]
    picture = "![Regret of the recommendation after each trial](results/search_replay.png)"
    return f"{prose(_meaning(record))}\n\n{picture}\n\n{table(headings, rows)}{_order(record)}{_stopping(record)}"


def _meaning(record: Record) -> str:
    return f"""Searches replayed {record["repetitions"]} times on tables where every configuration was run:
        trials (median) until the recommendation's true mean is within half a point of the best, and regret of
        the recommendation in points. `random`, `tpe` and `today` (components alone in the score's order, then
        TPE: what this project did before its model) recommend their best run, `model` what its posterior
        expects most of, run or not; each component alone is tried from trial 17 on, as a sweep does, `alone first`
        from the first on, `none alone` never. `reversed` is the score with its sign turned, which to a model
        whose effect is centred on 0 is the same model; `misleading` is an informative score shuffled, `oracle`
        the true effects. `@4`: four trials in flight. `synthetic` pools {record["planted"]} planted tables, each
        replayed once. The best of the digits' cells differ by less than the noise of a run, so when half a point
        is hit there is chance as much as search; in `digits-smooth` each cell is the mean of its neighbours. Of
        `flowers12` and `cifar10-jpeg` (DeiT-Tiny at 64 px) a cell is one run, its noise taken for truth."""


def _order(record: Record) -> str:
    """What the place of the components alone costs, and what a misleading score does."""
    found = figures(record)
    if "synthetic/model:uniform" not in found:
        return ""
    mean = {name: f["mean_regret_32"] for name, f in found.items()}

    def against(name: str, other: str) -> str:
        return number(mean[f"synthetic/model:{name}"] / mean[f"synthetic/model:{other}"], 2)

    said = f"""Mean regret over 32 trials on the planted tables, against the model without a score:
        {against("informative", "uniform")} × with an informative one, {against("misleading", "uniform")} × with a
        misleading one. With the components alone before all else the informative one came to
        {against("informative, alone first", "uniform, alone first")} ×: by the time that it is asked, trials have
        told. Where none is tried alone: {against("uniform, none alone", "uniform")} × without a score,
        {against("informative, none alone", "informative")} × with the informative one."""
    return f"\n\n{prose(said)}"


def _stopping(record: Record) -> str:
    by_name = figures(record)
    plain, stopped = (by_name.get(f"digits/model:uniform{suffix}") for suffix in ("", ", stopping"))
    if plain is None or stopped is None:
        return ""
    sides = [" / ".join(f"{100 * f[f'regret_images_{count}']:.2f}" for count in (8, 16, 24)) for f in (plain, stopped)]
    said = f"""Regret on the digits after the images of 8 / 16 / 24 full trials: {sides[0]} points without early
        stopping, {sides[1]} with it (`search.early_stopping`, off unless asked for)."""
    return f"\n\n{prose(said)}\n"
