"""A model that a method makes of another: what decides it, and what it takes to make it."""

import hashlib
import json
import time
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from layer_redundancy.core import devices
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.methods import registry
from layer_redundancy.methods.method import Plan
from layer_redundancy.models import loading
from layer_redundancy.models.checkpoints import ModelIdentity

RULES_VERSION = 1  # raise it when a method makes another model of the same text and plan


@dataclass(frozen=True, eq=False)
class Making:
    """All that decides a model that a method makes.

    Attributes:
        identity: identity of the whole model.
        dtype: dtype of its weights.
        device: a device that `loading.load` takes.
        method: name of the method in `methods.registry`.
        plan: one of its plans for the model.
        text: calibration text.
    """

    identity: ModelIdentity
    dtype: str
    device: str
    method: str
    plan: Plan
    text: TokenBlocks

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the model, as JSON-compatible values; another value is another model."""
        return {
            "model": self.identity.fingerprint,
            "method": self.method,
            "plan": dict(self.plan.settings),
            "text": self.text.fingerprint,
            "rules": RULES_VERSION,
        }

    @property
    def made_identity(self) -> ModelIdentity:
        """Identity of the smaller model in the store."""
        fingerprint = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
        title = registry.find(self.method).card.title
        return replace(
            self.identity,
            name=f"{self.identity.name}, {title}, {100 * self.plan.removed:.1f} % of the weights removed",
            fingerprint=fingerprint,
            num_hidden_layers=self.identity.num_hidden_layers - self.plan.blocks,
        )

    def build(self) -> tuple[nn.Module, float]:
        """The smaller model, and the seconds that the method took, without loading.

        Raises:
            StudyError: as `loading.load`, and as the method says.
        """
        model = loading.load(self.identity, self.dtype, self.device)
        device = next(model.parameters()).device
        start = time.perf_counter()
        model = self._applied(model)
        devices.synchronize(device)
        return model, time.perf_counter() - start

    def counted(self) -> tuple[nn.Module, int]:
        """The smaller model, and the most bytes of tensors held at once while it was made, weights included.

        On a processor they are counted operation by operation, which takes time.
        """
        model = loading.load(self.identity, self.dtype, self.device)
        with devices.tensor_peak(model) as peak:
            return self._applied(model), peak()

    def _applied(self, model: nn.Module) -> nn.Module:
        made = registry.find(self.method).apply(model, self.text, self.plan)
        made_by = {"method": self.method, "settings": dict(self.plan.settings), "text": self.text.fingerprint}
        made.made_by = [made_by]  # for `provenance.note`
        return made
