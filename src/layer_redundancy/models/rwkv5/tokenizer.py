"""The tokenizer of the RWKV "World" models: 65,536 byte strings, of which the longest that fits is taken each time.

Vocabulary and matching are the author's, from the package `rwkv`; here they are a transformers tokenizer.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer

from layer_redundancy.core.errors import StudyError

VOCABULARY = "rwkv_vocab_v20230424.txt"
VOCAB_SIZE = 65536  # embeddings; the vocabulary ends at 65529
END = "<|endoftext|>"  # token 0, which the vocabulary leaves free


@cache
def _matcher() -> Any:
    """The package's tokenizer; building its tree takes a second."""
    found = importlib.util.find_spec("rwkv")
    if found is None or found.origin is None:
        raise StudyError("the tokenizer of RWKV World models is in the package `rwkv`: run `make setup`")
    from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

    return TRIE_TOKENIZER(str(Path(found.origin).parent / VOCABULARY))


class RwkvWorldTokenizer(PreTrainedTokenizer):
    """Greedy longest match over bytes. A token is written as one character a byte (latin-1), since not every token is
    valid UTF-8 by itself; token 0 ends a text and begins none.
    """

    model_input_names = ("input_ids", "attention_mask")

    def __init__(self, **kwargs: Any) -> None:
        self._trie = _matcher()
        self._ids = {END: 0} | {token.decode("latin-1"): i for token, i in self._trie.token2idx.items()}
        self._tokens = {i: token for token, i in self._ids.items()}
        for role in ("eos_token", "pad_token", "bos_token"):
            kwargs.setdefault(role, END)
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [self._tokens[i] for i in self._trie.encode(text)]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def _convert_id_to_token(self, index: int) -> str | None:
        return self._tokens.get(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens).encode("latin-1", errors="ignore").decode("utf-8", errors="replace")

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Nothing to save: the vocabulary is the package's."""
        return ()
