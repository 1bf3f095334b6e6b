"""What a model family needs is said in one file, found by itself; nothing else asks which family a model is of."""

import ast
import subprocess
import sys
import textwrap
from collections import Counter

import pytest
import torch
import transformers as tf

import tiny_models
from layer_redundancy.config import profiles
from layer_redundancy.core import paths
from layer_redundancy.models import architectures, checkpoints, loading, surgery
from layer_redundancy.models.checks import check_stack
from layer_redundancy.models.stack import decoder_stack

MADE_UP_FAMILY = '''
"""Parrot: a block's mixer averages over what came before; blocks return tuples."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from layer_redundancy.models.architectures import Architecture, Attention


class ParrotConfig(PreTrainedConfig):
    model_type = "parrot"

    vocab_size: int = 97
    hidden_size: int = 16
    num_hidden_layers: int = 5
    num_attention_heads: int = 4


class Mixer(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.values, self.mix = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, hidden):
        counts = torch.arange(1, hidden.shape[1] + 1)[:, None]
        return self.mix(torch.tanh(self.values(hidden.cumsum(1) / counts))), None


class Perch(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.mixer = Mixer(size)

    def forward(self, hidden, seen=None):
        return hidden + self.mixer(hidden)[0], seen


class ParrotPreTrained(PreTrainedModel):
    config: ParrotConfig
    base_model_prefix = "nest"


class Parrot(ParrotPreTrained):
    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.perches = nn.ModuleList(Perch(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.last_norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, use_cache=None, **_):
        hidden, seen = self.words(input_ids), None
        for perch in self.perches:
            hidden, seen = perch(hidden, seen)
        return BaseModelOutput(self.last_norm(hidden))


class ParrotForCausalLM(ParrotPreTrained):
    def __init__(self, config):
        super().__init__(config)
        self.nest, self.beak = Parrot(config), nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.nest.words

    def get_output_embeddings(self):
        return self.beak

    def forward(self, input_ids, use_cache=None, **_):
        return CausalLMOutput(logits=self.beak(self.nest(input_ids).last_hidden_state))


class Birds(Architecture):
    def register(self):
        AutoConfig.register("parrot", ParrotConfig, exist_ok=True)
        AutoModelForCausalLM.register(ParrotConfig, ParrotForCausalLM, exist_ok=True)

    def tokenizer(self, name, source, revision, config):
        from layer_redundancy.models.rwkv5.tokenizer import RwkvWorldTokenizer

        return RwkvWorldTokenizer()


ARCHITECTURE = Birds(
    model_types=("parrot",),
    attentions=(Attention("mixer", "mix"),),
)
'''


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """The made-up family's module, beside those of the study."""
    name = f"{architectures.__name__}.parrot"
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "parrot.py").write_text(MADE_UP_FAMILY)
    monkeypatch.setattr(architectures, "__path__", [*architectures.__path__, str(tmp_path / "families")])
    architectures.known.cache_clear()
    architectures.known()
    yield sys.modules[name]
    architectures.known.cache_clear()
    del sys.modules[name], architectures.parrot


def test_a_new_family_takes_one_file(made_up, tmp_path):
    architectures.register()
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(made_up.ParrotConfig())
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "polly")
    identity = checkpoints.identify(profiles.get("smoke", model=str(tmp_path / "polly")))
    assert (identity.num_hidden_layers, identity.num_attention_heads) == (5, 4)
    loaded, ids = loading.load(identity), tiny_models.tokens()
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert checkpoints.block_weights(identity)[1] == 4 * 4 * 16
    assert loading.load_tokenizer(identity)("a b").input_ids

    stack = decoder_stack(loaded)
    hidden, calls = stack.start(ids)
    for block in (0, 2, 4):
        hidden = stack.run_block(block, hidden, calls)
    with surgery.without_layers(loaded, [1, 3]):
        torch.testing.assert_close(stack.logits(hidden), loaded(ids).logits)
    with surgery.without_head(loaded, 2, 1):
        silenced = loaded(ids).logits
    folder = surgery.export(loaded, None, [1], tmp_path / "pruned")
    assert len(decoder_stack(loading.load(checkpoints.identify(profiles.get("smoke", model=str(folder)))))) == 4
    stack.blocks[2].mixer.mix.weight[:, 4:8] = 0
    torch.testing.assert_close(loaded(ids).logits, silenced)


def test_without_its_file_it_is_not_known():
    assert not any("parrot" in architecture.model_types for architecture in architectures.known())


def test_no_two_families_claim_a_model():
    claims = Counter(kind for architecture in architectures.known() for kind in architecture.model_types)
    assert set(claims.values()) == {1}


def test_a_family_without_a_file_is_taken_apart():
    torch.manual_seed(0)
    config = tf.OlmoConfig(**tiny_models.COMMON)
    model = loading.prepare(tf.AutoModelForCausalLM.from_config(config))
    assert architectures.find(config).model_types == ()
    check_stack(model)
    stack, dense = decoder_stack(model), model(tiny_models.tokens()).logits
    assert stack.blocks is model.model.layers and stack.final == (model.model.norm,)
    with surgery.without_head(model, 2, 1):
        assert not torch.equal(model(tiny_models.tokens()).logits, dense)


@pytest.mark.slow
def test_importing_a_familys_package_makes_transformers_know_it():
    code = "from transformers import CONFIG_MAPPING\nkinds = ['rwkv5', 'baichuan']\n"
    for package in ("rwkv5", "baichuan"):
        code += f"import layer_redundancy.models.{package}\nprint([kind for kind in kinds if kind in CONFIG_MAPPING])\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["['rwkv5']", "['rwkv5', 'baichuan']"], done.stderr


# ------------------------------------------------------------------------------------------------ who may ask


def questions(code: str) -> list[str]:
    """Where code reads a config's model type other than to write it in a message, or compares a class's name."""
    tree = ast.parse(code)
    written = {node for text in ast.walk(tree) if isinstance(text, ast.JoinedStr) for node in ast.walk(text)}
    found = []
    for node in ast.walk(tree):
        reads = isinstance(node, ast.Attribute) and node.attr == "model_type" and isinstance(node.ctx, ast.Load)
        gets = isinstance(node, ast.Call) and any(
            isinstance(argument, ast.Constant) and argument.value == "model_type" for argument in node.args
        )
        names = isinstance(node, ast.Compare) and any(
            isinstance(part, ast.Attribute) and part.attr == "__name__" and ast.unparse(part.value).startswith("type(")
            for part in ast.walk(node)
        )
        if (reads and node not in written) or gets or names:
            found.append(ast.unparse(node))
    return found


def test_only_architectures_ask_which_family_a_model_is_of():
    package = paths.ROOT / "src" / "layer_redundancy"
    own = package / "models" / "architectures"
    errors = package / "data" / "hub.py"  # names an error of `datasets` that it must not import
    files = [file for file in package.rglob("*.py") if own not in file.parents and file != errors]
    assert len(files) > 60, "the search is too narrow"
    found = {str(file.relative_to(package)): asked for file in files if (asked := questions(file.read_text()))}
    assert found == {}


@pytest.mark.parametrize(
    "code",
    [
        "if model.config.model_type == 'rwkv': pass",
        "kind = config.model_type",
        "config.model_type.startswith('x')",
        "getattr(config, 'model_type', None)",
        "type(block).__name__ == 'RwkvBlock'",
    ],
)
def test_such_questions_are_found(code):
    assert questions(code)
    assert not questions("message = f'{config.model_type} {type(model).__name__}'")
    assert not questions(textwrap.dedent("class Config:\n    model_type = 'x'"))
