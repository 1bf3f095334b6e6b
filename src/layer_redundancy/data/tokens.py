"""Texts as token ids that a model goes on from: what a tokenizer puts after a text, by its settings, stays away."""

import copy
from functools import partial
from typing import Any

# One of these is a token, or tokens, in any vocabulary; whatever lies around it is put there by the tokenizer.
_PROBES = ("a", "A", "0", ".", "的")


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids that a tokenizer puts before and after every text when it is called without options."""
    for text in _PROBES:
        whole = list(tokenizer(text).input_ids)
        if len(whole) == 1:
            break  # the text's own
        bare = list(tokenizer(text, add_special_tokens=False).input_ids)
        for start in range(len(whole) - len(bare) + 1 if bare else 0):
            if whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
    return [], []


def without_end(tokenizer: Any) -> Any:
    """The tokenizer, or where it puts something after every text, a copy that does not.

    Tokenizers that were used for training may put the end-of-sequence token there (add_eos_token, or a post-processor).
    After it a model begins another text, and no answer would follow its question. What is put before a text stays.

    Args:
        tokenizer: a transformers tokenizer, which is left as it is.
    """
    before, after = around(tokenizer)
    if not after:
        return tokenizer
    ours = copy.deepcopy(tokenizer)
    if not ours.is_fast:
        ours.build_inputs_with_special_tokens = partial(_behind, before)
        return ours
    from tokenizers.processors import TemplateProcessing

    tokens = ours.convert_ids_to_tokens(before)
    first = ["before:0"] if before else []
    ours.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*first, "$A:0"],
        pair=[*first, "$A:0", "$B:1"],
        special_tokens=[{"id": "before", "ids": before, "tokens": tokens}] if before else [],
    )
    return ours


def _behind(before: list[int], ids: list[int], more: list[int] | None = None) -> list[int]:
    return [*before, *ids, *(more or [])]


def prepends_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its beginning-of-sequence token first when it is called without options."""
    return tokenizer.bos_token_id is not None and around(tokenizer)[0][:1] == [tokenizer.bos_token_id]
