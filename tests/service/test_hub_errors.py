"""What nobody caught goes to the log, in one line and not without end."""

from __future__ import annotations

import errno
import logging

import gevent
import pytest

from shadowmesh.service.hub_errors import report_errors_of


@pytest.fixture(autouse=True)
def _reported():
    hub = gevent.get_hub()
    before = hub.print_exception
    report_errors_of(hub)
    yield
    hub.print_exception = before


def fail(error, times):
    def run():
        raise error

    for _ in range(times):
        gevent.spawn(run).join()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_without_descriptors_one_sentence_says_what_to_do(caplog, capfd, number):
    with caplog.at_level(logging.WARNING):
        fail(OSError(number, "Too many open files"), 50)
    (record,) = caplog.records
    assert record.getMessage() == "something could not be opened"
    assert "LimitNOFILE" in record.fields["remedy"]
    assert "Traceback" not in capfd.readouterr().err


def test_a_bug_comes_with_its_stack_once(caplog, capfd):
    with caplog.at_level(logging.ERROR):
        fail(ZeroDivisionError("bug"), 50)
    (record,) = caplog.records
    assert record.getMessage() == "a greenlet failed by a bug"
    assert "ZeroDivisionError: bug" in str(record.fields["traceback"])
    assert "Traceback" not in capfd.readouterr().err
