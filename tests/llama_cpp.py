"""llama.cpp beside this study: another reader of the same GGUF file, and strings on which readers differ."""

import json
import random
import urllib.request
from pathlib import Path

import torch
import xllamacpp
from torch import Tensor

from layer_redundancy.data import corpora

AWKWARD = [
    *"abcXYZ 0123456789\n\t.,'\"<>/-_()[]{}é日本🙂▁\u200d\u00a0𝔹",
    "<table>", "</td>", "<h1>", "  ", "\n\n", "<bos>", "<unused3>", "[multimodal]", "<0x0A>", "<start_of_turn>", "</s>",
    "<s>", "\r\n",
]  # fmt: skip


class LlamaCpp:
    """llama.cpp's server on this machine, with one GGUF file.

    Args:
        gguf: the file.
        length: tokens that it can read at once.
    """

    def __init__(self, gguf: Path, length: int = 2048) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.n_ctx = params.n_batch = params.n_ubatch = length
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = params.n_parallel = 1
        params.embedding = True  # the states after the final norm, as they are, one a token
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_NONE
        params.embd_normalize = -1
        params.verbosity = 0
        self._server = xllamacpp.Server(params)
        self._ask = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def tokens(self, text: str) -> list[int]:
        """The text's tokens, those that the file says come first included."""
        return self._post("tokenize", content=text, add_special=True, parse_special=True)["tokens"]

    def nll(self, ids: Tensor, head: Tensor) -> Tensor:
        """Negative log-likelihood (nats) of each token but the first, by its states and a given head.

        Args:
            ids: tokens of shape (length,).
            head: (vocabulary, width).
        """
        states = self._post("embedding", content=ids.tolist(), embd_normalize=-1)[0]["embedding"]
        logits = torch.tensor(states)[:-1] @ head.detach().T
        return torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")

    def _post(self, what: str, **content: object):
        address = f"{self._server.listening_address}/{what}"
        request = urllib.request.Request(address, json.dumps(content).encode(), {"Content-Type": "application/json"})
        with self._ask.open(request, timeout=120) as answer:
            return json.load(answer)


def strings() -> list[str]:
    """5571 texts: pieces of articles, awkward ones, words with two spaces between them, characters three times."""
    articles = corpora.articles("wikipedia", "evaluation") + corpora.articles("wikipedia", "calibration")
    rng = random.Random(0)
    starts = [(article, rng.randrange(len(article))) for article in articles for _ in range(20)]
    words = " ".join(articles).split()
    return [
        *(article[start : start + rng.randrange(1, 400)] for article, start in starts),
        *("".join(rng.choices(AWKWARD, k=rng.randrange(1, 60))) for _ in range(1500)),
        *("  ".join(rng.choices(words, k=10)) for _ in range(500)),
        *(chr(code) * 3 for code in range(32, 0x3000, 7)),
    ]


def differing(tokenizer, other: LlamaCpp) -> list[str]:
    """Those of `strings` that a tokenizer cuts otherwise than llama.cpp does."""
    texts = strings()
    assert len(texts) == 5571
    return [text for text in texts if tokenizer(text, verbose=False).input_ids != other.tokens(text)]
