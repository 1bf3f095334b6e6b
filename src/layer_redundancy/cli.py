"""`layer-redundancy`: the study's questions and a pruned checkpoint from the command line.

Each command asks a `Study` for what the notebooks ask it for, and shares their store: what was computed once, by
either, is not computed again. Results go to stdout, progress and remarks to stderr.

Libraries that take seconds to import are imported by the commands, so that --help and a mistake are told at once.
"""

from layer_redundancy.core import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layer_redundancy import __version__
from layer_redundancy.core import device_names, doors, log
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.wording import counted, duration
from layer_redundancy.pruning.how_many import HowMany

if TYPE_CHECKING:
    import pandas as pd

    from layer_redundancy.config.profiles import Profile
    from layer_redundancy.planning.plan import Row
    from layer_redundancy.study import Study

MOST_DIGITS = 4  # of a number of blocks

app = typer.Typer(
    name="layer-redundancy",
    help="Which layers of this language model can go? Rank them, see what their removal costs, write a pruned model.",
    epilog="Exit status: 0 done, 1 not done (one line says why) or tables that differ, 2 a command line that is not "
    "understood, 130 interrupted. What was computed is kept: the same command goes on where it was.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Model = Annotated[
    str, typer.Argument(help="Hub id, local folder, or smollm2-135m-instruct; the profile's own if left out.")
]
ProfileName = Annotated[
    str,
    typer.Option(
        "--profile",
        envvar="LAYER_REDUNDANCY_PROFILE",
        help="Texts, tasks and budgets: smoke, embedded, paper, or a file ending in .toml.",
    ),
]
Revision = Annotated[str, typer.Option(help="Hub revision of the model.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto, instead of the profile's.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
By = Annotated[str, typer.Option(help="Importance measure; `layer-redundancy measures` lists them.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be computed and how long it takes; do nothing.")
]


def main() -> None:
    """Runs the command line; a user's mistake is one line on stderr."""
    doors.entered(doors.COMMAND)
    interrupts.end_at_once()
    try:
        app()
    except StudyError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"layer-redundancy {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# ------------------------------------------------------------------------------------------------ questions


@app.command(
    epilog="Example: `layer-redundancy rank smollm2-135m-instruct`, or `rank path/to/a/model --by taylor --json`"
)
def rank(
    model: Model = "",
    by: By = "block_influence",
    profile: ProfileName = "embedded",
    revision: Revision = "",
    device: Device = "",
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Ranks the blocks: those that an importance measure removes first come first, with how certain their place is."""
    with _working("rank"):
        study = _open(profile, model, revision, device, trust_remote_code)
        from layer_redundancy.pruning import effects

        table = _asked(study, lambda asked: effects.ranking(asked, by), dry_run)
    if dry_run:
        return _print_estimate(table, as_json)
    about = {"model": study.identity.name, "measure": by, "calibration": study.calibration_note()}
    _print(table, as_json, **about, certainty=effects.certainty(study, by))


@app.command(
    epilog="Example: `layer-redundancy sweep smollm2-135m-instruct --remove 1..10`, or `--remove 2,4,8 --by taylor`"
)
def sweep(
    model: Model = "",
    remove: Annotated[str, typer.Option(help="Numbers of blocks to remove: 4, 1..10, or 2,4,8.")] = "1..10",
    by: By = "block_influence",
    profile: ProfileName = "embedded",
    revision: Revision = "",
    device: Device = "",
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Measures the model without so many blocks: perplexity and the profile's tasks, with 95 % intervals."""
    counts = _numbers(remove)
    with _working("sweep"):
        study = _open(profile, model, revision, device, trust_remote_code)
        from layer_redundancy.pruning import effects

        table = _asked(study, lambda asked: effects.sweep(asked, by, counts), dry_run)
    if dry_run:
        return _print_estimate(table, as_json)
    _print(table, as_json, model=study.identity.name, measure=by, evaluation=study.evaluation_note())


@app.command(epilog="Example: `layer-redundancy evaluate pruned`")
def evaluate(
    model: Annotated[str, typer.Argument(help="A folder that prune wrote, or any model.")],
    profile: Annotated[
        str, typer.Option(help="smoke, embedded, paper, or a .toml; the one of pruning.json, or embedded, if left out.")
    ] = "",
    revision: Revision = "",
    device: Device = "",
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Measures a model as it is, on the text and tasks of a profile."""
    with _working("evaluate"):
        study = _open(_profile_for([model], profile), model, revision, device, trust_remote_code)
        from layer_redundancy.pruning import effects

        table = _asked(study, effects.evaluation, dry_run)
    if dry_run:
        return _print_estimate(table, as_json)
    _print(table, as_json, model=study.identity.name, profile=study.profile.name, evaluation=study.evaluation_note())


@app.command(epilog="Example: `layer-redundancy compare smollm2-135m-instruct pruned`")
def compare(
    first: Annotated[str, typer.Argument(help="A model.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
    profile: Annotated[
        str, typer.Option(help="smoke, embedded, paper, or a .toml; that of a pruned folder, or embedded, if left out.")
    ] = "",
    device: Device = "",
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Compares two models on the same text and tasks, paired, with 95 % intervals of the differences."""
    with _working("compare"):
        chosen = _profile_for([second, first], profile)
        one, other = (_open(chosen, model, "", device, trust_remote_code) for model in (first, second))
        from layer_redundancy.pruning import effects

        table = effects.comparison(one, other)
    _print(table, as_json, first=one.identity.name, second=other.identity.name, profile=one.profile.name)


@app.command()
def measures(as_json: Json = False) -> None:
    """Lists the importance measures: which blocks each removes first, and where it is defined."""
    with _working("measures"):
        import pandas as pd

        from layer_redundancy.measures import registry

        rows = [
            {"measure": one.name, "removed first": one.removed_first, "source": one.source}
            for one in registry.REGISTRY.values()
        ]
        table = pd.DataFrame(rows)
    _print(table, as_json)


@app.command()
def methods(as_json: Json = False) -> None:
    """Lists the methods that make a model smaller in other ways than by an importance measure: what each does to it."""
    with _working("methods"):
        import pandas as pd

        from layer_redundancy.methods import registry

        rows = [
            {
                "method": name,
                "title": one.card.title,
                "what it does": one.card.does,
                "paper": one.card.paper,
                "loaded by": f"transformers after import {one.card.needs}" if one.card.needs else "plain transformers",
            }
            for name, one in registry.METHODS.items()
        ]
        table = pd.DataFrame(rows)
    _print(table, as_json)


# ------------------------------------------------------------------------------------------------ a pruned checkpoint


@app.command(
    epilog="Examples: `layer-redundancy prune smollm2-135m-instruct --remove 8 --out pruned`; "
    "`prune MODEL --max-loss 0.1 --out pruned`; `prune MODEL --ratio 0.25 --heal partial --quantize 4 --out small`; "
    "`prune MODEL --method llm_pruner --ratio 0.25 --out narrow`; "
    "`prune --like pruned/pruning.json --out again`"
)
def prune(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    model: Model = "",
    remove: Annotated[int | None, typer.Option(help="Number of blocks to remove.")] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Share of the blocks to remove, 0 to 1; with --method, of all weights.")
    ] = None,
    max_loss: Annotated[
        float | None, typer.Option(help="Remove as many as raise the loss of calibration text by no more nats a token.")
    ] = None,
    by: By = "block_influence",
    method: Annotated[
        str, typer.Option(help="Make it smaller in another way; `layer-redundancy methods` lists them.")
    ] = "",
    heal: Annotated[
        str, typer.Option(help="Train what is left: lora, qlora, partial or full, as the profile's recipes say.")
    ] = "",
    quantize: Annotated[int | None, typer.Option(help="Bits a weight of the blocks: 8, 4 or 3 (GPTQ).")] = None,
    like: Annotated[Path | None, typer.Option(help="A pruning.json: make that checkpoint again.")] = None,
    profile: ProfileName = "embedded",
    revision: Revision = "",
    device: Device = "",
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Removes blocks, or makes the model smaller by a method, and writes a checkpoint with a card and pruning.json."""
    said_by_like = ("model", "remove", "ratio", "max_loss", "by", "method", "heal", "quantize", "profile", "revision")
    # A profile in the environment is for commands that take one.
    if like is not None and any(_was_typed(context, name) for name in said_by_like):
        raise StudyError("--like says all that is to be made: give nothing else but --out")
    by_method = _was_typed(context, "method")
    if by_method and (_was_typed(context, "by") or max_loss is not None):
        which = "--max-loss" if max_loss is not None else "--by"
        raise StudyError(f"{which} is for removal by an importance measure: leave it out, or leave out --method")
    how_many = None if like is not None else HowMany(remove, ratio, max_loss)
    with _working("prune"):
        from layer_redundancy.config import own_files
        from layer_redundancy.config.run_folder import absolute_model
        from layer_redundancy.pruning import checkpoint

        own_files.new_folder(out, absolute_model(model))
        if by_method:
            from layer_redundancy.methods import registry

            registry.find(method)
        if like is not None:
            _set_device(device)
            study, again = checkpoint.again(checkpoint.read(like), str(like), trust_remote_code)
        else:
            study, again = _open(profile, model, revision, device, trust_remote_code), None

        def order(asked: "Study") -> checkpoint.Order | checkpoint.ByMethod:
            if again is not None:
                return again
            assert how_many is not None, "without --like it is given"
            if by_method:
                return checkpoint.by_plan(asked, method, how_many, heal, quantize)
            return checkpoint.ordered(asked, by, how_many, heal, quantize)

        if dry_run:
            estimate = _asked(study, lambda asked: checkpoint.measured(asked, order(asked)), dry_run)
        else:
            found = checkpoint.prune(study, order(study), out)
    if dry_run:
        return _print_estimate(estimate, as_json)
    if as_json:
        typer.echo(json.dumps(_plain({"folder": str(out), **found})))
        return
    loss = found["cost"]["perplexity"]
    typer.echo(
        f"{out}: {study.identity.name} {_removed(found)}\n"
        f"perplexity {loss['dense']:.2f} -> {loss['pruned']:.2f} ({loss['increase']:+.3f} nats a token, 95 % "
        f"{loss['increase_low']:+.3f} to {loss['increase_high']:+.3f}, {loss['n']} blocks of text)"
    )
    for one in found["cost"]["tasks"]:
        typer.echo(
            f"{one['task']} {one['dense']:.3f} -> {one['pruned']:.3f} (change 95 % {one['change_low']:+.3f} to "
            f"{one['change_high']:+.3f}, n = {one['n']}, chance {one['chance']:.2f})"
        )
    if found["needs_import"]:
        typer.echo(f"plain transformers does not load it: import {' and '.join(found['needs_import'])} first")


# ------------------------------------------------------------------------------------------------ a whole run


@app.command(epilog="Example: `layer-redundancy plan paper`")
def plan(
    profile: Annotated[str, typer.Argument(help="smoke, embedded, paper, or a file ending in .toml.")] = "embedded",
    model: Annotated[str, typer.Option(help="A model of your own.")] = "",
    revision: Revision = "",
    notebooks: Annotated[str, typer.Option(help="Only these notebooks, by number.")] = "",
    alone: Annotated[bool, typer.Option("--alone", help="As if no other notebook had been run before.")] = False,
    workers: Annotated[
        str, typer.Option(help="Say also what so many workers of this machine would take that share the work.")
    ] = "",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Says what a run of all notebooks takes before it starts: downloads, licences, disk, memory, work and hours."""
    from layer_redundancy.config import cluster, profiles

    cluster.check_given(workers, "")
    chosen = profiles.get(profile, model=model, revision=revision, trust_remote_code=trust_remote_code)
    from layer_redundancy.core import log
    from layer_redundancy.planning import plan as planning

    log.show()
    with _interruptible():
        planning.report(chosen, notebooks, alone, int(workers) if workers else None)


@app.command(epilog="Example: `layer-redundancy verify embedded`")
def verify(
    profile: Annotated[str, typer.Argument(help="The profile that was run.")] = "embedded",
    model: Annotated[str, typer.Option(help="A model of your own, where one was run.")] = "",
    revision: Revision = "",
    notebooks: Annotated[str, typer.Option(help="Only these notebooks, by number.")] = "",
    tables: Annotated[Path | None, typer.Option(help="Folder of the tables; the run's if left out.")] = None,
    expected: Annotated[Path | None, typer.Option(help="What is expected; the profile's if left out.")] = None,
    brief: Annotated[bool, typer.Option("--brief", help="Only tables that are not as expected.")] = False,
    no_fail: Annotated[bool, typer.Option("--no-fail", help="Exit with 0 whatever differs.")] = False,
    renew: Annotated[bool, typer.Option("--renew", help="Make the tables of a whole run the expected ones.")] = False,
    as_json: Json = False,
) -> None:
    """Compares the tables of a run with those that are committed; exits with 1 if one is not as expected."""
    from layer_redundancy import verify as comparing
    from layer_redundancy.config import profiles
    from layer_redundancy.config.run_folder import absolute_model

    chosen = profiles.get(profile, model=absolute_model(model), revision=revision)
    if renew and (notebooks or tables or expected):
        raise StudyError("--renew takes the tables of a whole run: leave out --notebooks, --tables and --expected")
    if renew:
        typer.echo(comparing.expect_run(chosen))
        return
    runs = [chosen]
    if not (model or tables or expected):
        named = {one: profiles.get(profile, model=one) for one in chosen.studied if chosen.declares(one)}
        others = [one for name, one in named.items() if name != chosen.own_model]
        own = runs if chosen.own_model in named else []
        runs = [*own, *(one for one in others if comparing.is_expected(one, notebooks))] or runs
    every = [comparing.verify_run(one, notebooks, tables, expected) for one in runs]
    verdicts, line = [one for of, _ in every for one in of], "\n".join(line for _, line in every)
    if as_json:
        found = [
            {"table": one.table, "state": one.state, "differences": list(map(asdict, one.differences))}
            for one in verdicts
        ]
        typer.echo(json.dumps(_plain({"summary": line, "tables": found})))
    else:
        typer.echo("\n".join([*comparing.report(verdicts, brief), line]))
    if not no_fail and not all(one.good for one in verdicts):
        raise typer.Exit(1)


# ------------------------------------------------------------------------------------------------ helpers


@contextlib.contextmanager
def _working(command: str) -> Iterator[None]:
    """Work whose remarks and progress go to stderr, since stdout is for the result."""
    os.environ["LAYER_REDUNDANCY_NOTEBOOK"] = f"layer-redundancy {command}"  # the store's log of work names it
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with contextlib.redirect_stdout(sys.stderr):
        log.show()
        with _interruptible():
            yield


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Work that has something to put away when it is interrupted."""
    interrupts.interrupt()
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("\ninterrupted: what was computed is kept, and the same command goes on from there", err=True)
        raise


def _removed(found: dict[str, Any]) -> str:
    """What was removed, by the content of a pruning.json."""
    if "method" not in found:
        return f"without blocks {' '.join(map(str, found['removed_blocks']))}"
    from layer_redundancy.methods import registry

    all_weights, of_blocks = 100 * found["removed_share"], 100 * found["removed_share_of_blocks"]
    title = registry.find(found["method"]).card.title
    return f"by {title}: {all_weights:.1f} % of all weights removed, {of_blocks:.1f} % of the blocks'"


def _was_typed(context: typer.Context, name: str) -> bool:
    """Whether an option or argument stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _set_device(device: str) -> None:
    if device:
        device_names.check_choice(device)
        os.environ["LAYER_REDUNDANCY_DEVICE"] = device


def _open(profile: "str | Profile", model: str, revision: str, device: str, trust_remote_code: bool) -> "Study":
    _set_device(device)
    from layer_redundancy.config import profiles, sources
    from layer_redundancy.config.run_folder import absolute_model

    if isinstance(profile, str):
        if profile in ("smoke", "embedded") and (not model or model in profiles.EMBEDDED):
            # They come from packages: looking for news on a hub would only need a network.
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        model = absolute_model(model)
        profile = profiles.get(profile, model=model, revision=revision, trust_remote_code=trust_remote_code)
    else:
        revision = revision or sources.pinned(model) or ""
        profile = replace(profile, model=absolute_model(model), revision=revision or None)
        profile = profiles.on_users_device(profiles.trusting(profile, trust_remote_code))
    from layer_redundancy.study import Study

    return Study.of(profile)


def _profile_for(models: list[str], profile: str) -> "str | Profile":
    """The profile asked for, else the one that the first pruned folder among some models was made with.

    Raises:
        StudyError: a model is "", which a variable of a shell is that was not set; it would be the profile's own.
    """
    if "" in models:
        raise StudyError("a model is empty: give a hub id, a folder, or smollm2-135m-instruct")
    if profile:
        return profile
    from layer_redundancy.config import own_files
    from layer_redundancy.pruning import checkpoint

    for model in models:
        file = own_files.place(model) / checkpoint.RECORD
        if own_files.is_there(file) and file.is_file():
            return checkpoint.profile_of(checkpoint.read(file), str(file))
    return "embedded"


def _numbers(text: str) -> list[int]:
    """Numbers written as 4, 1..10 or 2,4,8."""
    found: list[int] = []
    for part in text.split(","):
        low, dots, high = part.strip().partition("..")
        if not low.isdecimal() or (dots and not high.isdecimal()):
            raise StudyError(f"--remove {text!r} is not understood: write a number, a range such as 1..10, or 2,4,8")
        if max(len(low), len(high)) > MOST_DIGITS:
            raise StudyError(f"--remove {part.strip()[:20]}: no model has so many blocks")
        if dots and int(high) < int(low):
            raise StudyError(f"--remove {text!r}: {part.strip()} is an empty range, write {high}..{low}")
        found += range(int(low), int(high or low) + 1)
    return sorted(set(found))


def _asked(study: "Study", ask: "Callable[[Study], Any]", dry_run: bool) -> Any:
    """What is asked of a study, or the amount of work that it would take."""
    if not dry_run:
        return ask(study)
    from layer_redundancy.planning import dry_run as dry

    return dry.estimate(study, ask)


def _print_estimate(found: "Row | None", as_json: bool) -> None:
    """The amount of work that `--dry-run` has found; None for none."""
    if as_json:
        typer.echo(json.dumps(_plain({"to_compute": vars(found) if found else None})))
        return
    if found is None:
        typer.echo("nothing to compute: the store has it all")
        return
    from layer_redundancy.planning import plan

    parts = [counted(found.variants, "variant")] if found.variants else []
    parts += [f"{counted(found.trainings, 'training')} on {found.trained_tokens} tokens"] if found.trainings else []
    parts += [counted(found.quantizations, "quantization")] if found.quantizations else []
    parts += [f"{found.pass_block_tokens:.3g} block-tokens of other passes"] if found.pass_block_tokens else []
    typer.echo(
        f"{found.model}: {', '.join(parts)}; about {duration(found.seconds)}, "
        f"{found.peak_bytes / plan.GIGA:.1f} GB of memory at most. Nothing was computed or written."
    )


def _print(table: "pd.DataFrame", as_json: bool, **about: str) -> None:
    """The table on stdout; what it is about before it."""
    if as_json:
        typer.echo(json.dumps(_plain({**about, "rows": table.to_dict("records")})))
        return
    for name, value in about.items():
        typer.echo(f"{name}: {value}")
    typer.echo(_readable(table).to_string(index=False, na_rep="", float_format=_short))


def _readable(table: "pd.DataFrame") -> "pd.DataFrame":
    """A table for people: a value and its interval in one cell, a task's constant n and chance in its heading."""
    columns, names = {}, list(table)
    while names:
        name = names.pop(0)
        values = table[name]
        if len(names) > 1 and names[0].endswith("low") and names[1].endswith("high"):
            bounds = zip(values, table[names.pop(0)], table[names.pop(0)], strict=True)
            values = [
                _short(v) if v != v or low != low else f"{_short(v)} ({_short(low)} to {_short(high)})"
                for v, low, high in bounds
            ]
            if len(names) > 1 and names[0].endswith(" n") and names[1].endswith(" chance"):
                count, chance = table[names.pop(0)].iloc[0], table[names.pop(0)].iloc[0]
                name = f"{name} (n = {count}, chance {chance:.2f})"
        columns[name] = values
    return type(table)(columns)


def _short(value: float) -> str:
    return "" if value != value else f"{value:.4g}"


def _plain(value: Any) -> Any:
    """A value as JSON has it: numpy's numbers as Python's, NaN and infinity as null."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main()
