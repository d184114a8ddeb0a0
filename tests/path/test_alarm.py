"""Work that is done in time, and a greenlet that is there only meanwhile."""

from __future__ import annotations

import gc
import weakref

import gevent
from gevent.event import Event

from shadowmesh.path.alarm import Alarm


def test_the_work_is_done_after_news_and_in_time() -> None:
    done: list[str] = []
    alarm = Alarm()
    alarm.does(lambda: done.append("work"))
    alarm.set()
    assert done == [], "not at once"
    gevent.idle()
    assert done == ["work"]
    alarm.ring_in(0.01)
    alarm.ring_in(0.02)  # in place of the other
    gevent.sleep(0.08)
    assert done == ["work"] * 2
    alarm.ring_in(0.01)
    alarm.ring_in(None)
    gevent.sleep(0.05)
    assert done == ["work"] * 2


def test_news_while_the_work_is_done_are_worked_on_once_more_and_its_own_are_not() -> None:
    go_on, done = Event(), []

    def work() -> None:
        done.append("work")
        alarm.set()
        go_on.wait()

    alarm = Alarm()
    alarm.does(work)
    alarm.set()
    gevent.idle()
    for _ in range(3):
        alarm.set()
    go_on.set()
    gevent.sleep(0.01)
    assert done == ["work"] * 2


def test_what_passes_needs_no_greenlet() -> None:
    asked: list[str] = []
    alarm = Alarm()
    alarm.does(lambda: asked.append("work"), lambda: not asked and not asked.append("look"))
    alarm.ring_in(0.0)
    gevent.sleep(0.02)
    assert asked == ["look"]
    alarm.ring_in(0.0)
    gevent.sleep(0.02)
    assert asked == ["look", "work"]


def test_after_stop_nothing_is_done_and_nobody_is_held() -> None:
    class Owner:
        def __init__(self) -> None:
            self.done = 0
            self.alarm = Alarm()
            self.alarm.does(self.work)

        def work(self) -> None:
            self.done += 1

    owner = Owner()
    owner.alarm.set()
    owner.alarm.ring_in(0.0)
    owner.alarm.stop()
    owner.alarm.set()
    owner.alarm.ring_in(0.0)
    gevent.sleep(0.02)
    assert owner.done == 0
    gc.collect()
    gc.disable()
    try:
        left = weakref.ref(owner)
        del owner
        assert left() is None
    finally:
        gc.enable()
