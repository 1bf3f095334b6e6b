"""Made-up frames for every figure function, one figure of each function, and where things lie in one."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from benchmarks import pictures
from layer_redundancy.figures import (
    across_models,
    benchmarks,
    block_pruning,
    generation,
    healing,
    layer_importance,
    metric_comparison,
    prompt_tuning,
    prune_ratio,
    published,
    quantization,
    rivals,
    rwkv_redundancy,
    single_layer_removal,
    style,
    width_vs_depth,
)
from tools.small_models import training_curve

CAPTION = "a model at revision 12e5678, bfloat16, 32 x 512 tokens of text $x_1$; " * 8


def score_frame(n: int) -> pd.DataFrame:
    """Scores shaped like a real model's: the ends influential, the middle not, no two equal."""
    block = np.arange(n)
    score = 0.02 + 0.6 * ((block - 0.6 * n) / n) ** 2 + 1e-4 * block
    return pd.DataFrame({"block": block, "score": score, "low": 0.9 * score, "high": 1.1 * score})


def order_of(scores: pd.DataFrame) -> list[int]:
    return scores.sort_values("score")["block"].tolist()


def metric_frame(n: int) -> pd.DataFrame:
    parts = []
    for metric in style.MEASURES:
        for token, factor in (("included", 1.0), ("excluded", 1.2)):
            part = score_frame(n).assign(metric=metric, first_token=token)
            if metric in ("sequential", "reverse_order"):
                part = part.assign(score=-part["block"], low=np.nan, high=np.nan)
            else:
                part[["score", "low", "high"]] *= factor
            largest_first = metric in ("hidden_norm", "sequential")
            parts.append(part.assign(rank=part["score"].rank(method="first", ascending=not largest_first)))
    return pd.concat(parts, ignore_index=True)


def grid_frame(n: int) -> pd.DataFrame:
    rows = [(k, start, 0.01 * k + 0.001 * abs(start - 1)) for k in range(1, n + 1) for start in range(n - k + 1)]
    return pd.DataFrame(rows, columns=["n", "start", "distance"])


def inclusion_frame(n: int) -> pd.DataFrame:
    """Block n - 1 is removed first, block 0 last."""
    rows = [(block, k, float(n - block <= k)) for block in range(n) for k in range(1, n + 1)]
    return pd.DataFrame(rows, columns=["block", "k", "probability"])


def rank_frame(n: int) -> pd.DataFrame:
    rank = n - np.arange(n)
    return pd.DataFrame({"block": np.arange(n), "rank": rank, "low": rank - 0.5, "high": rank + 0.5})


def removal_frames(n: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    block = np.arange(n)
    perplexity = pd.DataFrame({"block": block, "perplexity": 25.0 + 1000.0 * (block == 0)})
    perplexity = perplexity.assign(low=perplexity["perplexity"] * 0.9, high=perplexity["perplexity"] * 1.1)
    increase = np.log(perplexity["perplexity"] / 23.4)
    perplexity = perplexity.assign(
        log_increase=increase, log_increase_low=increase - 0.02, log_increase_high=increase + 0.02
    )
    one = pd.DataFrame({"block": block, "accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 100, "chance": 0.25})
    accuracy = pd.concat(
        [one.assign(task="passage_continuation", metric="acc_norm"), one.assign(task="mmlu_dev", metric="acc", n=80)]
    )
    dense = [{"block": None, "perplexity": 23.4}]
    for task, metric in (("passage_continuation", "acc_norm"), ("mmlu_dev", "acc")):
        dense.append({"block": None, "task": task, "metric": metric, "accuracy": 0.65})
    return perplexity, accuracy, pd.DataFrame(dense)


def ratio_frame(rows: int) -> pd.DataFrame:
    ratios = np.geomspace(0.9, 14, rows)
    columns = {"case": list("abcd" * rows)[:rows], "plan": "x", "peer": "an lm-eval (HFLM) evaluation a variant"}
    return pd.DataFrame(
        {
            "ratio": ratios,
            "ratio_low": ratios / 1.1,
            "ratio_high": ratios * 1.2,
            "target": 1.5,
            "allowed": 1.6,
            **columns,
        }
    )


WRITERS = ["whole model", "8 bits", "2 blocks removed", "8 blocks removed"]


def curve_frame(n: int) -> pd.DataFrame:
    parts = []
    for place, model in enumerate(WRITERS[1:]):
        for reading in ("teacher-forced", "own text"):
            agreement = (0.98 - 0.2 * place) * np.ones(n)
            part = {"position": np.arange(1, n + 1), "agreement": agreement, "low": 0.9 * agreement, "high": agreement}
            parts.append(pd.DataFrame({"model": model, "reading": reading, "n": 200, **part}))
    return pd.concat(parts, ignore_index=True)


def quality_frame() -> pd.DataFrame:
    rows = [
        (model, measure, value / (1 + place))
        for place, model in enumerate([*WRITERS, "real text"])
        for measure, value in (("same tokens", 1.0), ("repeated 4-grams", 0.3), ("perplexity", 20.0))
        if (model, measure) != ("real text", "same tokens")
    ]
    table = pd.DataFrame(rows, columns=["model", "measure", "value"]).assign(n=200)
    return table.assign(low=0.9 * table["value"], high=1.1 * table["value"])


def answer_frame() -> pd.DataFrame:
    rows = [
        ("copying", how, model, accuracy - 0.1 * place)
        for how, accuracy in (("chosen", 0.98), ("written", 0.9))
        for place, model in enumerate(WRITERS)
    ]
    table = pd.DataFrame(rows, columns=["task", "how", "model", "accuracy"]).assign(n=200, chance=0.25)
    return table.assign(low=table["accuracy"] - 0.05, high=table["accuracy"] + 0.02)


def ratio_curves(n: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, float]:
    """Perplexity and accuracy at n depths, accuracies of rules without a model, the loss of single tokens."""
    perplexity, accuracy, _ = removal_frames(n)
    share = {"share": lambda frame: 100 * frame["block"] / n}
    perplexity["perplexity"] = 10.0 ** np.linspace(1, 9, n)  # the last ones are off the scale
    losses = np.linspace(0, 9, n)
    perplexity = perplexity.assign(
        log_increase=losses,
        log_increase_low=losses - 0.1,
        log_increase_high=losses + 0.1,
        weights=70 * np.arange(n) / n,
    )
    rules = pd.DataFrame(
        [
            {"task": task, "rule": rule, "accuracy": 0.26, "low": 0.2, "high": 0.32}
            for task in accuracy["task"].unique()
            for rule in ("TF-IDF", "longest")
        ]
    )
    return perplexity.assign(**share), accuracy.assign(**share), rules, 4.5


def capability_frame(n: int) -> pd.DataFrame:
    """Damage of each of n blocks to text and two tasks."""
    rows = [
        {"on": on, "unit": unit, "block": block, "damage": size * (block == 0) + 0.01 * block, "seen": block % 2 == 0}
        for on, unit, size in (("text", "nats", 7), ("agreement", "nats", 1), ("agreement", "accuracy", 0.4))
        for block in range(n)
    ]
    return pd.DataFrame(rows)


def capability_orders_frame() -> pd.DataFrame:
    rows = [
        {"on": on, "other": other, "kind": kind, "tau": tau, "low": tau - 0.1, "high": tau + 0.1}
        for on in ("text", "agreement")
        for other, kind, tau in (
            ("block_influence", "measure", 0.6),
            ("magnitude_l1", "measure", -0.2),
            ("agreement" if on == "text" else "text", "capability", 0.3),
            (on, "itself", 0.8),
        )
    ]
    return pd.DataFrame(rows)


def first_token_frame(n: int) -> pd.DataFrame:
    state = np.arange(n + 1)
    large = np.where(state > n // 2, 20000.0, 50.0)
    frame = pd.DataFrame({"state": state, "whole": large, "without": 50.0, "others": 40.0})
    return frame.assign(attention_whole=np.where(state < n, 0.5, np.nan), attention_without=0.1)


def first_token_frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    """What is lost by capability, and by place in the text."""
    conditions = ("without the block", "given back", "only the first token lacks it")
    breaks = pd.DataFrame(
        [
            {"on": on, "unit": "nats", "condition": condition, "damage": 1.0, "low": 0.9, "high": 1.1}
            for on in ("text", "copying")
            for condition in conditions
        ]
    )
    places = pd.DataFrame(
        [
            {"condition": condition, "first": 2**k, "last": 2 ** (k + 1) - 1, "damage": 2.0 - 0.1 * k}
            for condition in conditions
            for k in range(8)
        ]
    )
    return breaks, places.assign(low=places["damage"] - 0.2, high=places["damage"] + 0.2)


def metric_frames(n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    metrics = ("block_influence", "relative_magnitude", "hidden_norm", "sequential", "reverse_order", "angular_blocks")
    perplexity, accuracy, _, _ = ratio_curves(n)
    accuracy = accuracy.rename(columns={"metric": "metric_name"}).assign(text_low=0.45, text_high=0.55)
    both = []
    for frame in (perplexity, accuracy):
        both.append(pd.concat([frame.assign(metric=metric) for metric in (*metrics, "greedy")], ignore_index=True))
    return both[0], both[1]


def gap_frames(n: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    metrics = ("block_influence", "hidden_norm, reverse_order", "greedy")
    counts, gaps, parts = np.arange(n), [], []
    depths = pd.DataFrame(
        {"count": counts, "share": 50 * counts / max(1, n - 1), "weights": 42 * counts / max(1, n - 1)}
    )
    for place, metric in enumerate(metrics):
        gap = np.zeros(n) if metric == "greedy" else (0.3 - place) * counts
        gaps.append(depths.assign(metric=metric, gap=gap, low=gap - 0.1, high=gap + 0.2))
    for task in ("agreement", "last_word"):
        of_task = {"task": task, "n": 200, "chance": 0.5, "low": 0.85, "high": 0.95, "accuracy": 0.9}
        parts.append(pd.DataFrame([{"metric": "", "count": 0, "share": 0.0, **of_task}]))
        for metric in metrics:
            parts.append(pd.DataFrame({"metric": metric, "count": [1, 2, 4], "share": [10.0, 25, 50], **of_task}))
    rules = pd.DataFrame(
        {"task": ["agreement", "last_word"] * 2, "rule": list("aabb"), "accuracy": [0.6, 0.6, 0.5, 0.4]}
    )
    return pd.concat(gaps), pd.concat(parts), rules.assign(low=0.4, high=0.7, n=200, chance=0.5)


def correlation_frame() -> pd.DataFrame:
    names = ["block_influence", "relative_magnitude", "greedy"]
    return pd.DataFrame([(a, b, 1.0 if a == b else -0.3) for a in names for b in names], columns=["a", "b", "tau"])


def head_frame(n: int) -> pd.DataFrame:
    pairs = [(block, head) for block in range(n) for head in range(6)]
    single = pd.DataFrame(pairs, columns=["block", "head"])
    return single.assign(damage=0.01 * single["head"] + np.where(single["block"] == 0, 2.0, 0))


def everywhere_frame() -> pd.DataFrame:
    one = pd.DataFrame({"head": range(6), "value": 0.4, "low": 0.3, "high": 0.5})
    loss = one.assign(measurement="perplexity", dense=0.0, n=8, chance=np.nan)
    tasks = [
        one.assign(measurement=name, dense=0.9, n=200, chance=chance)
        for name, chance in (("agreement", 0.5), ("copying", 0.25))
    ]
    return pd.concat([loss, *tasks], ignore_index=True)


def damage_frame(n: int) -> pd.DataFrame:
    kinds = {
        "one block": np.linspace(0.05, 7, n),
        "48 random heads": np.linspace(0.5, 2, 2 * n),
        "48 chosen heads": [0.3],
        "the chosen block": [0.05],
    }
    return pd.concat([pd.DataFrame({"what": what, "damage": d}) for what, d in kinds.items()], ignore_index=True)


def method_frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    one = pd.DataFrame({"model": ["Dense", "ShortGPT"], "accuracy": [0.6, 0.4], "low": 0.3, "high": 0.7, "n": 40})
    both = pd.concat([one.assign(task="mmlu_dev", chance=0.25), one.assign(task="mmlu_dev_fewshot", chance=0.25)])
    reported = pd.DataFrame({"method": ["Dense", "LaCo"], "model": "A", "accuracy": [0.55, 0.3]})
    return both, reported


def prefill_frame() -> pd.DataFrame:
    rows = [(m, n, side, 10.0**k, 9.0**k, 11.0**k) for m in "AB" for n in (512, 2048) for k, side in enumerate("xyz")]
    return pd.DataFrame(rows, columns=["model", "prompt_tokens", "side", "tokens_per_second", "low", "high"])


def beside_frame(n: int, twin: bool = True) -> pd.DataFrame:
    """Two models, one of them twice as deep, and a twin of the other."""
    parts = []
    for model, blocks in (("recurrent", n), ("transformer", 2 * n), *([("twin", n)] if twin else [])):
        place = 100 * np.arange(blocks) / blocks
        parts.append(pd.DataFrame({"model": model, "place": place, "rise": place, "low": place - 1, "high": place + 9}))
    return pd.concat(parts, ignore_index=True)


def training_frame(n: int) -> pd.DataFrame:
    tokens = 1e5 * np.arange(1, n + 1)
    bits = np.where(np.arange(n) % 2, 2.0, np.nan)
    return pd.DataFrame({"tokens": tokens, "loss": 5 - tokens / 1e7, "bits_per_byte": bits})


PRECISIONS = ("full precision", "GPTQ, 8 bits", "GPTQ, 4 bits", "GPTQ, 3 bits")


def size_frame() -> pd.DataFrame:
    """Notebook 07: size and perplexity of every precision at three depths; the last precision is of no use."""
    rows = [
        (name, count, 200 - 50 * place - 10 * count, 20.0 * 3**place + count, place < 2 and count < 8)
        for place, name in enumerate(PRECISIONS)
        for count in (0, 3, 8)
    ]
    frame = pd.DataFrame(rows, columns=["weights", "count", "megabytes", "perplexity", "front"])
    return frame.assign(low=0.9 * frame["perplexity"], high=1.1 * frame["perplexity"])


def interaction_frames() -> tuple[pd.DataFrame, pd.DataFrame, float]:
    """What removal and quantization cost together, in all and by draw, and the share of it that counts as none."""
    rows = [
        (name, count, 0.2 * count, 0.3, 0.02 * count, 0.3 + 0.22 * count) for name in PRECISIONS[1:] for count in (3, 8)
    ]
    frame = pd.DataFrame(rows, columns=["weights", "count", "pruning", "quantization", "interaction", "both"])
    each = [frame.assign(draw=draw, interaction=frame["interaction"] + 0.01 * draw) for draw in range(3)]
    return frame.assign(low=frame["interaction"] - 0.1, high=frame["interaction"] + 0.1), pd.concat(each), 0.25


def precision_frame(n: int) -> pd.DataFrame:
    return pd.concat([score_frame(n).assign(weights=name) for name in PRECISIONS], ignore_index=True)


def pruning_frame() -> pd.DataFrame:
    """Notebook 10: damage and accuracy of a whole model of six blocks, and three rules at two depths."""
    columns = ["rule", "healed", "count", "damage", "accuracy"]
    rows = [
        ("whole model", False, 0, 0.0, 0.8),
        ("whole model", True, 0, -0.1, 0.8),
        ("similarity", False, 2, 4.1, 0.8),
        ("similarity", True, 2, 2.2, 0.8),
        ("similarity", False, 3, 5.1, 0.3),
        ("similarity", True, 3, 2.25, 0.3),
        ("simple rule", False, 2, 8.1, 0.8),
        ("simple rule", True, 2, 2.4, 0.8),
        ("simple rule", False, 3, 11.1, 0.3),
        ("simple rule", True, 3, 2.55, 0.3),
        ("last blocks", False, 2, 12.1, 0.8),
        ("last blocks", False, 3, 17.1, 0.3),
    ]
    frame = pd.DataFrame(rows, columns=columns).assign(share=lambda one: 100 * one["count"] / 6)
    return frame.assign(low=0.9 * frame["damage"], high=1.1 * frame["damage"])


def pruning_accuracy_frame() -> pd.DataFrame:
    """The same models' accuracies on two tasks."""
    frame = pruning_frame().drop(columns="damage").assign(n=200)
    frame = frame.assign(low=frame["accuracy"] - 0.2, high=frame["accuracy"] + 0.15)
    return pd.concat([frame.assign(task="agreement", chance=0.5), frame.assign(task="copying", chance=0.25)])


def last_block_frame() -> pd.DataFrame:
    rows = [(1, False, 0.5), (2, False, -2.0), (3, False, -1.5), (3, True, 0.1)]
    frame = pd.DataFrame(rows, columns=["count", "healed", "difference"])
    return frame.assign(low=frame["difference"] - 0.3, high=frame["difference"] + 0.3)


def healing_curve_frame() -> pd.DataFrame:
    rows = [
        ("whole model", 0, 0, 3.0),
        ("similarity", 2, 0, 5.0),
        ("similarity", 2, 64, 4.0),
        ("simple rule", 2, 64, 6.0),
    ]
    once = pd.DataFrame(rows, columns=["rule", "count", "tokens", "held_out"]).assign(seed=0)
    return pd.concat([once, once.assign(seed=1, held_out=once["held_out"] + 1)], ignore_index=True)


def recipe_frame() -> pd.DataFrame:
    labels = ["head and last 3", "LoRA, rank 8", "4 bits, untrained"]
    frame = pd.DataFrame({"recipe": ["partial", "lora", "nf4"], "label": labels})
    frame = frame.assign(damage=[0.6, 0.7, 1.3], low=[0.5, 0.6, 1.2], high=[0.7, 0.8, 1.4])
    return frame.assign(trainable=[2e7, 1e6, 0], peak_bytes=[2e9, 2e9, 0], seconds=[2.0, 4.0, 0.0])


LEVELS = {"whole model": 0.0, "untrained": 1.2, "unigram": 4.4}


def healed_capability_frame() -> pd.DataFrame:
    models = (("whole model", "whole model"), ("untrained", "untrained"), ("LoRA, rank 8", "lora"))
    rows = [
        (*model, task, accuracy)
        for task, accuracies in (("agreement", (0.9, 0.8, 0.85)), ("copying", (0.98, 0.5, 0.7)))
        for model, accuracy in zip(models, accuracies, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["model", "recipe", "task", "accuracy"]).assign(n=200, chance=0.5)
    return frame.assign(low=frame["accuracy"] - 0.05, high=frame["accuracy"] + 0.02)


def training_curves_frame() -> pd.DataFrame:
    labels = {"lora": "LoRA, rank 8", "partial": "head and last 3"}
    losses = {("lora", 0): 3.0, ("lora", 1): 3.1, ("partial", 0): 2.0, ("partial", 1): 2.1}
    rows = [
        (recipe, labels[recipe], seed, tokens, loss)
        for (recipe, seed), last in losses.items()
        for tokens, loss in ((0, 9.0), (1024, last))
    ]
    return pd.DataFrame(rows, columns=["recipe", "label", "seed", "tokens", "held_out"])


def selection_frame() -> pd.DataFrame:
    names = ["random", "perplexity", "taylor", "block_influence", "magnitude_l1", "magnitude_l2", "reverse_order"]
    damage = 7.05 + np.arange(len(names))
    frame = pd.DataFrame({"selection": names, "damage": damage, "low": damage - 0.6, "high": damage + 0.6})
    return frame.assign(healed_damage=damage - 5, healed_low=damage - 5.6, healed_high=damage - 4.4)


def tuning_frames(n: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Accuracies by the number of kept blocks, levels of baselines, and costs."""
    rows = [
        (name, method, kept, 0.5 + 0.4 * kept / n)
        for name in ("amazon_reviews", "mean")
        for method in ("untuned", "prompt tuning", "fine-tuning")
        for kept in (1, 2, n)
    ]
    by_depth = pd.DataFrame(rows, columns=["dataset", "method", "kept", "accuracy"])
    reach = {"low": -0.1, "high": 0.1, "seed_low": -0.05, "seed_high": 0.05}
    by_depth = by_depth.assign(**{name: by_depth["accuracy"] + by for name, by in reach.items()}, seeds=5, n=300)
    levels = pd.DataFrame({"dataset": ["amazon_reviews", "mean"], "chance": 0.5, "majority": 0.55, "bag_of_words": 0.7})
    costs = by_depth.loc[by_depth["dataset"] == "mean", ["method", "kept"]]
    seconds = costs["kept"] / 100
    costs = costs.assign(parameters=1e6 * costs["kept"], inference_bytes=1e7 * costs["kept"], seconds=seconds)
    costs = costs.assign(training_bytes=3e7 * costs["kept"], fastest=0.9 * seconds, slowest=1.2 * seconds)
    return by_depth, levels, costs


RIVALS = {
    "shortgpt": "ShortGPT", "sleb": "SLEB", "llm_pruner": "LLM-Pruner", "slice_gpt": "SliceGPT",
    "slice_gpt_tied": "SliceGPT, tied", "laco": "LaCo (as printed)", "laco_code": "LaCo (as its code)",
    "replace_me": "ReplaceMe", "magnitude_compensation": "Prune&Comp",
}  # fmt: skip


def rival_frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Notebook 13: what methods cost text and leave of two tasks, the whole model's first; two were trained."""
    damage = 0.8 + 0.7 * np.arange(len(RIVALS))
    quality = pd.DataFrame({"method": list(RIVALS), "damage": damage})
    reach = {"low": -0.2, "high": 0.2, "least": -0.1, "most": 0.15}
    quality = quality.assign(**{name: damage + by for name, by in reach.items()})
    quality["healed"] = np.where(quality["method"].isin(["shortgpt", "slice_gpt"]), damage / 2, np.nan)
    quality = quality.assign(healed_low=quality["healed"] - 0.1, healed_high=quality["healed"] + 0.1)
    rows = [
        (m, task, 0.9 - 0.05 * i) for task in ("agreement", "copying") for i, m in enumerate(["whole model", *RIVALS])
    ]
    accuracy = pd.DataFrame(rows, columns=["method", "task", "accuracy"])
    return quality, accuracy.assign(
        low=accuracy["accuracy"] - 0.06, high=accuracy["accuracy"] + 0.05, n=200, chance=0.5
    )


def rival_shares_frame() -> pd.DataFrame:
    rows = [(m, 10.0 * k, 13.0 * k, 0.3 * k * (i + 1)) for i, m in enumerate(RIVALS) for k in (1, 2, 3)]
    frame = pd.DataFrame(rows, columns=["method", "removed", "removed_of_blocks", "damage"])
    return frame.assign(low=0.9 * frame["damage"], high=1.1 * frame["damage"])


def rival_runs_frame(n: int, lengths: tuple[int, ...] = (2, 3)) -> pd.DataFrame:
    """Runs of a model of n blocks; replaced the first is the best, which Block Influence does not choose."""
    rows = [
        (length, start, kind, cost * (1 + 0.1 * start), rules if start == min(2, n - length) else "")
        for length in lengths
        for kind, cost, rules in (("removed", 2.0, ""), ("replaced", 1.0, "least Block Influence, best replaced"))
        for start in range(1, n - length + 1)
    ]
    return pd.DataFrame(rows, columns=["length", "start", "kind", "choosing", "chosen_by"])


FIGURES = {
    "removal_order": lambda n: layer_importance.removal_order(score_frame(n), order_of(score_frame(n))),
    "importance_metrics": lambda n: layer_importance.importance_metrics(metric_frame(n)),
    "block_influence_geometry": lambda n: layer_importance.block_influence_geometry(score_frame(n)),
    "angular_grid": lambda n: layer_importance.angular_grid(grid_frame(n)),
    "order_stability": lambda n: layer_importance.order_stability(inclusion_frame(n), rank_frame(n)),
    "speed_ratios": lambda n: pictures.speed_ratios(ratio_frame(min(n, 10))),
    "single_layer_removal": lambda n: single_layer_removal.single_layer_removal(*removal_frames(n)),
    "capability_map": lambda n: single_layer_removal.capability_map(capability_frame(n)),
    "order_agreement": lambda n: single_layer_removal.order_agreement(capability_orders_frame()),
    "first_token_state": lambda n: single_layer_removal.first_token_state(first_token_frame(n), n // 2),
    "first_token_loss": lambda n: single_layer_removal.first_token_loss(*first_token_frames()),
    "prune_ratio": lambda n: prune_ratio.prune_ratio(*ratio_curves(n)),
    "gap_to_greedy": lambda n: metric_comparison.gap_to_greedy(*gap_frames(n)),
    "order_correlation": lambda n: metric_comparison.order_correlation(correlation_frame()),
    "head_removal": lambda n: width_vs_depth.head_removal(everywhere_frame()),
    "head_map": lambda n: width_vs_depth.head_map(head_frame(n)),
    "damage_distributions": lambda n: width_vs_depth.damage_distributions(damage_frame(n)),
    "method_accuracies": lambda n: benchmarks.method_accuracies(*method_frames()),
    "agreement_by_position": lambda n: generation.agreement_by_position(curve_frame(n)),
    "prefill_rates": lambda n: pictures.prefill_rates(prefill_frame()),
    "across_damage": lambda n: across_models.damage(across_damage_frame()),
    "across_depths": lambda n: across_models.depths(across_depths_frame(n)),
    "across_ranks": lambda n: across_models.ranks(across_ranks_frame()),
    "across_capabilities": lambda n: across_models.capabilities(across_left_frame()),
    "removal_beside": lambda n: rwkv_redundancy.removal_beside(beside_frame(n)),
    "single_blocks": lambda n: rwkv_redundancy.single_blocks(beside_frame(n)),
    "training_curve": lambda n: training_curve.training_curve(training_frame(n), {"xz -9": 2.4, "order-5 n-gram": 2.3}),
    "text_quality": lambda n: generation.text_quality(quality_frame()),
    "chosen_and_written": lambda n: generation.chosen_and_written(answer_frame()),
    "size_against_quality": lambda n: quantization.size_against_quality(size_frame()),
    "damage_interaction": lambda n: quantization.damage_interaction(*interaction_frames()),
    "block_pruning": lambda n: block_pruning.block_pruning(pruning_frame(), 4.4),
    "pruning_capabilities": lambda n: block_pruning.capabilities(pruning_accuracy_frame(), (45, 55)),
    "last_block": lambda n: block_pruning.last_block(last_block_frame()),
    "healing_curves": lambda n: block_pruning.healing_curves(healing_curve_frame()),
    "training_curves": lambda n: healing.training_curves(training_curves_frame(), {"unigram": 7.7}),
    "recipes": lambda n: healing.recipes(recipe_frame(), LEVELS),
    "healed_capabilities": lambda n: healing.capabilities(healed_capability_frame()),
    "selections": lambda n: healing.selections(selection_frame(), {"unigram": 4.4}),
    "accuracy_by_kept_blocks": lambda n: prompt_tuning.accuracy_by_kept_blocks(*tuning_frames(n)[:2]),
    "tuning_costs": lambda n: prompt_tuning.tuning_costs(tuning_frames(n)[2]),
    "rivals_at_ratio": lambda n: rivals.at_ratio(*rival_frames(), RIVALS),
    "rivals_by_share": lambda n: rivals.by_share(rival_shares_frame(), RIVALS),
    "rivals_runs": lambda n: rivals.runs(rival_runs_frame(n)),
    "published_removals": lambda n: published.removals(published_frame(n)),
    "published_influence": lambda n: published.influence(published_frame(n)),
    "published_windows": lambda n: published.windows(published_windows_frame()),
    "published_overlap": lambda n: published.overlap(published_overlap_frames(), 8),
    "influence_by_precision": lambda n: quantization.influence_by_precision(precision_frame(n)),
}


COMPARED = ["a-model-of-a-long-name-7b-instruct", "another-model-2b", "third", "fourth-of-somebody-else"]


def across_damage_frame() -> pd.DataFrame:
    """Notebook 14: what shares of the blocks and of the weights cost; half of the second's weights are out of reach."""
    rows = [
        (model, of, ratio, ratio * (1 + place), ratio * (0.8 + place), ratio * (1.2 + place), 8)
        for place, model in enumerate(COMPARED)
        for of in ("blocks", "weights")
        for ratio in (10.0, 25.0, 50.0)
    ]
    frame = pd.DataFrame(rows, columns=["model", "of", "ratio", "rise", "low", "high", "n"])
    out_of_reach = (frame["model"] == COMPARED[1]) & (frame["of"] == "weights") & (frame["ratio"] == 50)
    return frame.assign(**{name: frame[name].mask(out_of_reach) for name in ("rise", "low", "high")})


def across_depths_frame(n: int) -> pd.DataFrame:
    """A quarter of the blocks by each of some measures."""
    rows = [
        (model, measure, 100 * (block + 0.5) / n)
        for model in COMPARED
        for place, measure in enumerate(("block_influence", "hidden_norm", "reverse_order", "greedy", "angular_blocks"))
        for block in range(place, place + max(1, n // 4))
    ]
    return pd.DataFrame(rows, columns=["model", "measure", "depth"])


def across_ranks_frame() -> pd.DataFrame:
    """Taus on text and tasks; the last model has no row for one task."""
    rows = [
        (model, on, 0.2 * place, 0.2 * place - 0.3, min(1, 0.2 * place + 0.3))
        for place, model in enumerate(COMPARED)
        for on in ("text", "agreement", "copying")
        if (model, on) != (COMPARED[-1], "copying")
    ]
    return pd.DataFrame(rows, columns=["model", "on", "tau", "low", "high"])


def across_left_frame() -> pd.DataFrame:
    """What is left of tasks at three shares, of other numbers of items in one model."""
    rows = [
        (model, on, share, 90 - share - 5 * place, 80 - share, 100 - share, 200 + 200 * (place == 1))
        for place, model in enumerate(COMPARED)
        for on in ("agreement", "copying")
        for share in (10.0, 25.0 + place, 50.0)
    ]
    frame = pd.DataFrame(rows, columns=["model", "on", "share", "left", "left_low", "left_high", "n"])
    return frame.assign(left_low=frame["left"] - 10, left_high=frame["left"] + 10)


def _published_frames(n: int) -> list[pd.DataFrame]:
    block = np.arange(n)
    cost = np.where(block == 0, np.inf, 4.0 * (block / n - 0.5) ** 2 - 0.1)
    states = np.where(block == n - 1, "after the final norm", "before the final norm")
    rows = pd.DataFrame({"depth": 100 * (block + 0.5) / n, "cost": cost, "states": states, "measure": "1 - cosine"})
    rows["relative"] = 0.4 + 6 * (block / n - 0.6) ** 2
    names = [f"A-long-name-of-7B-Instruct-{i}" for i in range(8)]
    parts = [rows.assign(model=name, source="somebody/something", ours=False) for name in names]
    mine = rows.assign(cost=rows["cost"].clip(upper=3), states="before the final norm", source="measured here")
    return [*parts, mine.assign(model="this model", ours=True)]


def published_frame(n: int) -> pd.DataFrame:
    """Notebook 15: losses and scores of nine models by depth, one of them measured here."""
    return pd.concat(_published_frames(n), ignore_index=True)


def published_windows_frame() -> pd.DataFrame:
    """MMLU without windows at six places, of three lengths in three models; the last windows are shorter."""
    rows = [
        (model, length, 15.0 * place + 10, 0.3 + 0.04 * place + 0.01 * length, place < 5)
        for model in ("one", "two", "three")
        for length in (2, 3, 5)
        for place in range(6)
    ]
    table = pd.DataFrame(rows, columns=["model", "length", "depth", "mmlu", "whole"])
    return table.assign(low=table["mmlu"] - 0.01, high=table["mmlu"] + 0.01)


def published_overlap_frames() -> dict[str, pd.DataFrame]:
    """Shared blocks of the first eight, of six and of five papers."""
    found = {}
    for model, papers in (("one", 6), ("two", 5)):
        names = [f"Somebody and others 2024 (A Name): method {i}" for i in range(papers)]
        place = np.arange(papers)
        found[model] = pd.DataFrame(8.0 - np.abs(place[:, None] - place), index=names, columns=names)
    return found


def drawn_boxes(figure: plt.Figure) -> tuple[list, object]:
    """Boxes in pixels of every axes with its labels, and of the figure."""
    figure.draw_without_rendering()
    return [axes.get_tightbbox() for axes in figure.axes], figure.bbox


def named_lines(axes: plt.Axes) -> dict[str, plt.Line2D]:
    """Lines of a panel that its legend names."""
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}
