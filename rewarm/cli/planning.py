"""What a run file says, without running it: ``rewarm plan``, ``ranks`` and ``schema``."""

from typing import Annotated

import typer

from rewarm.cli.arguments import AsJson, Overrides, RunFile

__all__ = ['plan', 'ranks', 'schema']


def plan(
    run: RunFile,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(help='Number of GPUs, for hours and cost.')] = None,
    tokens_per_second: Annotated[float | None, typer.Option(help='Speed of one GPU, in tokens a second.')] = None,
    price: Annotated[float | None, typer.Option(help='Price of one GPU for an hour.')] = None,
    preemptions_per_day: Annotated[
        float | None, typer.Option(min=0, help='Kills of the whole run in 24 hours.')
    ] = None,
    notice_share: Annotated[
        float | None, typer.Option(min=0, max=1, help='Share of them that come with a notice long enough to save.')
    ] = None,
    save_stall: Annotated[
        float | None, typer.Option(min=0, help='Seconds that training stands still for a save.')
    ] = None,
    save_seconds: Annotated[
        float | None, typer.Option(min=0, help='Seconds of a whole save in the background.')
    ] = None,
    restart_seconds: Annotated[
        float | None, typer.Option(min=0, help='Seconds from a kill to the first batch after it.')
    ] = None,
    measured: Annotated[
        str | None,
        typer.Option(
            metavar='RUN_FOLDER', help='Take speed, preemptions and saves from a run of this model on such machines.'
        ),
    ] = None,
    lr_at: Annotated[
        str | None, typer.Option(help='Rate at these tokens since the run began, such as 1e9tok,stage:5e8tok.')
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Checks a run file and shows what it would do.

    Stages, steps, rates, checkpoints, disk, memory, hours, money, and how often to save.
    """
    from rewarm.config.goodput import Conditions
    from rewarm.config.show import plan_command

    known = Conditions(
        tokens_per_second=tokens_per_second,
        preemptions_per_day=preemptions_per_day,
        notice_share=notice_share,
        save_stall_seconds=save_stall,
        save_seconds=save_seconds,
        restart_seconds=restart_seconds,
    )
    if measured is not None:
        from rewarm.report.measured import measure

        known = known.or_else(measure(measured))
    plan_command(
        run,
        overrides or [],
        gpus=gpus,
        price=price,
        conditions=known,
        lr_at=lr_at,
        as_json=as_json,
    )


def ranks(
    run: RunFile,
    overrides: Overrides = None,
    *,
    available: Annotated[int, typer.Option(min=1, help='GPUs at hand, on all nodes together.')],
    gpus_per_node: Annotated[int, typer.Option(min=1, help='Use whole nodes of so many GPUs only.')] = 1,
    as_json: AsJson = False,
) -> None:
    """Prints the most ranks that can run a run file. If that is fewer than the GPUs at hand, stderr says why."""
    from rewarm.config.ranks import ranks_command

    ranks_command(run, overrides or [], available=available, gpus_per_node=gpus_per_node, as_json=as_json)


def schema() -> None:
    """Prints the JSON Schema of run files, for editors. Such as: rewarm schema > run.schema.json."""
    from rewarm.config.show import schema_text

    print(schema_text(), end='')
