"""What a study reads: texts and benchmark items as tokens of its model's tokenizer, each made when first needed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np

from layer_redundancy.config import own_files
from layer_redundancy.config.profiles import Profile, TaskBudget, TextBudget, TrainingBudget
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import benchmark_items, classification_sets, corpora
from layer_redundancy.data.classification_sets import LabelledPrompts, PromptChoice
from layer_redundancy.data.corpora import TokenBlocks, TrainingText
from layer_redundancy.data.tokens import prepends_bos
from layer_redundancy.evaluate.scoring import ChoiceTask, Passages, Perplexity
from layer_redundancy.models import loading
from layer_redundancy.models.checkpoints import ModelIdentity


@dataclass(frozen=True, eq=False)
class Inputs:
    """The texts and tasks of a profile for one model; models that are made of it share them.

    Attributes:
        profile: decides which texts and tasks, and how much of each.
        identity: the model whose tokenizer and longest input are used.
    """

    profile: Profile
    identity: ModelIdentity

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return loading.load_tokenizer(self.identity)

    def text(self, split: corpora.Split, **changes: Any) -> TokenBlocks:
        """A split of the profile's corpus in blocks, with some fields of the profile's text budget changed."""
        self._check_length(self.profile.text.block_length, f"the {self.profile.name} profile's blocks of text", "text")
        return self.token_blocks(replace(self.profile.text, **changes), split)

    def calibration_parts(self, blocks: int, most: int) -> list[TokenBlocks]:
        """Parts of the calibration text that have no block in common, the first the text's own beginning.

        Args:
            blocks: blocks of each part.
            most: number of parts, fewer where the corpus has less text than that.

        Raises:
            StudyError: it has less than one.
        """
        budget = replace(self.profile.text, calibration_blocks=blocks * most)
        text = self.token_blocks(budget, "calibration", blocks)
        parts = text.input_ids[: len(text.input_ids) // blocks * blocks].split(blocks)
        names = [text.corpus, *(f"{text.corpus}, part {number}" for number in range(2, len(parts) + 1))]
        return [replace(text, input_ids=part, corpus=name) for part, name in zip(parts, names, strict=True)]

    def _check_length(self, length: int, what: str, table: str) -> None:
        """Raises StudyError for blocks of text that are longer than the model takes."""
        limit = self.identity.max_length
        if limit is not None and length > limit:
            raise StudyError(
                f"{self.identity.name} takes {limit} tokens, {what} have {length}: set a smaller block_length under "
                f"[{table}] in a profile of your own"
            )

    @cached_property
    def token_blocks(self) -> Callable[..., TokenBlocks]:
        """A split of a corpus in blocks, for its budget; with a third argument, so many will do where it has fewer."""
        return cache(self._token_blocks)

    @cached_property
    def calibration(self) -> TokenBlocks:
        """Text from which importance is measured."""
        return self.text("calibration")

    @cached_property
    def evaluation(self) -> TokenBlocks:
        """Text on which perplexity is measured; no article of it is in the calibration text."""
        return self.text("evaluation")

    @cached_property
    def perplexity(self) -> Perplexity:
        """Perplexity of the evaluation text."""
        return Perplexity(self.evaluation)

    def same_text(self, other: "Inputs") -> Perplexity | Passages:
        """The evaluation text of another model in this one's tokens, passage by passage.

        Each passage is read as the other reads it, from its first letter to its last, so that costs a byte can be
        compared. The first token of each is not scored, unless it is the beginning-of-sequence token.

        Raises:
            StudyError: a passage that is longer than this model takes.
        """
        return self._passages(other)

    @cached_property
    def perplexity_on(self) -> Callable[[str], Perplexity]:
        """Perplexity of the evaluation split of another corpus; the profile's own if "" or its name is given."""
        return cache(self._perplexity_on)

    def _perplexity_on(self, corpus: str) -> Perplexity:
        text = self.profile.text
        if corpus in ("", text.corpus):
            return self.perplexity
        blocks = self._packed_blocks(corpus, "evaluation", text.block_length, text.evaluation_blocks)
        return Perplexity(blocks, name=f"perplexity/{own_files.corpus_name(corpus)}")

    @cached_property
    def tasks(self) -> list[ChoiceTask]:
        """The profile's tasks, which are measured on every variant of a sweep."""
        return [self.task(budget) for budget in self.profile.tasks]

    @cached_property
    def task(self) -> Callable[[TaskBudget], ChoiceTask]:
        """A multiple-choice benchmark's items, for its budget."""
        return cache(self._task)

    @cached_property
    def token_counts(self) -> np.ndarray:
        """How often each token is in the calibration articles of the profile's corpus; (V,) int64."""
        return self._token_counts()

    @cached_property
    def training_text(self) -> Callable[[TrainingBudget, int], TokenBlocks]:
        """The calibration text that a budget trains on with a seed, its held-out blocks last.

        Of corpora of short documents (C4, Alpaca) it is the same whatever the seed.
        """
        return cache(self._training_text)

    def _training_text(self, budget: TrainingBudget, seed: int) -> TokenBlocks:
        self._check_length(budget.block_length, "the blocks to train on", "budgets.healing.training")
        corpus, length = budget.corpus or self.profile.text.corpus, budget.block_length
        count = budget.steps * budget.batch
        if corpus in corpora.PACKED:
            if seed:
                return self.training_text(budget, 0)
            return self._packed_blocks(corpus, "calibration", length, count + budget.held_out)
        return self._training_blocks(corpus, length, count, budget.held_out, seed)

    @cached_property
    def _trainable(self) -> Callable[[str, int, int], TrainingText]:
        """A corpus's blocks of a length that may be trained on, and so many held out; tokenised once for all seeds."""
        return cache(lambda corpus, length, held_out: corpora.training_text(corpus, self.tokenizer, length, held_out))

    def trained_on(self, budget: TrainingBudget) -> str:
        """The corpus that a budget trains on, as captions name it."""
        return own_files.corpus_name(budget.corpus or self.profile.text.corpus)

    @cached_property
    def training_counts(self) -> Callable[[TrainingBudget], np.ndarray]:
        """How often each token is in what a budget may train on, (V,) int64; held-out articles are not in it."""
        return cache(self._training_counts)

    @cached_property
    def prompts_to_classify(self) -> Callable[[PromptChoice], LabelledPrompts]:
        """Labelled texts as prompts, to tune on and to judge on."""
        return cache(self._prompts_to_classify)

    # What reads files; a plan has these from what it knows.

    def _token_blocks(self, budget: TextBudget, split: corpora.Split, least: int | None = None) -> TokenBlocks:
        return corpora.token_blocks(budget, self.tokenizer, split, least)

    def _passages(self, other: "Inputs") -> Perplexity | Passages:
        read = other.evaluation
        rows = read.input_ids[:, 1:] if read.bos else read.input_ids
        texts = [other.tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in rows.tolist()]
        prefix = (self.tokenizer.bos_token_id,) if prepends_bos(self.tokenizer) else ()
        found = self.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
        pieces = tuple((*prefix, *ids) for ids in found)
        self._check_length(
            max(map(len, pieces)), f"the {self.profile.name} profile's blocks of text in its tokens", "text"
        )
        return Passages(pieces)

    def _packed_blocks(self, corpus: str, split: corpora.Split, length: int, count: int) -> TokenBlocks:
        return corpora.packed_blocks(corpus, self.tokenizer, split, length, count)

    def _token_counts(self) -> np.ndarray:
        return corpora.token_counts(self.profile.text.corpus, self.tokenizer)

    def _training_blocks(self, corpus: str, length: int, count: int, held_out: int, seed: int) -> TokenBlocks:
        return self._trainable(corpus, length, held_out).of_seed(count, seed)

    def _training_counts(self, budget: TrainingBudget) -> np.ndarray:
        corpus = budget.corpus or self.profile.text.corpus
        if corpus in corpora.PACKED:
            text = self.training_text(budget, 0).input_ids
            ids = text[: len(text) - budget.held_out]
        else:
            found = self._trainable(corpus, budget.block_length, budget.held_out)
            ids = found.blocks[:, 1:] if found.bos else found.blocks
        return np.bincount(ids.flatten().numpy(), minlength=len(self.tokenizer))

    def _task(self, budget: TaskBudget) -> ChoiceTask:
        profile, limit = self.profile, self.identity.max_length
        items = benchmark_items.load(budget, self.tokenizer, profile.seed, limit, profile.trust_tasks)
        return ChoiceTask(items)

    def _prompts_to_classify(self, choice: PromptChoice) -> LabelledPrompts:
        found = classification_sets.labelled_prompts(choice, self.tokenizer, self.profile.seed)
        longest, limit = found.longest + choice.virtual_tokens, self.identity.max_length
        if limit is not None and longest > limit:
            raise StudyError(
                f"{self.identity.name} takes {limit} tokens, a prompt of {choice.dataset} has {longest} with virtual "
                "ones: lower max_words or demonstrations under [budgets.prompt_tuning] in a profile of your own"
            )
        return found


def first_blocks(text: TokenBlocks, blocks: int, length: int | None = None) -> TokenBlocks:
    """The first so many blocks of a text, and the first tokens of each."""
    return replace(text, input_ids=text.input_ids[:blocks, :length])
