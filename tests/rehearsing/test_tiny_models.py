"""The tiny models under published names: they load as the published ones do, from a local hub and without any."""

import json
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from layer_redundancy.config import profiles
from layer_redundancy.data import classification_sets, corpora
from layer_redundancy.experiments import prompt_tuning
from layer_redundancy.models import checkpoints, loading
from layer_redundancy.models.stack import decoder_stack
from rehearsal import run, tiny_models
from rehearsal.local_hub import LocalHub
from rehearsing.test_local_hub import client

DENSE = (
    tiny_models.LLAMA_7B, tiny_models.LLAMA_13B, tiny_models.BAICHUAN_7B,
    tiny_models.BAICHUAN_13B, tiny_models.RWKV,
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    tiny_models.write(root)
    return root


def folder(root, name):
    return root / "models" / name.replace("/", "--")


def identify(root, name):
    return checkpoints.identify(profiles.get("smoke", model=str(folder(root, name))))


LOAD = """
import sys, torch
from layer_redundancy.config import profiles
from layer_redundancy.models import checkpoints, loading
from layer_redundancy.models.stack import decoder_stack
from transformers.utils import logging
seen, text = {}, "The earliest certain ancestor of the letter is aleph. 以下是一个黄"
for name in sys.argv[1:]:
    identity = checkpoints.identify(profiles.get("smoke", model=name))
    tokenizer, model = loading.load_tokenizer(identity), loading.load(identity, "bfloat16")
    ids = torch.tensor([tokenizer(text).input_ids])
    logits = model(input_ids=ids).logits.float()
    seen[name] = [len(decoder_stack(model)), identity.max_length, ids.tolist(),
                  tokenizer.decode(ids[0], skip_special_tokens=True), logits.isfinite().all().item(),
                  logits.double().sum().item()]
told(seen)
"""


@pytest.mark.slow
def test_all_load_through_the_hub(root, tmp_path):
    with LocalHub(root) as hub:
        online = client(hub, tmp_path, LOAD, arguments=DENSE)
        assert not hub.asked(r"GET .*\.py$")  # no code comes along
        assert not hub.asked("GET /cdn/models/meta-llama/.*bin$")  # of two formats one is taken
        assert not hub.asked("discussions")  # nor is anyone asked to convert a pickle
        hub.forget()
        # Without RWKV, whose tokenizer takes seconds: Baichuan's are pickles too.
        again = client(hub, tmp_path, LOAD, offline=True, arguments=DENSE[:-1])
        assert not hub.requests
    assert all(online[name] == seen for name, seen in again.items())
    for name, (blocks, longest, ids, text, finite, _) in online.items():
        assert blocks == (5 if "13" in name else 4)
        assert finite and text == "The earliest certain ancestor of the letter is aleph. 以下是一个黄", name
        assert longest == (None if name == tiny_models.RWKV else 4096)
        assert (ids[0][0] == 1) == ("Llama" in name), "only Llama-2's tokenizer puts <s> first"


@pytest.mark.parametrize("name", DENSE)
def test_every_block_matters(root, name):
    identity = identify(root, name)
    stack = decoder_stack(loading.load(identity))
    text = corpora.articles("wikipedia", "evaluation")[0][:1500]
    ids = torch.tensor([loading.load_tokenizer(identity)(text).input_ids])
    hidden, calls = stack.start(ids)
    for i in range(len(stack)):
        after = stack.run_block(i, hidden, calls)
        assert 0.02 < 1 - torch.cosine_similarity(hidden, after, dim=-1).mean() < 0.5
        hidden = after


def test_tokenizers_are_those_of_their_sentencepiece_models(root):
    import sentencepiece
    from tokenizers import Tokenizer

    texts = [*corpora.articles("wikipedia", "evaluation")[:3], "黄 以下  是\n\n12 345", "a", ""]
    for name in (name for name in DENSE if name != tiny_models.RWKV):
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder(root, name) / "tokenizer.model"))
        tokenizer = loading.load_tokenizer(identify(root, name))
        for text in texts:
            assert tokenizer(text, add_special_tokens=False).input_ids == pieces.encode(text)
        assert pieces.get_piece_size() == tiny_models.VOCABULARY == len(tokenizer)
        if "Llama" in name:  # the published file's own rules, which differ from transformers' for a leading space
            whole = Tokenizer.from_file(str(folder(root, name) / "tokenizer.json"))
            for text in (*texts, " a", "\n a"):
                assert whole.encode(text, add_special_tokens=False).ids == pieces.encode(text)
            assert whole.encode("a").tokens[0] == "<s>"


@pytest.mark.parametrize("name", (tiny_models.LLAMA_7B, tiny_models.BAICHUAN_7B))
def test_labels_begin_with_different_tokens(root, name):
    tokenizer = loading.load_tokenizer(identify(root, name))
    for dataset in profiles.get(run.PROFILE).budget(prompt_tuning.Budget).datasets:
        source = classification_sets.SOURCES[dataset]
        assert len(classification_sets.label_tokens(source, tokenizer).unique()) == len(source.labels)


def test_published_layouts(root):
    for name, kind in (
        (tiny_models.LLAMA_7B, "model.safetensors"),
        (tiny_models.BAICHUAN_13B, "pytorch_model.bin"),
    ):
        index = json.loads((folder(root, name) / f"{kind}.index.json").read_text())
        assert {file.name for file in folder(root, name).glob(f"*{kind.split('.')[1]}")} >= set(
            index["weight_map"].values()
        )
        assert index["metadata"]["total_size"] > 0
    llama = {}
    for file in folder(root, tiny_models.LLAMA_7B).glob("*.safetensors"):
        llama |= load_file(file)
    assert llama["model.layers.3.self_attn.rotary_emb.inv_freq"].dtype == torch.float32
    assert llama["lm_head.weight"].dtype == torch.float16
    baichuan = {}
    for file in folder(root, tiny_models.BAICHUAN_13B).glob("*.bin"):
        baichuan |= torch.load(file, weights_only=True)
    assert baichuan["model.layers.4.self_attn.W_pack.weight"].shape == (3 * 96, 96)
    assert not any("q_proj" in name for name in baichuan) and baichuan["lm_head.weight"].dtype == torch.bfloat16
    lengths = baichuan["lm_head.weight"].float().norm(dim=1)
    assert lengths.max() > 3 * lengths.min()
    rwkv = torch.load(folder(root, tiny_models.RWKV) / "pytorch_model.bin", weights_only=True)
    assert rwkv["rwkv.embeddings.weight"].shape == (65536, 32) and "rwkv.blocks.0.pre_ln.weight" in rwkv


def test_the_gptq_file_holds_the_tiny_llama(root):
    identity = identify(root, tiny_models.GPTQ)
    assert checkpoints.quantization_method(identity) == "gptq" and identity.num_hidden_layers == 4
    packed = load_file(folder(root, tiny_models.GPTQ) / "model.safetensors")
    dense = {}
    for file in folder(root, tiny_models.LLAMA_7B).glob("*.safetensors"):
        dense |= load_file(file)
    name, size = "model.layers.2.mlp.down_proj", tiny_models.GROUP_SIZE
    words = packed[f"{name}.qweight"].long()
    steps = torch.stack([words >> 4 * i & 15 for i in range(8)], 1).flatten(0, 1) - 8  # (in, out)
    unpacked = (steps * packed[f"{name}.scales"].float().repeat_interleave(size, 0)).T
    weight = dense[f"{name}.weight"].float()
    assert unpacked.shape == weight.shape
    assert (unpacked - weight).norm() < 0.12 * weight.norm()
    assert torch.equal(packed["lm_head.weight"], dense["lm_head.weight"])
    if find_spec("gptqmodel") and find_spec("optimum"):
        ids = torch.arange(10, 200)[None]
        ours = loading.load(identity)(ids).logits.float()
        theirs = loading.load(identify(root, tiny_models.LLAMA_7B))(ids).logits
        assert (ours - theirs).square().mean() < theirs.square().mean()


def test_it_is_the_same_every_time_and_small(root, tmp_path):
    tiny_models.write(tmp_path)
    files = {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    again = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert files.keys() == again.keys() and not [name for name in files if files[name] != again[name]]
    assert sum(map(len, files.values())) < 40e6


def test_code_from_the_hub_fails(root):
    code = list((root / "models").rglob("*.py"))
    assert len(code) == 13 and {file.read_text() for file in code} == {tiny_models.NO_CODE}
