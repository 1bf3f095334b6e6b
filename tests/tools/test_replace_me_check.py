"""The script that sets ReplaceMe beside published results: what it reads, and how it scores."""

import json
from types import SimpleNamespace

import numpy as np
import torch

import tiny_models
from tools import replace_me_check


def tokenizer(text, add_special_tokens):
    return SimpleNamespace(input_ids=[3 + ord(character) % 90 for character in text])


def test_answers_are_scored_after_their_question_as_plain_forwards_do(tmp_path):
    rows = [
        {"goal": "To go", "sol1": "walk on", "sol2": "do not", "label": 1},
        {"goal": "A", "sol1": "B", "sol2": "CD", "label": 0},
    ]
    file = tmp_path / "items.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows * 3))
    scored, right = replace_me_check.sequences(file, tokenizer, 5)
    assert (len(scored), right) == (10, [1, 0, 1, 0, 1])
    model = tiny_models.build("llama")
    wanted = []
    for row in rows:
        of_answers = []
        for answer in (row["sol1"], row["sol2"]):
            question = len(f"Question: {row['goal']}\nAnswer:")
            ids = torch.tensor([tokenizer(f"Question: {row['goal']}\nAnswer: {answer}", False).input_ids])
            logprobs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            of_answers.append(sum(logprobs[i - 1, ids[0, i]].item() for i in range(question, ids.shape[1])))
        wanted.append(int(of_answers[1] > of_answers[0]))
    assert replace_me_check.chosen(model, scored) == (wanted * 3)[:5]


def test_published_accuracies_are_those_of_this_model_and_method(tmp_path):
    file = tmp_path / "results.csv"
    file.write_text(
        "model,method,metric,run_or_blocks,value\n"
        "HuggingFaceTB/SmolLM2-135M-Instruct,ReplaceMe lstsq_1,acc piqa,raw 2_6,0.6\n"
        "unsloth/SmolLM2-135M-Instruct,ReplaceMe lstsq_1,acc piqa,raw 2_6,0.59\n"
        "unsloth/SmolLM2-135M-Instruct,ReplaceMe lstsq_1,acc_norm piqa,raw 2_6,0.7\n"
        "unsloth/SmolLM2-360M-Instruct,ReplaceMe lstsq_1,acc piqa,raw 2_6,0.8\n"
        "unsloth/SmolLM2-135M-Instruct,ReplaceMe lstsq_1,acc piqa,raw 3_5,0.62\n"
    )
    assert replace_me_check.published(file) == {"2_6": [0.6, 0.59], "3_5": [0.62]}


def test_nearest_runs_stand_beside_published_ones():
    grid = np.full((4, 4), np.nan)
    grid[0, 1:], grid[1, 1:3] = [0.3, 0.1, 0.2], [0.2, 0.1]
    assert replace_me_check.beside(["1_3", "2_3"], grid) == "1 of 2 as published; 2_3, 2_4 (published 1_3)"
