"""The sections on plasticity and accuracy."""

from collections.abc import Iterable, Sequence

from cells import Record, Records, figures, first, interval, number, prose, table, with_sd

COMPONENTS = ("fc1", "ln2", "ln1", "fc2", "mha")
ACCURACY_HEADS = ["selection", "validation accuracy, %", "learning rate", "plasticity, reference", "in situ"]


def plasticity(records: Records) -> str:
    found = figures(records["plasticity_tables"])
    modes = ("reference", "in_situ", "local")
    rows = [
        [
            f"`{c}`",
            *(interval(f["all_pairs"]["mean_low_high"][m][c], 3) for f in found.values() for m in modes),
        ]
        for c in COMPONENTS
    ]
    heads = ["component", *(f"{name}: {m}" for name in found for m in modes)]
    lines = []
    for name, f in found.items():
        orders = "; ".join(f"{m}: `{f['settled']['ranking'][m]}`" for m in modes)
        lines.append(
            f"- {name}: settled after {f['settled']['pairs']} pairs, in {number(f['ours'], 1)} s for the three modes "
            f"together (all {f['all_pairs']['pairs']} pairs: {number(f['theirs'], 1)} s). {orders}."
        )
        lines += [f"  - {line}" for line in f["all_pairs"]["bounds"]]
    pictures = "\n\n".join(
        f"![Plasticity by block in three modes, {name}](results/plasticity_{name}.png)" for name in found
    )
    text = """ImageNet weights whose LayerNorms are rounded to an 8-bit grid, 224 px; source domain 1,000 ImageNet
    photographs; mean over blocks [95 % interval, valid whenever the measurement stops]."""
    return "\n\n".join([prose(text), table(heads, rows), "\n".join(lines), pictures])


def _spearman(found: dict[str, Sequence[float]]) -> str:
    return ", ".join(f"{interval(values)} ({mode})" for mode, values in found.items())


def accuracy_rows(found: Iterable[Record]) -> list[list[str]]:
    return [
        [
            f"`{f.get('selection', f['name'])}`",
            with_sd(f["ours"], f["sd"]) + (f" ({f['seeds']} seeds)" if f["seeds"] > 1 else ""),
            f"{f['learning_rate']}",
            *(number(first(f.get(f"plasticity_{mode}")), 3) for mode in ("reference", "in_situ")),
        ]
        for f in found
    ]


def digits(records: Records) -> str:
    record = records["digits_table"]
    rows = [
        [*row, f"{f['trainable_parameters']:,}"]
        for row, f in zip(accuracy_rows(record["results"]), record["results"], strict=True)
    ]
    text = f"""{record["train_images"]} training images, tiny ViT pretrained on rendered letters: mean ± sd of
    validation accuracy ({record["val_images"]} images), each selection at the best of four learning rates *chosen on
    one seed of the same images*, so slightly optimistic; plasticity over {record["pairs"]} pairs."""
    more = f"""The reference order is the accuracy's: Spearman {_spearman(record["spearman"])} over n = 5; the interval
    still cannot exclude no relation."""
    return "\n\n".join([prose(text), table([*ACCURACY_HEADS, "trainable parameters"], rows), prose(more)])


def flowers(records: Records) -> str:
    record, test = records["flowers12_table"], records["flowers12_table"]["test"]
    text = f"""{record["train_images"]} training, {record["val_images"]} validation images, 112 px, 2 epochs, batch
    32, SGD at 0.01 and 0.03; plasticity at 112 px over {record["pairs"]} pairs."""
    more = f"""Here plasticity does not order the components by accuracy: Spearman {_spearman(record["spearman"])} over
    n = 5; with {record["val_images"]} validation images one standard error is 2.5 points, so most of the accuracies are
    not told apart. Test accuracy of the recommended `{test["selection"]}`:
    {interval([test["accuracy"], *test["interval"]], 1)} %, n = {test["of"]}."""
    return "\n\n".join([prose(text), table(ACCURACY_HEADS, accuracy_rows(record["results"])), prose(more)])


def three_rates(records: Records) -> str:
    record = records["finetune_table"]
    trials = sum(len(found["trials"]) for found in record["sets"].values())
    text = f"""{record["model"]}, 256 training images a run (32 steps of 8, random crops), SGD at 0.003, 0.01 and 0.03,
    mean ± sd over the seeds at the rate that validation chose; {trials} trials. So short a training tells the sets
    apart and hardly the components; most of a sd is 2 to 6 points, as is a standard error of one accuracy."""
    parts = [prose(text)]
    for name, found in record["sets"].items():
        test = found["test"]
        interval_95 = interval([100 * test["correct"] / test["of"], *test["interval"]], 1)
        rows = accuracy_rows(f for f in record["results"] if f["set"] == name)
        parts.append(f"**{name}**, {found['num_train']:,} training, {found['num_val']} validation images:")
        parts.append(table(ACCURACY_HEADS, rows))
        more = f"""Spearman of plasticity with accuracy over the five components: {_spearman(found["spearman"])}. Test,
        opened once: `{test["selection"]}` {interval_95} % of {test["of"]:,}."""
        parts.append(prose(more))
    end = """The signs differ between the sets and every interval holds 0: plasticity is not shown to predict accuracy
    here."""
    return "\n\n".join([*parts, prose(end)])


def paper(records: Records) -> str:
    record = records["paper_dry_run"]
    found = ", ".join(f"{number(f['ours'])} {f['unit']}" for f in record["results"])
    text = f"""The paper's {record["runs"]} runs on eleven sets are counted, not run: {found}, *assuming*
    {record["assumed"]}."""
    return prose(text)


def probe(records: Records) -> str:
    f = records["probe"]
    head, low, high = f["head_accuracy"]
    text = f"""A ridge probe of all {f["outputs"]} outputs of DeiT-Tiny (flowers12, 112 px): {number(f["ours"])} s.
    {head} % [{low}, {high}] of {f["val_images"]} validation images at the head, {f["best_accuracy"]} % at
    {f["best_at"]}, the best of {f["outputs"]} chosen on those images."""
    return prose(text)
