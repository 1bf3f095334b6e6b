"""Which parameters of a model's blocks are weight matrices: linear layers' own, and those of experts in one tensor."""

from torch import nn


def stacks(module: nn.Module) -> list[str]:
    """Names of a module's own parameters that hold one matrix for each expert (or head): (experts, ., .).

    transformers keeps all experts of a block like this, where each once had linear layers of its own.
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        return []
    own = module.named_parameters(recurse=False)
    return [name for name, p in own if p.ndim == 3 and min(p.shape) > 1 and p.is_floating_point()]


def stacked_biases(module: nn.Module) -> list[str]:
    """Names of a module's own parameters that hold one bias for each expert (or head): (experts, .)."""
    experts = {module.get_parameter(name).shape[0] for name in stacks(module)}
    return [name for name, p in module.named_parameters(recurse=False) if p.ndim == 2 and p.shape[0] in experts]


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether a parameter has two dimensions or more that are longer than one: norms, biases and factors have not."""
    return sum(length > 1 for length in parameter.shape) > 1
