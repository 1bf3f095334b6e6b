"""Runs the experiments of a profile dry, model by model."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from layer_redundancy.config import own_files, profiles, sources
from layer_redundancy.config.profiles import ACROSS, Profile, TaskBudget
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import flags
from layer_redundancy.core.errors import DoesNotFit, NotApplicable, StudyError
from layer_redundancy.data import hub, task_files
from layer_redundancy.evaluate.amounts import Training
from layer_redundancy.experiments import registry
from layer_redundancy.models import architectures, checkpoints, embedded, loading
from layer_redundancy.models.stack import can_share_prefixes
from layer_redundancy.planning import counts
from layer_redundancy.planning.dry import DryStudy, Ledger, Needs, open_dry


@flags.checked
def config_of(model: str, revision: str | None, trust_remote_code: bool = False) -> Any:
    """A model's config: from its folder, the hub or its cache; else from what `sources` knows of its shape.

    Nothing is fetched for it but a config: of a model inside packages that is not here its shape is known.

    Raises:
        StudyError: none of these has it.
    """
    from transformers import AutoConfig

    known = sources.MODELS.get(model)
    if known is not None and known.shape and not hub.answers() and not hub.model_is_here(model, revision):
        architectures.register()
        return AutoConfig.for_model(**dict(known.shape))
    packaged = embedded.MODELS.get(model)
    if packaged is not None and packaged.shape and not embedded.is_here(model):
        return AutoConfig.for_model(**dict(packaged.shape))
    try:
        identity = checkpoints.identify(
            replace(profiles.get("embedded", model=model), revision=revision, trust_remote_code=trust_remote_code)
        )
        return checkpoints.config(identity)
    except StudyError:
        if known is None or not known.shape:
            raise
    architectures.register()
    return AutoConfig.for_model(**dict(known.shape))


@dataclass(frozen=True)
class Planner:
    """Runs a profile's experiments dry.

    Attributes:
        profile: the profile, with the user's own model in place if there is one.
        fits: whether a device's memory suffices for a training of a model, by its name.
        count: counts a benchmark's tokens with a model's tokenizer, where nothing is known of them; None to leave that.
        needs: model -> what it reads, for all studies that were opened.
    """

    profile: Profile
    fits: Callable[[str, Training], bool] = lambda model, training: True
    count: Callable[[str, TaskBudget], Amount] | None = None
    needs: dict[str, Needs] = field(default_factory=dict)

    def study(self, model: str, profile: Profile | None = None, ledger: Ledger | None = None) -> DryStudy:
        """A dry study of a model: the profile's own or a further one, or the one beside it on its own profile."""
        changed = self.profile if model == self.profile.model else profiles.for_model(self.profile, model)
        profile = profile or replace(changed, model=model, revision=counts.revision(self.profile, model))
        config = config_of(model, profile.revision, profile.trust_remote_code)
        identity = checkpoints.identity_of(
            config, profile, model, profile.revision or "", f"{model}@{profile.revision}"
        )
        known = counts.amounts(model)[0]

        def amount_of(what: TaskBudget | str) -> Amount | None:
            name = what if isinstance(what, str) else what.name
            if name not in known and self.count is not None and not isinstance(what, str):
                known[name] = self.count(model, what)
            return known.get(name)

        return open_dry(
            profile,
            identity,
            cache(amount_of),
            ledger,
            keeps_prefixes=keeps_prefixes(config),
            other=self.study,
            needs=self.needs.setdefault(model, Needs()),
            fits=lambda training: self.fits(model, training),
        )

    def models(self) -> dict[str, tuple[str, ...]]:
        """The models that the profile's notebooks run on, each with the numbers of those that it has."""
        every = tuple(one for one in registry.numbers() if one != ACROSS)
        if not self.profile.is_own_model:
            return {self.profile.model: every}
        return {model: every if of is None else of for model, of in self.profile.studied.items()}

    def runs(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """A model and the numbers of notebooks that run on it, in order: last the notebook that compares models."""
        yield from self.models().items()
        if self.profile.is_own_model and len(self.profile.studied) > 1:
            yield self.profile.model, (ACROSS,)

    def pages(
        self, model: str, notebooks: Sequence[str], after: Ledger | None = None
    ) -> Iterator[tuple[str, DryStudy]]:
        """A notebook's number and its dry study, whose ledger lists what the notebook asks for.

        Args:
            model: one of `models`.
            notebooks: numbers of the notebooks, in order; each is spared what those before it have stored.
            after: what notebooks of other models before them have stored.
        """
        study = self.study(model, ledger=after)
        page = study.ledger
        for number in notebooks:
            page = page.page()
            one = replace(study, ledger=page)
            try:
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    registry.by_number(number).measure(one)
            except (NotApplicable, DoesNotFit) as error:
                page.left_out.append(str(error))
            yield number, one


def keeps_prefixes(config: Any) -> bool:
    """Whether a model of this config runs the beginning that prompts share once."""
    with checkpoints.shapes_of(config) as model:
        return can_share_prefixes(model)


def count_here(profile: Profile, model: str, budget: TaskBudget) -> Amount:
    """What a benchmark that needs no hub puts through a model, counted now.

    Of a model inside packages that is not here it is about what the profile's own model takes.
    """
    if model in embedded.MODELS and not embedded.is_here(model):
        model = profiles.EMBEDDED_MODEL
    identity = checkpoints.identify(replace(profile, model=model, revision=counts.revision(profile, model)))
    tokenizer = loading.load_tokenizer(identity)
    own = task_files.read(budget.name).config if own_files.is_own_task(budget.name) else {}
    if own.get("output_type") == "generate_until":
        return counts.count_written(budget, tokenizer, profile.seed, profile.trust_tasks)
    return counts.count(budget, tokenizer, profile.seed, identity.max_length, profile.trust_tasks)
