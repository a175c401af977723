"""Text from files is shown and not obeyed."""

from rewarm.terminal import printable


def test_what_steers_a_terminal_is_spelled_out_and_the_rest_stays():
    assert (
        printable('\x1b]52;c;aGk=\x07 \x9b2J \u202egpj \ud800 \r') == r'\x1b]52;c;aGk=\x07 \x9b2J \u202egpj \ud800 \r'
    )
    assert printable('Größe 5\n\t💥 é') == 'Größe 5\n\t💥 é'
