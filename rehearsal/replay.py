"""The plan once more, now that orders of removal are known: it must be what ran, to the token.

`python -m rehearsal.replay PROFILE TABLE.csv` runs the experiments dry with the real texts, items and models' names:
what they ask for has the store's own keys, so whatever the store knows (activations, scores, losses) is handed back in
place of stand-ins, and all of it is counted as from an empty store.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from layer_redundancy.config import profiles
from layer_redundancy.config.profiles import Profile
from layer_redundancy.core import paths
from layer_redundancy.core.store import Store
from layer_redundancy.evaluate.amounts import Pass, Quantization, Sweep, Training
from layer_redundancy.inputs import Inputs
from layer_redundancy.models import checkpoints
from layer_redundancy.planning import counts
from layer_redundancy.planning.dry import DryStudy, Ledger
from layer_redundancy.planning.planner import Planner, keeps_prefixes


@dataclass(frozen=True)
class Replay(Planner):
    """A planner whose studies read real inputs, and know what a store has.

    Attributes:
        store: the results.
    """

    store: Store | None = None

    def study(self, model: str, profile: Profile | None = None, ledger: Ledger | None = None) -> DryStudy:
        """A dry study that knows what the store has."""
        profile = profile or replace(self.profile, model=model, revision=counts.revision(self.profile, model))
        identity = checkpoints.identify(profile)
        return DryStudy(
            profile,
            identity,
            self.store,
            Inputs(profile, identity),
            paths.FIGURES,
            ledger=Ledger() if ledger is None else ledger,
            shape_of=identity.name,
            keeps_prefixes=keeps_prefixes(checkpoints.config(identity)),
            other=self.study,
        )


def table(profile: Profile, store: Store) -> pd.DataFrame:
    """Block-tokens by notebook, summed over models; columns as `make plan` names them."""
    planner = Replay(profile, store=store)
    rows = []
    before = Ledger()
    for model, notebooks in planner.runs():
        for number, study in planner.pages(model, notebooks, before):
            totals = {
                column: sum(one.block_tokens for one in study.ledger.of(kind))
                for column, kind in (
                    ("block_tokens", Sweep),
                    ("training_block_tokens", Training),
                    ("quantization_block_tokens", Quantization),
                    ("pass_block_tokens", Pass),
                )
            }
            rows.append({"model": model, "notebook": number} | totals)
    return pd.DataFrame(rows)


def main(profile: str, output: str) -> None:
    """Writes the table."""
    with Store(paths.RESULTS / "results.sqlite") as store:
        table(profiles.get(profile), store).to_csv(Path(output), index=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
