"""The sections on seconds and memory."""

from cells import Records, duration, figures, number, prose, table, times


def whole(records: Records) -> str:
    rows = []
    for f in figures(records["demo"]).values():
        sides = [duration(v) if f["unit"] == "s" and v is not None else number(v) for v in (f["ours"], f["theirs"])]
        unit = "" if f["unit"] == "s" else f" {f['unit']}"
        detail = "; ".join([f"`{f['command']}`", f["date"], *([f["note"]] if "note" in f else [])])
        rows.append([f["name"], sides[0] + unit, sides[1], times(f["ratio"]), detail])
    tests = records["tests"]
    detail = f"`{tests['command']}`; {tests['date']}; {tests['tests']:,} tests, {tests['note']}"
    rows.append(["all tests", duration(tests["ours"]), duration(tests["theirs"]), times(tests["ratio"]), detail])
    return table(["what", "took", "aimed at", "ratio", "how"], rows)


def overhead(records: Records) -> str:
    trial = records["trial_overhead"]
    rows = [
        [
            f"an empty trial through a warm slot, {trial['workers_per_trial']} workers, "
            "against Tune → TorchTrainer per trial",
            f"{number(trial['ours'], 2)} s",
            f"{number(trial['theirs'], 1)} s",
            times(trial["ratio"]),
        ]
    ]
    for name in ("turnaround", "turnaround_deit"):
        if name in records:
            f = records[name]
            what = (
                f"a slot between two trials, last report to the next one's loop: {f['model']} (largest of {f['gaps']}: "
            )
            what += f"{number(f['largest'], 2)} s)"
            rows.append([what, f"{number(f['ours'], 2)} s", f"at most {f['theirs']} s", times(f["ratio"])])
    return table(["what", "ours", "theirs", "ratio"], rows)


def finetuning(records: Records) -> str:
    found = figures(records["finetune"])
    rows = []
    for name in ("all", "mha", "ln1+ln2", "mha@9-11", "mha@9-11_cached"):
        rate, memory = found.get(name), found.get(f"peak_memory_{name}")
        rows.append(
            [
                f"`{name.removesuffix('_cached')}`" + (", prefix cached" if name.endswith("_cached") else ""),
                *([number(rate["ours"], 1), f"{number(rate['ratio'], 2)} ×"] if rate else ["", ""]),
                *(
                    [f"{memory['ours']:.0f} MiB", f"{number(memory['of_all'], 2)} ×", f"{memory['predicted']:.0f} MiB"]
                    if memory
                    else ["", "", ""]
                ),
            ]
        )
    batch = records["finetune"]["batch_size"]
    text = f"""DeiT-Tiny, 224 px, batch {batch}, float32, flowers12, against a plain loop of the paper's shape that
    trains everything (images decoded and cropped one by one in the main process, attention unfused):
    {number(found["all"]["theirs"], 1)} images/s."""
    more = """From the same weights, 50 steps of the paper's loop, written out plainly, and of ours lose the same to
    1e-4 (`all`, `mha`, `ln1`; a test). At three times the rate, roundings alone part them for `all`."""
    heads = [
        "trained",
        "images/s",
        "against the plain loop",
        "peak memory beyond model and data",
        "of `all`",
        "predicted",
    ]
    return f"{prose(text)}\n\n{table(heads, rows)}\n\n{prose(more)}"


def pipeline(records: Records) -> str:
    rows = [
        [f"{f['source_side']} px", f"{f['ours']:,.0f}", f"{f['theirs']:,.0f}", f"{number(f['ratio'], 1)} ×"]
        for f in records.values()
    ]
    text = "Random resized crop, flip, normalise to 224 px against torchvision's per-image chain, images/s.\n\n"
    return text + table(["source images", "ours", "torchvision's", "ratio"], rows)


def prepass(records: Records) -> str:
    pair, memory, settled, cross = figures(records["prepass"]).values()
    runs = figures(records["prepass_log"]) if "prepass_log" in records else {}
    rows = [
        [
            "ViT-B/16, 224 px, float32, a pair (largest relative difference "
            f"{pair['largest_relative_difference']:.0e}; over 32 pairs, set-up of {number(pair['setup_s'], 2)} s "
            f"included: {number(pair['ratio_over_32_pairs_with_setup'], 1)} ×)",
            f"{number(pair['ours'], 3)} s",
            f"{number(pair['theirs'], 3)} s",
            f"{number(pair['ratio'], 1)} ×",
        ],
        [
            "peak memory of a batch of 8 pairs beyond the model, set-up included",
            f"{memory['ours']:.0f} MiB",
            f"{memory['theirs']:,.0f} MiB",
            f"{number(memory['ratio'], 1)} ×",
        ],
        [
            f"{settled['model']}, flowers12: a settled order ({settled['pairs']} pairs), against the paper's 100 "
            f"batches of 128 pairs ({settled['plain_seconds_are']}): {number(settled['fewer_pairs'])} × fewer pairs, "
            f"{number(settled['faster_per_pair'], 1)} × a pair",
            f"{number(settled['ours'], 2)} s",
            f"{number(settled['theirs'])} s",
            f"{settled['ratio']:,.0f} ×",
        ],
        [
            "the same: seconds × variance, cross pairs (the best of groups of 2 × 2, 4 × 4, 8 × 8) against plain pairs",
            f"{cross['ours']:.4g}",
            f"{cross['theirs']:.4g}",
            f"{number(cross['ratio'], 2)} ×",
        ],
    ]
    for f in runs.values():
        seconds = f["unit"] == "s"
        sides = [f"{number(f['ours'])} s" if seconds else "", ""]
        note = f" ({f['note']})" if "note" in f else ""
        rows.append([f["name"] + note, *sides, times(f["ratio"])])
    by_c = cross["by_c"]
    costs = [
        f"{c} × {c}: {100 * (1 - by_c[c]['relative_error'] / by_c['1']['relative_error']):.0f} % smaller standard "
        f"errors for {100 * (by_c[c]['seconds'] / by_c['1']['seconds'] - 1):.0f} % more time"
        for c in by_c
        if c != "1"
    ]
    text = """"Plain" is the paper's algorithm: every component of every block called on both images, all outputs
    kept."""
    more = f"""What a pair's rate varies with is its two images, hardly their combination. Groups in which every source
    meets every target, against plain pairs of the same images: {"; ".join(costs)}. So `plasticity.cross` is 1 by
    default."""
    return f"{prose(text)}\n\n{table(['what', 'ours', 'plain', 'ratio'], rows)}\n\n{prose(more)}"


def stopping(records: Records) -> str:
    record = records["stopping_rule"]
    parts = []
    for looks, told in (("every 32", "looking every 32 pairs"), ("every observation", "looking after every pair")):
        worst = max((f for f in record["results"] if f["looks"] == looks), key=lambda f: f["ours"])
        rate, low, high = (number(100 * worst[key], 1) for key in ("ours", "low", "high"))
        parts.append([told, f"{rate} % [{low}, {high}]", worst["scenario"]])
    scenarios = len({f["scenario"] for f in record["results"]})
    limit = f"{100 * (1 - record['confidence']):.0f} %"
    text = f"""How often the pre-pass settles a wrong order of two components, {record["runs"]:,} synthetic runs of each
    of {scenarios} scenarios; at most {limit} is promised."""
    return f"{prose(text)}\n\n{table(['', 'runs that err, in the worst scenario', 'which is'], parts)}"
