"""The sections of a run's page, each made of one or two parts of its JSON, empty without them."""

from collections.abc import Callable
from statistics import median

from bench.cases import Row
from bench.flops import PARTS
from bench.gpu.rows import GOALS
from bench.gpu.training import GOAL, SECONDS
from bench.tables import MIB, table

CHECKED = ("passes", "kernels", "tune", "gradients")  # parts with errors
SHARE = 0.005  # of an iteration: kernels that take less are shown as one


def machine(run: dict) -> str:
    """Where it was measured, and what that machine does at best."""
    found = found_of(run, "environment")
    about = found.get("machine", {})
    calls = run["calls"]
    commits = dict.fromkeys(
        call["commit"][:8] + " with uncommitted changes" * call["changed"] for call in calls
    )
    where = about.get("gpu") or about.get("processor", "an unknown machine")
    versions = [f"{name} {about[name]}" for name in ("torch", "triton", "cuda") if about.get(name)]
    smi = about.get("nvidia-smi", {})
    if "driver_version" in smi:
        versions.append(f"driver {smi['driver_version']}")
    if smi.get("clocks.max.sm"):
        versions.append(f"at most {smi['clocks.max.sm']}")
    best = [
        f"{name} product {found[name]['per_second'] / 1e12:,.1f} TFLOP/s"
        for name in ("fp32", "tf32", "bf16")
        if name in found
    ]
    if "copy" in found:
        best.append(f"copy of memory {found['copy']['per_second'] / 1e12:,.2f} TB/s")
    kind = ", a quick run" * run["quick"] + ", a dry run" * (run["device"] != "cuda")
    head = ", ".join([where, *versions, f"commit {', '.join(commits)}", calls[-1]["date"][:10]])
    return f"{head}{kind}: `python -m bench.gpu`\n" + (f"{', '.join(best)}.\n" if best else "")


def found_of(run: dict, part: str) -> dict[str, dict]:
    """Items of a part, without those that were left out or failed."""
    items = run["parts"].get(part, {}).items()
    return {name: item for name, item in items if not item.keys() & {"left_out", "failed"}}


def checks(*parts: str) -> Callable[[dict], str]:
    """Errors of the items of some parts."""

    def section(run: dict) -> str:
        found = {n: i for p in parts for n, i in found_of(run, p).items() if "parts" in i}
        names = list(dict.fromkeys(p for item in found.values() for p in item["parts"]))
        body = [
            [
                name,
                *(_error(item["parts"].get(p), item["replayed"]) for p in names),
                "yes" if item["repeats"] else "NO",
                "yes" if item["replayed"] else "no",
                "{rounded} ({apart})".format(**item["bends"]) if "bends" in item else "–",
                f"{item['free']:.0e}" if "free" in item else "–",
            ]
            for name, item in found.items()
        ]
        head = ["relative error (of what is allowed)", *names, "same bits twice", "replayed"]
        head += ["bends on a rounding (taken otherwise)", "with free winners"]
        return table(head, body) if body else ""

    return section


def _error(part: dict | None, judged: bool) -> str:
    if part is None:
        return "–"
    verdict = " TOO MUCH" if judged and not part["within"] else ""
    return f"{part['error']:.0e} ({part['budget']:.0e}){verdict}"


def verdict(run: dict) -> str:
    """One line: how many results are within their budgets, and the same bits twice."""
    found = [
        item for part in CHECKED for item in found_of(run, part).values() if item.get("replayed")
    ]
    if not found:
        return ""
    right = [i for i in found if _right(i)]
    bits = [i for i in found_of(run, "bits").values() if "same" in i]
    same = f"; {sum(i['same'] for i in bits)} of {len(bits)} captured iterations are the eager ones"
    return (
        f"{len(right)} of {len(found)} ops, passes and meta-gradients are within twice the error "
        f"that their precision explains, and the same bits twice{same if bits else ''}.\n"
    )


def _right(item: dict) -> bool:
    otherwise = item.get("bends", {}).get("apart", 0)
    return item["repeats"] and not otherwise and all(p["within"] for p in item["parts"].values())


def graph(run: dict) -> str:
    lines = [f"- {name}: {item['said']}\n" for name, item in found_of(run, "bits").items()]
    rows = [
        [f"{name}, {how}", *_launches(item[how])]
        for name, item in found_of(run, "profile").items()
        for how in ("graph", "eager")
    ]
    head = ["one iteration", "kernels", "copies", "µs", "of them idle", "longest gap, µs"]
    return "\n".join(filter(None, ["".join(lines), table(head, rows) if rows else ""]))


def _launches(n: dict) -> list[str]:
    idle = 100 * (1 - n["busy"] / n["span"]) if n["span"] else 0
    return [
        f"{n['kernels']:,}",
        f"{n['copies']:,}",
        f"{n['span']:,.0f}",
        f"{idle:.0f} %",
        f"{n['longest_gap']:,.1f}",
    ]


def profile(run: dict) -> str:
    """Of each captured iteration, kernel by kernel."""
    return "\n".join(_profile(name, item) for name, item in found_of(run, "profile").items())


def _profile(name: str, item: dict) -> str:
    kernels = item["graph"]["by_name"]
    whole = sum(us for _, us in kernels.values())
    long = {n: each for n, each in kernels.items() if each[1] >= SHARE * whole}
    rest = [each for n, each in kernels.items() if n not in long]
    if rest:
        long[f"{len(rest)} others"] = (sum(n for n, _ in rest), sum(us for _, us in rest))
    body = [[n, f"{c:,}", f"{us:,.1f}", f"{100 * us / whole:.1f} %"] for n, (c, us) in long.items()]
    load = ", ".join(f"{what} {value}" for what, value in item["load"].items())
    return f"{name}: {load or 'no nvidia-smi'}\n\n" + table(
        ["kernel", "launches", "µs of all", "of the sum"], body
    )


def tuned(run: dict) -> str:
    found = {n: i for n, i in found_of(run, "tune").items() if "default" in i}
    rows = [
        [
            key,
            f"{1e6 * item['default']:.1f}",
            f"{1e6 * item['best']:.1f}",
            " ".join(f"{k}={v}" for k, v in item["config"].items()) if item["config"] else "–",
        ]
        for key, item in found.items()
    ]
    return table(["launch", "µs, default", "µs, best", "kept"], rows) if rows else ""


def rates(run: dict) -> str:
    """Microseconds, with the shares of the matrix product's and of the copy's rate."""
    best = {
        n: i["per_second"] for n, i in found_of(run, "environment").items() if "per_second" in i
    }
    rows = []
    for item in found_of(run, "ops").values():
        cells = [_rate(item["times"][part], best, item["precision"]) for part in PARTS]
        name = f"{item['op']} {item['case']}, {item['backend']} {item['precision']}"
        rows.append([name, item["shape"], *cells])
    head = ["µs (% of products, % of copy)", "shape", *PARTS]
    return table(head, rows) if rows else ""


def _rate(time: dict, best: dict[str, float], precision: str) -> str:
    shares = [
        f"{100 * time[amount] / time['seconds'] / best[peak]:.0f}" if best.get(peak) else "–"
        for amount, peak in (("flops", precision), ("bytes", "copy"))
    ]
    return f"{1e6 * time['seconds']:,.1f} ({', '.join(shares)})"


def iterations(run: dict) -> str:
    """Milliseconds an iteration, and the speed-ups of ours by turns with each of the others."""
    rows: dict[Row, list[dict]] = {}
    for item in _played(run):
        rows.setdefault(Row(**item["row"]), []).append(item)
    names = list(dict.fromkeys(n for items in rows.values() for i in items for n in i["rounds"]))
    body = [[_name(row), *(_milliseconds(items, n) for n in names)] for row, items in rows.items()]
    parts = [table(["ms an iteration", *names], body)] if body else []
    if run["device"] == "cuda" and not run["quick"]:
        goals = [line for row, items in rows.items() for line in _goals(row, items)]
        head = ["goal of an H200", "measured", "to be", "reached"]
        parts += [table(head, goals)] if goals else []
    return "\n".join(parts)


def _played(run: dict) -> list[dict]:
    return [item for p in ("alone", "iterations", "peers") for item in found_of(run, p).values()]


def networks(run: dict) -> str:
    """Milliseconds an iteration of networks of one's own, and ours replayed against the others."""
    found = found_of(run, "networks").values()
    names = list(dict.fromkeys(name for item in found for name in item["rounds"]))
    body = [
        [item["case"], *(_milliseconds([item], n, "ours") for n in names), str(item["graphs"])]
        for item in found
    ]
    return table(["ms an iteration", *names, "graphs"], body) if body else ""


def _name(row: Row) -> str:
    return f"{row.case}, {row.tasks} tasks, {row.loss}, {row.order} order"


def seconds_of(items: list[dict], name: str) -> float | None:
    """Median over all rounds that a player played."""
    rounds = [s for item in items for s in item["rounds"].get(name, [])]
    return median(rounds) if rounds else None


def speed_up(items: list[dict], other: str, ours: str = "ours, tf32") -> float | None:
    """In the rounds that both played by turns."""
    both = [i["rounds"] for i in items if {ours, other} <= i["rounds"].keys()]
    return median(both[0][other]) / median(both[0][ours]) if both else None


def _milliseconds(items: list[dict], name: str, ours: str = "ours, tf32") -> str:
    seconds = seconds_of(items, name)
    if seconds is None:
        return "–"
    ratio = None if name.startswith("ours") else speed_up(items, name, ours)
    return f"{1e3 * seconds:,.2f}" + (f" ({ratio:.1f}×)" if ratio else "")


def _goals(row: Row, items: list[dict]) -> list[list[str]]:
    goal, lines = GOALS.get(row), []
    if goal is None:
        return []
    for precision in ("tf32", "bf16"):
        seconds, most = seconds_of(items, f"ours, {precision}"), getattr(goal, precision)
        if seconds is not None:
            cells = f"{1e3 * seconds:.2f} ms", f"≤ {most} ms", _yes(1e3 * seconds <= most)
            lines.append([f"{_name(row)}, {precision}", *cells])
    for other, least in (("loop", goal.loop), ("JAX", goal.jax)):
        ratio = speed_up(items, other)
        if ratio is not None:
            cells = f"{ratio:.1f}×", f"≥ {least:g}×", _yes(ratio >= least)
            lines.append([f"{_name(row)}, against {other}", *cells])
    return lines


def _yes(reached: bool) -> str:
    return "yes" if reached else "no"


def memory(run: dict) -> str:
    rows: dict[Row, dict[str, dict]] = {}
    for item in found_of(run, "memory").values():
        rows.setdefault(Row(**item["row"]), {})[item["implementation"]] = item
    names = list(dict.fromkeys(name for each in rows.values() for name in each))

    def cell(item: dict | None) -> str:
        return f"{item['allocated'] / MIB:,.0f} ({item['reserved'] / MIB:,.0f})" if item else "–"

    body = [[_name(row), *(cell(each.get(n)) for n in names)] for row, each in rows.items()]
    return table(["peak, MiB (reserved)", *names], body) if body else ""


def training(run: dict) -> str:
    found = found_of(run, "training")
    body = []
    for name, item in found.items():
        if item.get("unfinished"):
            body.append([name, "–", "–", f"{item['seconds']:,.0f}", "unfinished"])
            continue
        best, ensemble = (item[which] for which in ("best", "ensemble"))
        reached = 100 * ensemble["accuracy"] >= GOAL - 0.3 and item["seconds"] <= SECONDS
        verdict = "shortened" if run["quick"] else _yes(reached)
        tests = [
            f"{100 * t['accuracy']:.2f} ± {100 * t['interval']:.2f} %" for t in (best, ensemble)
        ]
        body.append([name, *tests, f"{item['seconds']:,.0f}", verdict])
    goal = f"≥ {GOAL} % ± 0.3 in ≤ {SECONDS} s"
    head = ["Omniglot 20-way 1-shot", "best model", "ensemble", "s, all of it", goal]
    return table(head, body) if body else ""


def not_done(run: dict) -> str:
    """What was left out or failed, and why."""
    lines = [
        f"- {part}, {name}: {words}{item[what]}\n"
        for part, items in run["parts"].items()
        for name, item in items.items()
        for what, words in (("left_out", ""), ("failed", "FAILED, "))
        if what in item
    ]
    lines += dict.fromkeys(
        f"- iterations: {player}, {why}\n"
        for item in _played(run)
        for player, why in item["absent"].items()
    )
    return "".join(lines)


ALL: dict[str, Callable[[dict], str]] = {
    "Verdict": verdict,
    "Outer iterations": iterations,
    "Networks of one's own": networks,
    "Training": training,
    "Memory": memory,
    "Ops and passes": rates,
    "The captured iteration": graph,
    "Its kernels": profile,
    "Launch table": tuned,
    "Errors of ops and passes": checks("passes", "kernels", "tune"),
    "Errors of meta-gradients": checks("gradients"),
    "Left out": not_done,
}
