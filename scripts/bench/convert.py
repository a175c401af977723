"""Conversion: tokens/s of `rewarm` against the steps of LLM Foundry's `convert_text_to_mds`, same files, same cores.

LLM Foundry cannot be installed beside this stack (it pins an older torch), so its steps are written out here with the
same libraries: a process pool over groups of files, the `transformers` fast tokenizer on chunks of a million characters
(or on each record), tokens joined with EOD and cut into rows, `MDSWriter` in each process, the indexes merged.

Each side runs in processes of its own, imports included. Prints one line of JSON for each kind of file.

    python scripts/bench/convert.py --data ../shared/data --megabytes 100
"""

import argparse
import io
import itertools
import json
import lzma
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from _common import circumstances

SEQ_LEN = 2048
FILES = 8
VERSIONS_OF = ('tokenizers', 'transformers', 'mosaicml-streaming', 'gigatoken', 'numpy')


def main() -> None:
    """Writes the input, runs both sides in turn, and prints what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', help='folder of corpora (default: REWARM_DATA, or ../shared/data; skipped if absent)')
    parser.add_argument('--megabytes', type=float, default=100, help='text to convert, in MB')
    parser.add_argument('--workers', type=int, default=len(os.sched_getaffinity(0)), help='processes of each side')
    parser.add_argument('--kinds', default='txt,jsonl', help='kinds of files')
    parser.add_argument('--only', choices=('rewarm', 'foundry'), help='run one side alone')
    parser.add_argument('--side', nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side, source, out, tokenizer = options.side
        (_rewarm if side == 'rewarm' else _foundry)(Path(source), Path(out), tokenizer, options.workers)
        return
    data = Path(options.data or os.environ.get('REWARM_DATA', '../shared/data'))
    if not (data / 'corpora').is_dir():
        if options.data:
            sys.exit(f'{data}: no folder of corpora')
        print(f'Conversion is skipped: {data} is no folder of corpora; name one with --data or REWARM_DATA.')
        return
    for kind in options.kinds.split(','):
        with tempfile.TemporaryDirectory(prefix='rewarm-bench-') as folder:
            print(json.dumps(_compare(data, Path(folder), kind, options)), flush=True)


def _compare(data: Path, folder: Path, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    (folder / 'tokenizer').mkdir()
    (folder / 'tokenizer' / 'tokenizer.json').write_bytes(lzma.open(data / 'neox-20b-tokenizer.json.xz').read())
    settings = {'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': '<|endoftext|>'}
    (folder / 'tokenizer' / 'tokenizer_config.json').write_text(json.dumps(settings))
    _write_input(data, folder / 'in', kind, int(options.megabytes * 1e6))
    size = sum(path.stat().st_size for path in (folder / 'in').iterdir())
    sides = {}
    for side in ('foundry', 'rewarm'):
        if options.only in (None, side):
            command = [
                sys.executable, __file__, '--workers', str(options.workers), '--side', side,
                str(folder / 'in'), str(folder / side), str(folder / 'tokenizer'),
            ]  # fmt: skip
            seconds, peak = _measure(command)
            shards = [json.loads(index.read_text())['shards'] for index in (folder / side).glob('index.json')]
            tokens = sum(shard['samples'] for shard in shards[0]) * SEQ_LEN
            sides[side] = {
                'seconds': round(seconds, 2), 'tokens': tokens, 'tokens_per_second': round(tokens / seconds),
                'mb_per_second': round(size / seconds / 1e6, 2), 'peak_rss_bytes_all_processes': peak,
            }  # fmt: skip
    result: dict[str, Any] = {'bench': 'convert', 'kind': kind, 'bytes': size, 'files': FILES, **sides}
    if len(sides) == 2:
        result['ratio'] = round(sides['rewarm']['tokens_per_second'] / sides['foundry']['tokens_per_second'], 1)
    return {**result, 'seq_len': SEQ_LEN, 'workers': options.workers, **circumstances(*VERSIONS_OF)}


def _write_input(data: Path, folder: Path, kind: str, size: int) -> None:
    """The three corpora in turn, dealt to files of about equal size."""
    folder.mkdir()
    readers = [_texts(path) for path in sorted((data / 'corpora').glob('*.jsonl.zst')) if '.val.' not in path.name]
    written = 0
    files = [(folder / f'{i}.{kind}').open('w', encoding='utf-8', newline='\n') for i in range(FILES)]
    for number, text in enumerate(itertools.chain.from_iterable(zip(*readers, strict=False))):
        if written >= size:
            break
        row = text + '\n' if kind == 'txt' else json.dumps({'text': text}, ensure_ascii=False) + '\n'
        written += files[number // len(readers) % FILES].write(row)
    for file in files:
        file.close()


def _texts(path: Path) -> Iterator[str]:
    import zstandard

    with path.open('rb') as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file)
        for line in io.TextIOWrapper(stream, encoding='utf-8', newline='\n'):
            yield json.loads(line)['text']


def _measure(command: list[str]) -> tuple[float, int]:
    """Wall seconds of a command, and the peak of the summed resident memory of it and its descendants, in bytes."""
    peak, done = 0, threading.Event()
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, _resident_tree(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    if code:
        raise SystemExit(f'{" ".join(command)} ended with {code}')
    return seconds, peak


def _resident_tree(pid: int) -> int:
    try:
        pages = int(Path(f'/proc/{pid}/statm').read_text().split()[1])
        children = [
            int(child)
            for task in Path(f'/proc/{pid}/task').iterdir()
            for child in (task / 'children').read_text().split()
        ]
    except OSError:
        return 0
    return pages * os.sysconf('SC_PAGE_SIZE') + sum(map(_resident_tree, children))


def _rewarm(source: Path, out: Path, tokenizer: str, workers: int) -> None:
    from rewarm.data.convert import convert

    convert([str(source)], str(out), tokenizer=tokenizer, seq_len=SEQ_LEN, workers=workers, progress=False)


def _foundry(source: Path, out: Path, tokenizer: str, workers: int) -> None:
    from streaming.base.util import merge_index

    files = sorted(source.iterdir())
    groups = [files[i::workers] for i in range(workers)]
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(_foundry_group, groups, [out / str(i) for i in range(workers)], [tokenizer] * workers))
    merge_index(str(out), keep_local=True)


def _foundry_group(files: list[Path], out: Path, tokenizer_name: str) -> None:
    from streaming import MDSWriter
    from transformers import AutoTokenizer

    os.environ['TOKENIZERS_PARALLELISM'] = 'false'
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    tokenizer.model_max_length = int(5e9)
    with MDSWriter(out=str(out), columns={'tokens': 'ndarray:int32'}) as writer:
        for row in _foundry_rows(files, tokenizer):
            writer.write({'tokens': row})


def _foundry_rows(files: list[Path], tokenizer: Any) -> Iterator[Any]:
    import numpy as np

    end = tokenizer('<|endoftext|>', add_special_tokens=False)['input_ids']
    held: list[int] = []
    for path in files:
        with path.open(encoding='utf-8') as file:
            if path.suffix == '.jsonl':
                pieces = ((json.loads(line)['text'], True) for line in file)
            else:
                pieces = ((chunk, False) for chunk in iter(partial(file.read, 1_000_000), ''))
            for text, ends in pieces:
                held += tokenizer(text, truncation=False, padding=False)['input_ids'] + (end if ends else [])
                while len(held) >= SEQ_LEN:
                    row, held = held[:SEQ_LEN], held[SEQ_LEN:]
                    yield np.asarray(row, dtype=np.int32)
        if path.suffix != '.jsonl':
            held += end


if __name__ == '__main__':
    main()
