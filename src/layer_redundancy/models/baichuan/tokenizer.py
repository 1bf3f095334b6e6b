"""The tokenizer of Baichuan models: SentencePiece, by tokenization_baichuan.py of baichuan-inc/Baichuan2-7B-Base.

Text without special tokens becomes exactly what the package `sentencepiece` makes of the published tokenizer.model.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

VOCABULARY = "tokenizer.model"


class BaichuanTokenizer(SentencePieceBackend):
    """SentencePiece pieces of `vocab_file`, between the tokens for begin and end where the tokenizer's config says so.

    Args:
        vocab_file: the tokenizer.model.
        add_bos_token, add_eos_token: false in the published configs; the defaults are the published code's.
    """

    vocab_files_names = {"vocab_file": VOCABULARY}  # noqa: RUF012  transformers reads and never writes it
    model_input_names = ("input_ids", "attention_mask")

    def __init__(self, vocab_file: str, add_bos_token: bool = True, add_eos_token: bool = False, **kwargs: Any) -> None:
        for role, token in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")):
            kwargs.setdefault(role, token)
        self.add_bos_token, self.add_eos_token = add_bos_token, add_eos_token
        around = "_".join(["bos"] * add_bos_token + ["eos"] * add_eos_token) or "none"
        kwargs["special_tokens_pattern"] = around
        kwargs.pop("auto_map", None)  # names code that nobody needs, and that is not beside what is saved
        kwargs["legacy"] = True  # pieces as SentencePiece gives them; else transformers takes its first space away
        super().__init__(vocab_file=vocab_file, add_bos_token=add_bos_token, add_eos_token=add_eos_token, **kwargs)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of pieces; bytes that are no UTF-8 become U+FFFD, and special tokens stay as they are written."""
        special = set(self.all_special_tokens)
        text: list[str] = []
        pieces: list[str] = []
        for token in tokens:
            if token in special:
                text += [self.sp_model.decode(pieces), token]
                pieces = []
            else:
                pieces.append(token)
        return "".join([*text, self.sp_model.decode(pieces)])

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Saves it as the base class does, and also whether a text gets a begin and an end, which that leaves out."""
        files = super().save_pretrained(save_directory, *args, **kwargs)
        path = next(Path(file) for file in files if file.endswith("tokenizer_config.json"))
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings |= {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
        return files


def load(source: str, revision: str | None) -> BaichuanTokenizer | None:
    """The tokenizer of a folder, or of a hub id at a revision; None where there is no tokenizer.model.

    Raises:
        Exception: whatever huggingface_hub raises where the hub is needed and cannot be reached.
    """
    if Path(source).is_dir():
        if not (Path(source) / VOCABULARY).is_file():
            return None
    else:
        try:
            hf_hub_download(source, VOCABULARY, revision=revision)
        except RemoteEntryNotFoundError:
            return None
    return BaichuanTokenizer.from_pretrained(source, revision=revision)
