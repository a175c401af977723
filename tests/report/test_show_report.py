import json

import pytest

from rewarm.report.show_report import report_command


@pytest.fixture
def browser(tmp_path, monkeypatch):
    """A browser that notes what it is asked to show."""
    for name in ('DISPLAY', 'WAYLAND_DISPLAY', 'BROWSER'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr('webbrowser._tryorder', None)  # found anew, by the environment
    monkeypatch.setattr('webbrowser._browsers', {})
    shown = tmp_path / 'shown'

    def install(name):
        program = tmp_path / 'bin' / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho "$1" >> {shown}\n')
        program.chmod(0o755)
        monkeypatch.setenv('PATH', str(program.parent))
        return program

    install.shown = shown
    return install


def test_the_page_is_opened_where_a_browser_is_asked_for_and_its_path_is_said(
    make_run, browser, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv('BROWSER', str(browser('firefox')))
    page = tmp_path / 'a page.html'
    report_command([make_run()], page, opening=True)
    assert capsys.readouterr() == (f'{page}\n', '')
    assert browser.shown.read_text() == f'{page.as_uri()}\n'


def test_without_a_browser_or_with_one_that_takes_the_terminal_nothing_is_started(
    make_run, browser, tmp_path, monkeypatch, capsys
):
    page, folder = tmp_path / 'page.html', make_run()
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv('TERM', 'xterm')
    report_command([folder], page, opening=True)
    assert capsys.readouterr() == (f'{page}\n', 'no browser was found here; open the file yourself\n')
    monkeypatch.setattr('webbrowser._tryorder', None)
    browser('w3m')
    report_command([folder], page, opening=True)
    out, err = capsys.readouterr()
    assert out == f'{page}\n'
    assert err == 'the only browser here, w3m, draws in the terminal; open the file yourself\n'
    assert not browser.shown.exists()


def test_as_json_it_tells_where_the_page_is_and_what_the_runs_show(make_run, tmp_path, capsys):
    folders = [make_run('rewarm'), make_run('constant')]
    report_command(folders, tmp_path / 'page.html', as_json=True, price=2)
    content = json.loads(capsys.readouterr().out)
    assert content['page'] == str(tmp_path / 'page.html')
    assert [each['run_name'] for each in content['runs']] == ['demo-rewarm', 'demo-constant']
    assert content['runs'][0]['cost'] > 0
    for finding in content['findings']:
        assert finding['verdict'] in ('seen', 'not seen', 'too close to tell')
