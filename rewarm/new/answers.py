"""What was given so far, as it was typed: by options, by answers to questions, or both."""

from dataclasses import dataclass, replace
from typing import cast

from rewarm.config.errors import UserError
from rewarm.config.messages import did_you_mean
from rewarm.new.request import (
    CURVES,
    Budget,
    Curve,
    Request,
    check_name,
    parse_budget,
    parse_evaluated,
    parse_replayed,
    parse_source,
)

__all__ = ['Answers']


@dataclass(frozen=True)
class Answers:
    """The options of ``rewarm new``; ``None`` where nothing was said."""

    name: str
    data: list[str] | None = None
    replay: list[str] | None = None
    evals: list[str] | None = None
    model: str | None = None
    budget: str | None = None
    lr: float | None = None
    curve: str = 'cosine'
    gpus: int | None = None
    global_batch_size: int | None = None
    seq_len: int | None = None
    tokenizer: str | None = None
    run_folder: str = 'runs/${run_name}'

    def request(self) -> Request:
        """The same, read.

        Raises:
            UserError: If a spelling is wrong.
        """
        if self.curve not in CURVES:
            raise UserError(f'--curve {self.curve!r:.60}: write {", ".join(CURVES)}.{did_you_mean(self.curve, CURVES)}')
        return Request(
            name=check_name(self.name),
            data=tuple(parse_source(each) for each in self.data or ()),
            model=self.model or '',
            replay=tuple(parse_replayed(each) for each in self.replay or ()),
            evals=tuple(parse_evaluated(each) for each in self.evals or ()),
            budget=Budget() if self.budget is None else parse_budget(self.budget),
            lr=self.lr,
            curve=cast(Curve, self.curve),
            gpus=self.gpus or 1,
            global_batch_size=self.global_batch_size,
            seq_len=self.seq_len,
            tokenizer=self.tokenizer,
            run_folder=self.run_folder,
        )

    def having(self, **answers: object) -> 'Answers':
        """The same with these said too."""
        return replace(self, **answers)  # pyright: ignore[reportArgumentType]
