"""One conversion: what goes in, what comes out, and what decides the bytes."""

from dataclasses import dataclass, replace

from rewarm import __version__
from rewarm.data.shards import ShardFormat
from rewarm.data.sources import Source
from rewarm.data.split import RULE, RULES, rule_of
from rewarm.data.tokens import TokenizerFacts
from rewarm.formats.conversion import Identity


@dataclass(frozen=True)
class Job:
    """A conversion, all checked and resolved."""

    sources: list[Source]
    """Files to read, in order."""
    out: str
    """Folder or ``s3://`` prefix of the dataset, without a slash at its end."""
    facts: TokenizerFacts
    """Tokenizer and encoder."""
    shape: ShardFormat
    """How blocks are laid down."""
    text_key: str
    """Key or column of the text."""
    val_fraction: float
    """Share of documents that go to ``val/``; 0 for no split."""
    tokenizer_hash: str
    """Hash of the tokenizer, as the card has it."""
    part_bytes: int
    """Uncompressed bytes that a worker takes at a time."""
    split_rule: int = RULE
    """Rule by which documents are chosen for ``val/``; that of its beginning, for work that is unfinished."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Folders below `out` that each hold a dataset; ``''`` for `out` itself."""
        return ('train', 'val') if self.val_fraction else ('',)

    @property
    def settings(self) -> dict[str, str | int | float | bool | None]:
        """What, besides the files, decides the bytes."""
        return {
            'tokenizer_hash': self.tokenizer_hash,
            'eod': self.facts.eod,
            'seq_len': self.shape.seq_len,
            'text_key': self.text_key,
            'val_fraction': self.val_fraction,
            'compression': self.shape.compression,
            'shard_bytes': self.shape.shard_bytes,
            # The first rule was not named in cards; without a split there is none.
            **({'split_rule': self.split_rule} if self.val_fraction and self.split_rule > 1 else {}),
        }

    @property
    def identity(self) -> Identity:
        """What must not change while the work is unfinished."""
        made_by = {'encoder': self.facts.why, 'part_bytes': self.part_bytes, 'converter': f'rewarm {__version__}'}
        sources = tuple((s.name, s.path, s.bytes, s.version) for s in self.sources)
        return Identity(settings={**self.settings, **made_by}, sources=sources)

    def as_begun(self, there: Identity | None) -> 'Job':
        """The same conversion by the rule of the split that its unfinished work has begun with, if that is what is there."""
        if there is not None and (rule := rule_of(there.settings)) in RULES:
            begun = replace(self, split_rule=rule)
            return begun if begun.identity == there else self
        return self
