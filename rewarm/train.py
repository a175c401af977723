"""The story of a run: settings -> plan -> for each stage that remains, one Trainer.

Position is the only state besides tensors: the number of batches behind the run decides the timestamp, the rate, the
data and the seeds. So every start does the same: find the newest whole checkpoint, see which stages remain, go on.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer import Evaluator, Time, TimeUnit, Trainer
from composer.utils import dist, get_device

from rewarm.config.errors import UserError
from rewarm.config.plan import Plan, StagePlan, make_plan
from rewarm.config.schema import RunConfig
from rewarm.data.shared_memory import release, sweep_shared_memory
from rewarm.data.stream import build_eval_loader, build_train_loader
from rewarm.model.attention import attention_named, choose_backend
from rewarm.model.clip import ClipGradients
from rewarm.model.composer_model import PythiaForTraining
from rewarm.model.ops import choose_ops
from rewarm.model.optimizer import build_optimizer
from rewarm.model.pythia import Pythia, init_weights
from rewarm.model.weights import load_hf
from rewarm.report.first_batch import FirstBatch
from rewarm.report.metrics import EvalRecords, TrainRecords, cut_back, lacks_evaluation, sync_records
from rewarm.report.records import Events
from rewarm.resume.checkpoint import Checkpoint, find_newest_valid, open_checkpoint, remove_leftovers, retain
from rewarm.resume.checkpointing import Checkpointing
from rewarm.resume.lock import run_lock
from rewarm.resume.preemption import EXIT_PREEMPTED, StopRequest
from rewarm.resume.saving import BackgroundSaver
from rewarm.resume.state import (
    Restore,
    RunState,
    describe_run,
    previous_lr,
    refuse_changes,
    timestamp_at,
)
from rewarm.schedule.rewarm import Hyperparameters, Rewarm
from rewarm.start import announce, load_loggers, on_rank_zero, write_start_files

__all__ = ['build_model', 'run']


@dataclass
class Run:
    """What stays the same through all stages of one start."""

    config: RunConfig
    plan: Plan
    folder: Path
    model: PythiaForTraining
    optimizer: torch.optim.Optimizer
    events: Events
    stop: StopRequest
    saver: BackgroundSaver
    first_batch: FirstBatch


def run(config: RunConfig) -> int:
    """Trains what remains of a run.

    Args:
        config (RunConfig): The run file.

    Returns:
        int: Exit code, the same on every rank: 0 finished (also if it already was), 75 preempted, start it again.

    Raises:
        UserError: If the settings, the data, the tokenizer or the run folder do not allow it; on every rank.
    """
    device = get_device(None)
    dist.initialize_dist(device)  # before the first dataset, or Streaming makes a process group of its own
    if config.run_folder.startswith('s3://'):
        raise UserError(
            f'run_folder: {config.run_folder}: buckets are not supported in this version; write a local folder'
        )
    folder = Path(config.run_folder)
    root = folder / 'checkpoints'
    stop = StopRequest(config.preemption.signals, config.preemption.grace_period.seconds)
    stop.install()  # after `import composer`, which takes the signals for itself

    with ExitStack() as stack:
        events = Events(folder, active=dist.get_global_rank() == 0)
        newest = on_rank_zero(lambda: _open_folder(stack, folder, root, events))
        if dist.get_local_rank() == 0:
            sweep_shared_memory()
        dist.barrier()

        saved = None if newest is None else Checkpoint.trusted(Path(newest))
        plan = make_plan(config, previous_lr=previous_lr(saved), gpus=dist.get_world_size())
        state = _run_state(config, saved)
        on_rank_zero(lambda: refuse_changes(saved, config, plan))
        lost = on_rank_zero(lambda: cut_back(folder, state.batch))
        on_rank_zero(lambda: write_start_files(folder, config, plan, device))
        stages = [stage for stage in plan.stages if state.batch < stage.end_batch]
        if not stages and on_rank_zero(lambda: lacks_evaluation(folder, config, plan.stages[-1], state.batch)):
            stages = [plan.stages[-1]]  # told to go in its last batch: nothing is evaluated in a grace period
        stage_now = stages[0].name if stages else plan.stages[-1].name
        events.at(batch=state.batch, tokens=state.batch * plan.tokens_per_batch, stage=stage_now)
        events.record('run_start', world_size=dist.get_world_size())
        if saved is not None:
            events.record('resume', **{'from': saved.path.name}, lost_batches=lost)
        if not stages:
            announce(f'{config.run_name} is finished: all {plan.batches:,} batches are trained. Nothing to do.')
            return 0

        model = build_model(config, device, initialise=state.checkpoint is None)
        optimizer = build_optimizer(model.pythia, config.optimizer, lr=stages[0].lr(0))
        saver = BackgroundSaver(
            root,
            model=model.pythia,
            optimizer=optimizer,
            before_publishing=lambda: sync_records(folder),
            after_publishing=lambda path, record: _after_saving(root, config, plan, events, record),
        )
        stack.callback(saver.close)
        this = Run(config, plan, folder, model, optimizer, events, stop, saver, FirstBatch(events, announce))
        announce(f'{config.run_name}: {_where(state, saved)}; {len(stages)} of {len(plan.stages)} stages remain.')
        for stage in stages:
            state = _train_stage(this, stage, state, device)
            if stop.agreed:
                events.record('preempted', signal=stop.agreed)
                announce(f'Saved at batch {state.batch:,}. Start the same command again to go on.')
                return EXIT_PREEMPTED
        events.record('finished')
        announce(f'{config.run_name} is finished: {plan.batches:,} batches, {plan.tokens:,} tokens.')
    return 0


def _train_stage(this: Run, stage: StagePlan, state: RunState, device: Any) -> RunState:
    """Trains one stage from where it is, to its end or until the run is told to go; returns where that is."""
    config, plan, events = this.config, this.plan, this.events
    stage_config = config.stages[stage.index]
    previous = plan.stages[stage.index - 1] if stage.index else None
    train = build_train_loader(
        stage_config,
        config=config,
        start_sample=(state.batch - stage.start_batch) * plan.global_batch_size,
        total_samples=stage.batches * plan.global_batch_size,
    )
    evals = {each.name: build_eval_loader(each, config=config) for each in config.eval.sets}
    state.enter(stage, train.fingerprint)

    clip = ClipGradients(this.model.pythia, config.max_grad_norm)
    rewarm = Rewarm(
        stage,
        hyperparameters=Hyperparameters(config.optimizer.betas, config.optimizer.eps, config.optimizer.weight_decay),
        record=events.record_once,
    )
    restore = Restore(
        state, timestamp=timestamp_at(state.batch, stage, plan), model=this.model.pythia, seed=config.seed
    )
    train_records = TrainRecords(this.folder, stage=stage, plan=plan, order=train.mix, grad_norm=lambda: clip.norm)
    eval_records = EvalRecords(
        this.folder,
        stage=stage,
        previous=previous,
        plan=plan,
        sets={each.name: (each, evals[each.name].card) for each in config.eval.sets},
        stopping=lambda: this.stop.agreed is not None,
    )
    checkpointing = Checkpointing(
        this.saver,
        stage=stage,
        plan=plan,
        describe=lambda now: describe_run(config, plan, state, now, rewarm),
        interval=config.checkpoints.interval,
        stop=this.stop,
        events=events,
    )
    events.at(batch=state.batch, tokens=state.batch * plan.tokens_per_batch, stage=stage.name)

    trainer = Trainer(
        run_name=config.run_name,
        model=this.model,
        optimizers=this.optimizer,
        train_dataloader=train.spec,
        eval_dataloader=[Evaluator(label=name, dataloader=each.spec) for name, each in evals.items()] or None,
        eval_interval=eval_records.due,
        max_duration=Time(stage.end_tokens, TimeUnit.TOKEN),  # counted from the run's start
        algorithms=[clip, rewarm, restore],  # last first at AFTER_LOAD: the stage begins on restored tensors
        callbacks=[eval_records, checkpointing, train_records, this.first_batch],
        loggers=load_loggers(config, f'{stage.name}-ba{state.batch:08d}'),
        device=device,
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
    if on_rank_zero(lambda: eval_records.missing_at(state.batch)):
        trainer.eval()
        eval_records.write(state.batch)
    if state.batch < stage.end_batch:
        trainer.fit()
    after = RunState(
        batch=int(trainer.state.timestamp.batch), algorithms={'Rewarm': rewarm.state_dict()}, stages=state.stages
    )
    trainer.close()
    release([train.dataset, *(each.dataset for each in evals.values())])
    if after.batch == stage.end_batch:
        events.record_once('stage_end')
    return after


def _open_folder(stack: ExitStack, folder: Path, root: Path, events: Events) -> str | None:
    """Takes the run folder for this run, clears what a kill left, and names the newest whole checkpoint."""
    root.mkdir(parents=True, exist_ok=True)
    stack.enter_context(run_lock(folder))
    remove_leftovers(root)
    found = find_newest_valid(root, events.record)
    return None if found is None else str(found.path)


def _run_state(config: RunConfig, saved: Checkpoint | None) -> RunState:
    """Where the run is: at its newest checkpoint, or at its beginning with the weights of ``init_from``."""
    if saved is not None:
        return RunState(saved.batch, saved.state['algorithms'], saved, saved.state['stages'])
    if config.model.init_from.startswith('checkpoint:'):
        origin = open_checkpoint(Path(config.model.init_from.removeprefix('checkpoint:')))
        # Of the other run only the tensors and the last rate come along; its stage is not ours.
        carried = {**origin.state['algorithms']['Rewarm'], 'stage': None}
        return RunState(0, {'Rewarm': carried}, origin)
    return RunState()


def _after_saving(root: Path, config: RunConfig, plan: Plan, events: Events, record: dict[str, Any]) -> None:
    """Records a checkpoint and makes room for the next; on rank 0's saving thread."""
    events.record('save', **record)
    stage_ends = {stage.end_batch for stage in plan.stages}
    for gone in retain(root, keep=config.checkpoints.keep, stage_ends=stage_ends):
        events.record('delete', path=str(gone))


def build_model(config: RunConfig, device: Any, *, initialise: bool) -> PythiaForTraining:
    """Builds the model, says what computes it, and gives it its first weights unless a checkpoint will.

    Args:
        config (RunConfig): The run file.
        device (Any): Composer's device.
        initialise (bool): Whether to set the weights that ``init_from`` names; NaN until a checkpoint is loaded otherwise.

    Returns:
        PythiaForTraining: On the device.

    Raises:
        UserError: If kernels, an attention or weights are asked for that cannot be had here.
    """
    dtype = torch.bfloat16 if config.precision == 'bf16' else torch.float32
    shape = config.model.shape
    where = torch.device(device.name if device.name != 'gpu' else 'cuda')
    heads = shape.num_attention_heads
    work = (config.device_train_microbatch_size, heads, config.max_seq_len, shape.hidden_size // heads)
    # Times differ between ranks, and kernels in their rounding: one rank chooses for all.
    choice = on_rank_zero(lambda: choose_backend(config.model.attention, where, shape=work, dtype=dtype))
    attention = attention_named(choice)
    ops = choose_ops(config.model.kernels.choices, where, attention)
    announce(
        f'Operations: {ops.description}{", layers compiled" if config.model.compile else ""}. '
        f'Attention: {attention.description}. Computing in {config.precision}.'
    )
    pythia = Pythia(shape, gelu=config.model.gelu, compute_dtype=dtype, ops=ops)
    if config.model.compile:
        pythia.compile_layers()
    if initialise and config.model.init_from == 'scratch':
        init_weights(pythia, config.seed)
    elif initialise:
        imported = load_hf(pythia, config.model.init_from.removeprefix('hf:'))
        for note in imported.notes:
            announce(note)
    return PythiaForTraining(pythia.to(where))


def _where(state: RunState, saved: Checkpoint | None) -> str:
    if saved is not None:
        return f'going on from {saved.path.name}'
    return f'starting from {state.checkpoint.path}' if state.checkpoint else 'starting at its beginning'
