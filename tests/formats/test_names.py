"""Names from files and listings lie below the folder they belong to, and nowhere else."""

import pytest

from rewarm.config.errors import DamagedFile
from rewarm.formats.names import check_names, is_plain


@pytest.mark.parametrize('name', ['shard.00000.mds', 'g0/shard.00000.mds.zstd', 'a b/ü', '..a', 'a..', '.hidden'])
def test_relative_names_with_folders_are_plain(name):
    assert is_plain(name)


@pytest.mark.parametrize(
    'name',
    [
        *(
            '',
            '.',
            '..',
            '/etc/passwd',
            '../x',
            'a/../b',
            'a/..',
            'a//b',
            'a/',
            './a',
            'a\0b',
            'a\nb',
            'a\x1b[2J',
            '\udc80',
        ),
        *('n' * 256, 'ü' * 128, '/'.join(['n' * 200] * 6), None, 5, ['a']),
    ],
)
def test_what_leads_elsewhere_or_is_no_name_is_refused(name):
    assert not is_plain(name)
    with pytest.raises(DamagedFile, match=r'index\.json: damaged: the name'):
        check_names(['fine', name], 'index.json')


@pytest.mark.parametrize(
    ('names', 'what'),
    [
        (['a', 'b', 'a'], 'is there twice'),
        (['a/b', 'a'], 'is a file and a folder'),
        (['g0/index.json'], 'is the name of another file'),
    ],
)
def test_names_that_would_be_two_files_at_once_are_refused(names, what):
    with pytest.raises(DamagedFile, match=what):
        check_names(names, 'index.json', reserved=('index.json',))
