"""The story of a run: settings -> plan -> for each stage that remains, one Trainer.

Position is the only state besides tensors: the number of batches behind the run decides the timestamp, the rate, the
data and the seeds. So every start does the same: find the newest whole checkpoint, see which stages remain, go on.
"""

import functools
import gc
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from composer import Evaluator, Time, TimeUnit, Trainer
from composer.devices import Device
from composer.utils import dist, get_device

from rewarm import signals, terminal
from rewarm.build import build_model
from rewarm.config.past import Past, begins_alike, weights_hash
from rewarm.config.plan import Plan, StagePlan, make_plan
from rewarm.config.refusals import WEIGHTS, refuse_changes
from rewarm.config.schema import RunConfig
from rewarm.config.settled import Settled, settle
from rewarm.data.shared_memory import release, sweep_shared_memory
from rewarm.data.stream import build_eval_loader, build_train_loader
from rewarm.formats.checkpoint import RewarmState, batch_of
from rewarm.formats.records import Damage
from rewarm.loggers.run_loggers import RunLoggers, ensure_identity
from rewarm.model.clip import ClipGradients
from rewarm.model.composer_model import PythiaForTraining
from rewarm.model.optimizer import build_optimizer
from rewarm.origin import Origin, find_origin, keep_run_tokenizer, warn_of_other_tokenizer
from rewarm.report.evaluating import EvaluationProgress
from rewarm.report.first_batch import FirstBatch, seconds_since_process_start
from rewarm.report.metrics import (
    EvalRecords,
    TrainRecords,
    cut_back,
    lacks_evaluation,
    recent_losses,
    reopen_stage,
    sync_records,
)
from rewarm.report.records import Events
from rewarm.report.refetches import Refetches
from rewarm.resume.checkpoint import Checkpoint
from rewarm.resume.checkpointing import Checkpointing, EvaluationCut
from rewarm.resume.heartbeat import Heartbeat
from rewarm.resume.notice import NoticeWatcher
from rewarm.resume.preemption import EXIT_PREEMPTED, StopRequest
from rewarm.resume.saving import BackgroundSaver
from rewarm.resume.spike_guard import RollBack, SpikeGuard, SpikeStop
from rewarm.resume.spikes import WINDOW, SpikePolicy
from rewarm.resume.state import EVAL_DATA, Restore, RunState, describe_run, timestamp_at
from rewarm.resume.store import FINAL_UPLOAD_SECONDS, RunStore, working_folder
from rewarm.resume.verdict import STARTING_PATIENCE
from rewarm.resume.watchdog import Watchdog
from rewarm.schedule.rewarm import Hyperparameters, Rewarm
from rewarm.start import announce, announce_alone, on_each_node, on_rank_zero, warn, write_start_files

__all__ = ['run']


@dataclass
class Start:
    """What one start of a run works with, to its end."""

    config: RunConfig
    device: Device
    store: RunStore
    events: Events
    stop: StopRequest
    watchdog: Watchdog
    first_batch: FirstBatch
    loggers: RunLoggers
    command: Sequence[str]


@dataclass
class Training:
    """What is trained from one checkpoint on, through all stages that remain."""

    plan: Plan
    model: PythiaForTraining
    optimizer: torch.optim.Optimizer
    saver: BackgroundSaver
    origin: Origin
    write_settings: Callable[[], None]
    """To be called when a stage's data was found to fit: a start that is refused leaves the run's settings as they were."""


def run(config: RunConfig, command: Sequence[str] = ('rewarm', 'train', 'RUN.yaml')) -> int:
    """Trains what remains of a run.

    Args:
        config (RunConfig): The run file.
        command (Sequence[str]): What was typed to start it, for messages that say what to type instead.

    Returns:
        int: Exit code, the same on every rank: 0 finished (also if it already was), 75 start it again: the run was told
            to go, a rank is gone or hangs, or the bucket is behind.

    Raises:
        UserError: If the settings, the data, the tokenizer, the disk or the bucket do not allow it; on every rank.
    """
    device = get_device(None)
    hang_seconds = config.preemption.hang_timeout.seconds
    # Before the first dataset, or Streaming makes a group of its own. The watchdog is to be heard before a timeout is.
    dist.initialize_dist(device, timeout=STARTING_PATIENCE * hang_seconds + 60)
    stop = StopRequest(config.preemption.signals, config.preemption.grace_period.seconds)
    stop.install()  # after `import composer`, which takes the signals for itself
    signals.start_resource_tracker()
    folder = working_folder(config)
    events = Events(folder, active=dist.get_global_rank() == 0)
    terminal.on_loss(lambda reason: events.record('terminal_lost', reason=reason))
    store = RunStore(folder, config, record=events.record, say=announce)
    watchdog = Watchdog(
        rank=dist.get_global_rank(),
        world_size=dist.get_world_size(),
        timeout_seconds=hang_seconds,
        agree=on_rank_zero,
        record=events.record,
        folder=folder,
    )
    loggers = RunLoggers(config, folder, record=events.record, say=announce_alone, seconds_left=stop.seconds_to_leave)
    notices = NoticeWatcher(config.preemption.notice, config.preemption.notice_url, stop.on_notice, announce)
    with ExitStack() as stack:
        on_rank_zero(lambda: stack.enter_context(store.held()))
        stack.enter_context(watchdog)
        stack.enter_context(loggers)
        stack.callback(notices.close)
        on_each_node(notices.start)
        if dist.get_local_rank() == 0:
            sweep_shared_memory()
        dist.barrier()
        this = Start(config, device, store, events, stop, watchdog, FirstBatch(events, announce), loggers, command)
        while True:
            try:
                code = _go_on(this)
                # On all ranks' time: a launcher ends all with the first that leaves.
                on_rank_zero(lambda: loggers.close(failed=False))
                return code
            except RollBack as back:
                newest = store.latest()
                events.record('rollback', batch=back.batch, tokens=back.tokens, to=newest, reason=back.reason)
                announce(f'{back}. Back to {newest or "the beginning"}.')
                gc.collect()  # or the model of before stays beside the next one
                torch.cuda.empty_cache()
            except Exception as error:
                cause = watchdog.explain(error)  # a peer that is gone shows here as a broken connection
                if cause is None:
                    raise
                return cause.exit_code


def _go_on(this: Start) -> int:
    """Goes on from the newest checkpoint, stage by stage, to the end or until the run is told to go."""
    store, events = this.store, this.events
    saved, where = on_rank_zero(store.newest) or (None, '')
    past = on_rank_zero(lambda: saved and Past.of(saved.path, saved.saved))
    origin = find_origin(this.config, saved)
    plan = make_plan(this.config, previous_lr=past.previous_lr if past else origin.lr, gpus=dist.get_world_size())
    on_rank_zero(lambda: refuse_changes(past, this.config, plan, this.command))
    tokenizer = on_rank_zero(lambda: keep_run_tokenizer(this.config, store.folder, saved))
    warn_of_other_tokenizer(origin, tokenizer)
    for warning in plan.warnings:
        warn(warning)
    if not on_rank_zero(lambda: store.begin({stage.end_batch for stage in plan.stages})):
        announce('The bucket lacks the newest checkpoint, so the other nodes do too. Start the same command again.')
        return EXIT_PREEMPTED
    on_each_node(lambda: store.bring(saved))
    state = _run_state(this.config, saved, origin)
    damaged: list[Damage] = []
    kept = state.batch if past or on_rank_zero(lambda: begins_alike(store.folder, this.config)) else -1
    lost = on_rank_zero(lambda: cut_back(store.folder, kept, tell=damaged.append))
    stages = [stage for stage in plan.stages if state.batch < stage.end_batch]
    if stages:
        on_rank_zero(lambda: reopen_stage(store.folder, stages[0], state.batch))
    elif on_rank_zero(lambda: lacks_evaluation(store.folder, this.config, plan.stages[-1], state.batch)):
        stages = [plan.stages[-1]]  # a set is new, or the run was asked to stop in its last batch
    settled = on_rank_zero(lambda: settle(past, this.config, plan, idle=not stages))
    config = this.config = settled.config
    write_settings = functools.cache(lambda: _write_settings(this, plan, settled))
    if past is None:
        write_settings()
    stage_now = stages[0].name if stages else plan.stages[-1].name
    events.at(batch=state.batch, tokens=state.batch * plan.tokens_per_batch, stage=stage_now)
    seconds = round(seconds_since_process_start(), 3)
    events.record('run_start', world_size=dist.get_world_size(), host=socket.gethostname(), seconds=seconds)
    if saved is not None:
        events.record('resume', **{'from': saved.path.name}, where=where, lost_batches=lost)
    elif origin.checkpoint is not None:  # which weights those are, whatever its folder holds later
        entry = origin.checkpoint.manifest.files[origin.checkpoint.model_file.name]
        events.record('starting_weights', path=origin.place, sha256=entry.sha256)
    for damage in damaged:
        events.record('records_damaged', path=damage.file, lines=damage.lines, reason=str(damage.first))
        announce(str(damage))
    if not stages:
        write_settings()
        announce(f'{config.run_name} is finished: all {plan.batches:,} batches are trained. Nothing to do.')
        return _finish(this)

    identity = on_rank_zero(lambda: ensure_identity(store.folder, say=announce))
    this.loggers.go_on(identity, state.batch, trained=saved is not None or lost > 0)
    model = build_model(config, this.device, initialise=state.checkpoint is None)
    optimizer = build_optimizer(model.pythia, config.optimizer, lr=stages[0].lr(0))
    saver = BackgroundSaver(
        store.checkpoints,
        model=model.pythia,
        optimizer=optimizer,
        before_publishing=lambda: sync_records(store.folder),
        after_publishing=store.after_saving,
        other_failure=store.failure,
        tokenizer=tokenizer,
    )
    training = Training(plan, model, optimizer, saver, origin, write_settings)
    with closing(saver):
        announce(f'{config.run_name}: {_where(state, saved)}; {len(stages)} of {len(plan.stages)} stages remain.')
        for stage in stages:
            state = _train_stage(this, training, stage, state)
            if this.stop.agreed:
                events.record('preempted', signal=this.stop.agreed)
                announce(f'{_what_is_saved(store, state.batch)} Start the same command again to go on.')
                on_rank_zero(lambda: store.flush(this.stop.seconds_left))
                return EXIT_PREEMPTED
    events.record('finished')
    announce(f'{config.run_name} is finished: {plan.batches:,} batches, {plan.tokens:,} tokens.')
    return _finish(this)


def _write_settings(this: Start, plan: Plan, settled: Settled) -> None:
    """Writes the settings into the run folder, and what has changed in them into its events."""
    on_rank_zero(lambda: write_start_files(this.store.folder, settled.config, plan, this.device))
    if settled.changes or settled.without_effect:
        this.events.record('settings_changed', changes=settled.changes, without_effect=settled.without_effect)
        announce(str(settled))


def _finish(this: Start) -> int:
    """Waits for the bucket, if the run is in one: a run is done when it could be taken up anywhere."""
    patience_seconds = min(FINAL_UPLOAD_SECONDS, this.config.preemption.hang_timeout.seconds / 2)
    if on_rank_zero(lambda: this.store.flush(patience_seconds)):
        return 0
    if (failure := on_rank_zero(lambda: this.store.failure() or this.store.refusal())) is not None:
        raise failure
    announce('The bucket does not have all of it yet. Start the same command again: it sends the rest.')
    return EXIT_PREEMPTED


def _train_stage(this: Start, training: Training, stage: StagePlan, state: RunState) -> RunState:
    """Trains one stage from where it is, to its end or until the run is told to go; returns where that is."""
    config, events, folder = this.config, this.events, this.store.folder
    plan, model = training.plan, training.model
    stage_config = config.stages[stage.index]
    previous = plan.stages[stage.index - 1] if stage.index else None
    train = build_train_loader(
        stage_config,
        config=config,
        start_sample=(state.batch - stage.start_batch) * plan.global_batch_size,
        total_samples=stage.batches * plan.global_batch_size,
    )
    evals = {each.name: build_eval_loader(each, config=config) for each in config.eval.sets}
    datasets = [train.dataset, *(each.dataset for each in evals.values())]
    state.enter(stage, train.fingerprint, {name: each.fingerprint for name, each in evals.items()})
    training.write_settings()

    clip = ClipGradients(model.pythia, config.max_grad_norm)
    rewarm = Rewarm(stage, hyperparameters=Hyperparameters.of(config), record=events.record_once)
    guard = _spike_guard(this, plan, stage, clip)
    restore = Restore(state, timestamp=timestamp_at(state.batch, stage, plan), model=model.pythia, seed=config.seed)
    train_records = TrainRecords(
        folder,
        stage=stage,
        plan=plan,
        order=train.mix,
        grad_norm=lambda: clip.norm,
        skipped=lambda: guard.skipped,
    )
    eval_records = EvalRecords(
        folder,
        stage=stage,
        previous=previous,
        plan=plan,
        sets={each.name: (each, evals[each.name].card) for each in config.eval.sets},
        stopping=lambda: this.stop.agreed is not None,
    )
    checkpointing = Checkpointing(
        training.saver,
        stage=stage,
        plan=plan,
        describe=lambda now: describe_run(config, plan, state, now, rewarm) | training.origin.state,
        interval=config.checkpoints.interval,
        stop=this.stop,
        events=events,
    )
    events.at(batch=state.batch, tokens=state.batch * plan.tokens_per_batch, stage=stage.name)

    trainer = Trainer(
        run_name=config.run_name,
        model=model,
        optimizers=training.optimizer,
        train_dataloader=train.spec,
        eval_dataloader=[Evaluator(label=name, dataloader=each.spec) for name, each in evals.items()] or None,
        eval_interval=eval_records.due,
        max_duration=Time(stage.end_tokens, TimeUnit.TOKEN),  # counted from the run's start
        algorithms=[guard, clip, rewarm, restore],  # last first at AFTER events: a stage begins on restored tensors
        callbacks=[
            Heartbeat(this.watchdog.progress),
            EvaluationProgress(
                folder, events, announce, sets={name: each.samples * config.max_seq_len for name, each in evals.items()}
            ),
            eval_records,
            checkpointing,
            train_records,
            Refetches(events, datasets),
            this.first_batch,
        ],
        loggers=this.loggers.destinations(),
        device=this.device,
        device_train_microbatch_size=config.device_train_microbatch_size,
        precision='fp32',  # the model itself computes in bf16 where asked to
        seed=config.seed,
        schedulers=None,  # Rewarm writes the rate
        spin_dataloaders=False,  # the loader starts where the run is
        progress_bar=False,
        save_folder=None,
        load_path=None,
        autoresume=False,
    )
    stopped = None
    try:
        if missing := on_rank_zero(lambda: eval_records.missing_at(state.batch)):
            eval_records.evaluate(trainer, missing)
        if state.batch < stage.end_batch:
            trainer.fit()
    except EvaluationCut:
        if int(trainer.state.timestamp.batch) > state.batch:
            checkpointing.save(trainer.state, wait=True)
    except (RollBack, SpikeStop) as error:  # on every rank, so all of them clear up together
        training.saver.finish()
        stopped = error
    now = {'batch': int(trainer.state.timestamp.batch), 'algorithms': {'Rewarm': rewarm.state_dict()}}
    after = replace(state, checkpoint=None, **now)
    trainer.close()
    release(datasets)
    if stopped is not None:
        raise stopped
    if after.batch == stage.end_batch:
        events.record_once('stage_end')
    return after


def _spike_guard(this: Start, plan: Plan, stage: StagePlan, clip: ClipGradients) -> SpikeGuard:
    """Judges a stage's batches by its losses so far; they are what ``metrics.jsonl`` holds, and nothing is saved."""
    policy = SpikePolicy(
        **this.config.spikes.model_dump(),
        history=on_rank_zero(lambda: recent_losses(this.store.folder, stage.name, WINDOW)),
        rollbacks=on_rank_zero(lambda: this.events.batches_of('rollback')),
    )
    return SpikeGuard(
        policy,
        grad_norm=lambda: clip.norm_on_device,
        tokens_per_batch=plan.tokens_per_batch,
        events=this.events,
        announce=announce,
    )


def _run_state(config: RunConfig, saved: Checkpoint | None, origin: Origin) -> RunState:
    """Where the run is: at its newest checkpoint, or at its beginning with the weights of ``init_from``."""
    if saved is not None:
        kept: dict[str, Any] = saved.state['settings']
        weights, eval_data = kept.get(WEIGHTS), kept.get(EVAL_DATA, {})
        return RunState(saved.batch, saved.state['algorithms'], saved, saved.state['stages'], weights, eval_data)
    if origin.checkpoint is not None:
        # Of the other run only the tensors and the last rate come along; its stage is not ours.
        remembered = (origin.checkpoint.saved.algorithms or {}).get('Rewarm', RewarmState())
        carried = {**remembered.model_dump(), 'stage': None}
        weights = origin.checkpoint.manifest.files[origin.checkpoint.model_file.name].sha256
        return RunState(0, {'Rewarm': carried}, origin.checkpoint, weights=weights)
    return RunState(weights=on_rank_zero(lambda: weights_hash(config.model.init_from)))


def _what_is_saved(store: RunStore, batch: int) -> str:
    """What a run that stops at ``batch`` can say of its checkpoints; for rank 0."""
    newest = store.latest()
    if newest is None:
        return 'Stopped before the first batch was trained: there is no checkpoint.'
    return f'Saved at batch {batch:,}.' if batch_of(newest) == batch else f'Stopped; {newest} stands.'


def _where(state: RunState, saved: Checkpoint | None) -> str:
    if saved is not None:
        return f'going on from {saved.path.name}'
    return f'starting from {state.checkpoint.path}' if state.checkpoint else 'starting at its beginning'
