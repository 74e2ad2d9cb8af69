"""What runs in the background waits for callbacks and for cells."""

import threading

from tiny_backprop_widgets.background import cells, guard


def test_the_background_waits_until_no_callback_has_come_for_a_while(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
    guarded = guard.Guard()
    waits = []

    class Over(threading.Event):
        def wait(self, timeout=None):
            now[0] += timeout
            waits.append(timeout)
            if len(waits) == 1:
                guarded(lambda: now.append(now.pop() + 5.0))  # comes as the wait ends, and takes 5 s
            return self.is_set()

    assert guarded.wait_until_idle(2.0, Over())
    assert (waits, now) == ([2.0, 2.0], [9.0])
    over = threading.Event()
    over.set()
    assert not guarded.wait_until_idle(0.0, over)


class Shell:
    """An IPython that runs a cell, with no more than its events."""

    def __init__(self):
        self.events, self._called = self, {}

    def register(self, event, callback):
        self._called[event] = callback

    def trigger(self, event):
        self._called[event](None)


def test_what_is_done_unasked_waits_for_cells_as_well(monkeypatch):
    now, shell, waits = [0.0], Shell(), []
    monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cells, "get_ipython", lambda: shell)
    guarded = guard.Guard()

    class Over(threading.Event):
        def wait(self, timeout=None):
            now[0] += timeout
            waits.append(timeout)
            if len(waits) == 3:  # the cell that made the explorer ends
                shell.trigger("post_run_cell")
            return self.is_set()

    assert guarded.wait_until_idle(2.0, Over())  # asked for: only callbacks count
    assert waits == [2.0]
    assert guarded.wait_until_idle(2.0, Over(), for_cells=True)
    assert waits == [2.0] * 4
    for event, is_running in (("pre", True), ("pre", True), ("post", True), ("post", False)):  # a cell within a cell
        shell.trigger(f"{event}_run_cell")
        now[0] += 10
        over = threading.Event()
        threading.Timer(0.05, over.set).start()
        assert guarded.wait_until_idle(0.01, over, for_cells=True) == (not is_running)
