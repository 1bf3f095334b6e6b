"""Removing blocks and heads from a transformers model, for a while or for good."""

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from layer_redundancy.core import cache, variants
from layer_redundancy.core.arguments import shown, whole
from layer_redundancy.core.errors import StudyError
from layer_redundancy.models import architectures, checkpoints, packing, provenance, pruned_config
from layer_redundancy.models.stack import decoder_stack, head_slice, output_projection, prepare, renumber


@contextmanager
def without_layers(model: nn.Module, removed: Iterable[int]) -> Iterator[nn.Module]:
    """The same model with some blocks removed, restored on exit and on error.

    Inside, the model is consistent: plain forward, generation with a cache, and `decoder_stack` all see the kept blocks
    only. `layer_idx` is renumbered (a cache would otherwise have holes), `num_hidden_layers` and every per-layer list
    of the config keep the entries *of the kept blocks*.

    Args:
        model: a causal language model that `decoder_stack` takes apart.
        removed: indices of blocks to remove.

    Raises:
        StudyError: see `variants.without`; or none of the model's blocks can go.
    """
    with ExitStack() as restored:
        _cut(model, removed, restored)
        yield model


def cut(model: nn.Module, removed: Iterable[int]) -> nn.Module:
    """Removes blocks for good, and lets go of their weights; arguments and errors as `without_layers`."""
    _cut(model, removed, ExitStack())
    return model


def _cut(model: nn.Module, removed: Iterable[int], restored: ExitStack) -> None:
    """Removes blocks; `restored` gets what puts them back."""
    stack = decoder_stack(model)
    blocks = list(stack.blocks)
    kept = variants.without(len(blocks), removed)
    first = blocks[0], blocks[kept[0]]
    flags = [m for m in model.modules() if "has_sliding_layers" in vars(m)]
    config_changes = list(pruned_config.changes(model.config, kept, len(blocks)))
    steps = provenance.removed_from(model)
    restored.callback(setattr, model, "removed_steps", steps)
    if gone := list(variants.removed_blocks(len(blocks), kept)):
        check_blocks_can_go(model.config, f"a {type(model).__name__}")
        model.removed_steps = [*steps, gone]

    stack.architecture.replace_first_block(*first)
    restored.callback(stack.architecture.replace_first_block, *first[::-1])
    restored.callback(_set_blocks, stack.blocks, blocks)
    _set_blocks(stack.blocks, [blocks[i] for i in kept])
    for module, name, old in renumber(stack.blocks):
        restored.callback(setattr, module, name, old)
    for config, name, old, new in config_changes:
        restored.callback(setattr, config, name, old)
        setattr(config, name, new)
    for module in flags:
        restored.callback(setattr, module, "has_sliding_layers", module.has_sliding_layers)
        module.has_sliding_layers = "sliding_attention" in module.config.layer_types


def check_blocks_can_go(config: Any, name: str) -> None:
    """Raises StudyError where no block of models of this config can be removed."""
    if not architectures.find(config).blocks_can_go:
        raise StudyError(
            f"no block of {name} can be removed: each reads the residual stream in the basis in which the one before "
            "leaves it"
        )


def _set_blocks(container: nn.ModuleList, blocks: list[nn.Module]) -> None:
    # In place, so that whoever holds the ModuleList (a stack, a hook) goes on seeing the model's blocks.
    container._modules.clear()
    container._modules.update({str(i): block for i, block in enumerate(blocks)})


@contextmanager
def without_head(model: nn.Module, layer: int, head: int) -> Iterator[nn.Module]:
    """The same model without one query head of one block's attention, restored on exit and on error.

    What the head hands to the output projection is set to zero (ShortGPT 4.2): the shape stays, the head's contribution
    is gone, and weights in any format, quantized ones too, stay untouched. With grouped-query attention the head's keys
    and values are shared with other query heads and stay.

    Args:
        model: a causal language model whose blocks have attention.
        layer: index of the block.
        head: index of the query head, 0 to num_attention_heads - 1.

    Raises:
        StudyError: no such block or head, or the block has no attention heads.
    """
    stack, head = decoder_stack(model), whole(head, "a head")
    if not 0 <= whole(layer, "a block") < len(stack):
        raise StudyError(f"block {layer} is out of range: the model has blocks 0 to {len(stack) - 1}")
    part = head_slice(stack, layer, head)

    def silence(_: nn.Module, args: tuple) -> tuple:
        heads = args[0].clone()
        heads[..., part] = 0
        return (heads, *args[1:])

    handle = output_projection(stack, layer).register_forward_pre_hook(silence)
    try:
        yield model
    finally:
        handle.remove()


def export(
    model: nn.Module,
    tokenizer: Any,
    removed: Iterable[int],
    folder: Path,
    files: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Writes the model without some blocks as a checkpoint that plain transformers loads; quantized weights packed.

    A Baichuan-7B is written as the Llama that it is. Other tools need `layer_redundancy.models.rwkv5` imported to load
    an RWKV-5, `layer_redundancy.models.baichuan` to load a Baichuan-13B or either one's tokenizer, and
    `layer_redundancy.models.sliced` or `.uneven` to load a sliced model or one whose blocks differ in width
    (`own_module` says which).

    The checkpoint is written beside `folder`, loaded again, its logits compared with those of the model in memory, and
    renamed only then: a folder that exists is a checkpoint that works.

    Args:
        model: a causal language model that `decoder_stack` takes apart.
        tokenizer: the tokenizer to save with it; None to leave it out.
        removed: indices of blocks to remove; may be empty.
        folder: the folder to write; it must not exist.
        files: name -> text of what goes into it besides.

    Returns:
        The folder. It also holds `layer_redundancy.json` with all that `provenance.note` knows of the model, the blocks
        removed by earlier exports too.

    Raises:
        StudyError: the folder exists, cannot be written, or the reloaded model gives other logits; the weights are
            those of a ready GPTQ checkpoint; transformers cannot write such a model.
    """
    folder, removed = cache.new_path(folder), variants.indices(removed)
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise StudyError(f"{shown(model)} is no model of transformers: give one such as study.stack.model")
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise StudyError(f"{shown(tokenizer)} is no tokenizer: give one such as study.tokenizer, or None")
    check_writable(getattr(getattr(model.config, "quantization_config", None), "quant_method", ""))
    earlier, made_by, given = provenance.removed_from(model), provenance.made_by(model), type(model).__name__
    model = architectures.find(model.config).exported(model)
    model.removed_steps, model.made_by = earlier, made_by
    with cache.scratch_beside(folder) as scratch:
        temporary = scratch / folder.name
        try:
            _write(model, tokenizer, removed, temporary, files)
        except StudyError:
            raise
        except Exception as e:  # whatever transformers, or a library for quantized weights, does not know how to write
            if cache.of_the_disk(e):
                raise
            reason = " ".join(str(e).split())[:200]
            raise StudyError(
                f"transformers cannot write {given} as a checkpoint ({type(e).__name__}{': ' * bool(reason)}{reason}): "
                "prune and export the full-precision model"
            ) from e
        temporary.rename(folder)
    return folder


def own_module(one: Any) -> str:
    """The module of ours by which transformers knows the class of a model or tokenizer; "" where it knows it anyway."""
    parts = type(one).__module__.split(".")
    return ".".join(parts[:3]) if parts[:2] == ["layer_redundancy", "models"] else ""


def check_writable(method: str | None) -> None:
    """Raises StudyError for weights that are quantized by a method whose checkpoints cannot be written again."""
    if method in ("gptq", "awq"):  # their libraries rearrange the weights for the device when they load them
        raise StudyError(
            f"{method.upper()} weights as they lie in memory cannot be written again: quantize the full-precision "
            "model here (quantize.quantized) and export that"
        )


def _write(model: nn.Module, tokenizer: Any, removed: Iterable[int], folder: Path, files: Mapping[str, str]) -> None:
    """Writes a checkpoint without some blocks, and compares what is read again with the model in memory."""
    with without_layers(model, removed):
        with packing.packed(model) as tensors, _savable(model):
            # By the modules' own names: packed weights that it renames, transformers loads in the file's dtype.
            quantized = {} if tensors is None else {"state_dict": tensors, "save_original_format": False}
            model.save_pretrained(folder, **quantized)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        provenance.copy_processors(model, folder)
        note = provenance.note(model, len(decoder_stack(model)))
        (folder / provenance.NOTE).write_text(json.dumps(note, indent=1))
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        _check_export(model, folder)


@contextmanager
def _savable(model: nn.Module) -> Iterator[None]:
    """The model as save_pretrained takes it; nothing of that, nor what save_pretrained notes, stays in the caller's."""
    config, generation = model.config, getattr(model, "generation_config", None)
    conversions = getattr(model, "_weight_conversions", None)
    model.config = copy.deepcopy(config)
    if generation is not None:
        model.generation_config = _valid(generation)
    for name in model.config._get_generation_parameters():  # the user's, of whom save_pretrained wants them elsewhere
        delattr(model.config, name)
    if conversions:  # what the loading of ready quantized weights did is no conversion of the model's own
        model._weight_conversions = [one for one in conversions if _reversible(one)]
    try:
        yield
    finally:
        model.config = config
        if generation is not None:
            model.generation_config = generation
        if conversions:
            model._weight_conversions = conversions


def _reversible(conversion: Any) -> bool:
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True


def _valid(generation: Any) -> Any:
    """A copy of settings for generation, without what transformers refuses to save.

    Published checkpoints have settings from before it checked them: Llama and Vicuna's temperature without do_sample.
    """
    ours, usual = copy.deepcopy(generation), type(generation)()
    for _ in range(len(vars(ours))):
        try:
            ours.validate(strict=True)
            return ours
        except ValueError as error:
            named = re.findall(r"`(\w+)`", str(error))
        if "do_sample" in named and ours.do_sample is None:
            ours.do_sample = True  # there is something to sample by, and nothing that says not to
            continue
        wrong = [name for name in named if hasattr(ours, name) and getattr(ours, name) != getattr(usual, name, None)]
        if not wrong:
            return ours  # save_pretrained will say what is wrong
        if hasattr(usual, wrong[0]):
            setattr(ours, wrong[0], getattr(usual, wrong[0]))
        else:
            delattr(ours, wrong[0])
    return ours


def _check_export(model: nn.Module, folder: Path) -> None:
    stack = decoder_stack(model)
    ids = torch.arange(3, 19, device=stack.device)[None] * 5 % model.get_input_embeddings().weight.shape[0]
    sharded = len(set(getattr(model, "hf_device_map", {}).values())) > 1
    place = "auto" if sharded else {"": stack.device}
    with checkpoints.hub_errors(f"the exported checkpoint of {type(model).__name__}"):
        quantized = packing.layers(model)
        options = packing.unpacked() if quantized else {}
        with packing.quietly() if quantized else nullcontext():
            reloaded = type(model).from_pretrained(folder, dtype=model.dtype, device_map=place, **options)
        if quantized and not sharded:  # as the model in memory is: rounding is the same in both
            packing.plain(reloaded)
        prepare(reloaded)
        with torch.no_grad():
            ours, theirs = (m(input_ids=ids, use_cache=False).logits.float().cpu() for m in (model, reloaded))
    if not torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4):
        found = next(_differences(model, reloaded), "no setting or weight that differs was found")
        raise StudyError(
            f"{type(model).__name__} cannot be exported without these blocks: {found}, so that it gives other logits "
            f"(largest difference {(ours - theirs).abs().max().item():.3g}); its config cannot say it"
        )


def _differences(model: nn.Module, reloaded: nn.Module) -> Iterator[str]:
    """What blocks have after they are written and read again that they did not have before."""
    for name, value in model.config.get_text_config(decoder=True).to_dict().items():
        new = getattr(reloaded.config.get_text_config(decoder=True), name, None)
        if isinstance(value, list | tuple) and list(value) != list(new or []):
            yield f"when it is read again, {name} is {new}, not {value}"
    stack, other = decoder_stack(model), decoder_stack(reloaded)
    for i, (before, after) in enumerate(zip(stack.blocks, other.blocks, strict=False)):
        there = dict(after.named_modules())
        for name, module in before.named_modules():
            where = f"block {i} of those kept" + f", {name}" * bool(name)
            if type(there.get(name)) is not type(module):
                new = type(there[name]).__name__ if name in there else "gone"
                yield f"{where}: when it is read again, {type(module).__name__} is {new}"
                continue
            for key, value in vars(module).items():
                new = vars(there[name]).get(key, value)
                if isinstance(value, bool | int | float | str) and not key.startswith("_") and new != value:
                    yield f"{where}: when it is read again, {key} is {new}, not {value}"
        if missing := set(there) - {name for name, _ in before.named_modules()}:
            yield f"block {i} of those kept: when it is read again, it has {sorted(missing)[0]} too"
