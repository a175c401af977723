import pytest

from rewarm.config.secrets import REDACTED, is_secret_name, redacted, without_secrets


@pytest.mark.parametrize(
    'name',
    [
        'token',
        'api_token',
        'apiToken',
        'APIToken',
        'api_key',
        'apikey',
        'key',
        'AWS_SECRET_ACCESS_KEY',
        'secret',
        'password',
        'PGPASSWORD_FILE.password',
        'passwd',
        'db-credentials',
        'Authorization',
        'loggers.neptune.api_token',
        '--api-key',
        'X-Amz-Signature',
        'access_tokens',
    ],
)
def test_a_secret_is_known_by_its_name(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    'name',
    [
        'tokenizer',
        'max_tokens',
        'tokens_per_second',
        'text_key',
        'keep',
        'monkey',
        'keys',
        'tokens',
        'eos_token',
        'compass',
    ],
)
def test_what_only_sounds_like_a_secret_is_none(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    'text',
    [
        's3://user:hunter2@bucket/prefix',
        's3://AKIA:ab/hunter2+c@bucket/prefix',
        'http://user:p@hunter2@host:9000/x cannot be reached',
        'cannot open "https://hunter2@github.com/x"',
        'GET https://host/x?token=hunter2&y=1',
        'https://host/x?key=hunter2',
        'https://b.s3.amazonaws.com/k?X-Amz-Credential=hunter2%2Fus&X-Amz-Signature=hunter2',
        "{'api_key': 'hunter2', 'project': 'p'}",
        '{"password": "a hunter2 \\" hunter2"}',
        'api_token: hunter2',
        'password="hunter2 hunter2"',
        'loggers.neptune.api_token=hunter2',
        'loggers.tensorboard.log_dir=/logs?token=hunter2',
        'log_dir=/logs?run=1&key=hunter2',
        'Authorization: Bearer hunter2hunter2',
        'the header was Bearer hunter2hunter2',
        'hf_hunter2hunter2hunter2',
    ],
)
def test_no_secret_is_left_in_a_text(text):
    clean = without_secrets(text)
    assert 'hunter2' not in clean
    assert REDACTED in clean
    assert without_secrets(clean) == clean


@pytest.mark.parametrize(
    'text',
    [
        'http://127.0.0.1:1338/latest/meta-data@x is no address',
        'http://localhost:9000',
        's3://bucket/prefix/a@b',
        'sftp://user@host/path',
        'run.yaml:3: `tokenizer` data/tokenizer.json: there is no such file',
        'unknown key `loggers.x`. Known keys here: a, b',
        'stages.0.max_duration=2e9tok',
        'tokens_per_second=3000',
        'the key: it is missing',
        'Write `key=value`, such as `seed=3`',
    ],
)
def test_a_text_without_secrets_stays_as_it_is(text):
    assert without_secrets(text) == text


def test_settings_keep_their_shape():
    settings = {
        'loggers': {
            'mlflow': {'tracking_uri': 'https://me:hunter2@host/x', 'tags': ['a', {'token': 'hunter2'}]},
            'neptune': {'api_token': 'hunter2', 'credentials': {'user': 'hunter2', 'ids': [1, None, True]}},
        },
        'tokenizer': 'data/tokenizer.json',
        'seed': 17,
        'command': ['rewarm', 'train', 'loggers.neptune={api_token: hunter2}', 'loggers.neptune.api_token=hun ter2'],
    }
    clean = redacted(settings)
    assert clean == {
        'loggers': {
            'mlflow': {'tracking_uri': f'https://{REDACTED}@host/x', 'tags': ['a', {'token': REDACTED}]},
            'neptune': {'api_token': REDACTED, 'credentials': {'user': REDACTED, 'ids': [REDACTED, None, True]}},
        },
        'tokenizer': 'data/tokenizer.json',
        'seed': 17,
        'command': [
            'rewarm',
            'train',
            f'loggers.neptune={{api_token: {REDACTED}}}',
            f'loggers.neptune.api_token={REDACTED}',
        ],
    }
    assert redacted(clean) == clean


def test_an_option_with_its_value_after_it():
    assert redacted(['x', '--api-key', 'hunter2', '--password=hunter2']) == [
        'x',
        '--api-key',
        REDACTED,
        f'--password={REDACTED}',
    ]
