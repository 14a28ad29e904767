"""Curves are those of the run's events, whatever the zoom and however the file grew."""

import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.studio.conftest import steps, written
from tunesmith.studio.curves import Histories, History, smoothed, thinned

VALUES = st.floats(allow_nan=True, allow_infinity=True)


def updated(file) -> History:
    history = History(file)
    history.update()
    return history


def curve(found, name):
    return next(one for one in found.curves if one.name == name)


@given(values=arrays(float, st.integers(0, 400), elements=VALUES), pixels=st.integers(10, 60))
def test_each_part_keeps_its_extremes_and_what_is_no_number(values, pixels):
    kept = thinned(values, pixels)
    assert len(kept) <= max(2 * pixels, 3 * pixels + 2) and (np.diff(kept) > 0).all()
    finite = values[np.isfinite(values)]
    if finite.size:
        shown = values[kept][np.isfinite(values[kept])]
        assert shown.min() == finite.min() and shown.max() == finite.max()
    assert np.isfinite(values).all() == np.isfinite(values[kept]).all()


@given(
    values=arrays(float, st.integers(0, 300), elements=st.floats(-1e6, 1e6) | st.just(math.nan)),
    weight=st.floats(0.01, 0.999),
)
def test_smoothing_is_the_moving_average_without_bias(values, weight):
    total = share = 0.0
    for value, smooth in zip(values, smoothed(values, weight)):
        if math.isfinite(value):
            total, share = weight * total + (1 - weight) * value, weight * share + 1 - weight
        expected = total / share if share else math.nan
        assert smooth == pytest.approx(expected, rel=1e-6, abs=1e-6, nan_ok=True)


def test_a_spike_shows_at_every_zoom(tmp_path):
    file = tmp_path / "events.jsonl"
    values = [*steps(5000), *steps(1, 5001, loss=90.0), *steps(4999, 5002)]
    file.write_bytes(written(values))
    history = updated(file)
    for low, high in ((None, None), (4000, 6000), (4900, 5100), (5001, 5001)):
        found = curve(history.curves("step", 100, low, high, 0.0), "loss")
        assert max(found.y) == 90.0 and found.x[found.y.index(90.0)] == 5001
    assert 90.0 not in curve(history.curves("step", 100, 5002, None, 0.0), "loss").y


def test_a_loss_that_is_no_number_is_drawn_as_that(tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_bytes(written([*steps(3), *steps(1, 4, loss=None), *steps(2, 5)]))
    found = curve(updated(file).curves("step", 100, None, None, 0.5), "loss")
    assert found.y == [3.0, 1.5, 1.0, None, 0.6, 0.5]
    file.write_bytes(written(steps(4, loss=None)))
    assert curve(updated(file).curves("step", 100, None, None, 0.0), "loss").y == [None] * 4


def test_steps_that_a_resume_undid_are_not_drawn(tmp_path):
    file = tmp_path / "events.jsonl"
    history = History(file)
    evaluated = [("eval", {"step": 4, "loss": 2.0, "low": 1.5, "high": 2.5, "rows": 10, "seconds": 1.0})]
    later = [("eval", {"step": 8, "loss": 1.0, "rows": 10, "seconds": 1.0})]
    file.write_bytes(written([*steps(5), *evaluated, *steps(5, 6), *later]))
    history.update()
    before = history.curves("time", 100, None, None, 0.0)
    assert curve(before, "held_out_loss").y == [2.0, 1.0]
    with file.open("ab") as lines:
        lines.write(written([("resume", {"step": 6}), *steps(2, 7, loss=0.25)]))
    history.update()
    after = history.curves("time", 100, None, None, 0.0)
    assert curve(after, "loss").x == [0.5 * step for step in range(1, 9)]
    assert curve(after, "loss").y == [3.0 / step for step in range(1, 7)] + [0.25, 0.25]
    held_out = curve(after, "held_out_loss")
    assert (held_out.x, held_out.y, held_out.low, held_out.high) == ([2.0], [2.0], [1.5], [2.5])
    assert after.resumed == [3.0] and after.step == 8


def test_x_may_be_steps_tokens_time_and_energy(tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_bytes(written([*steps(2, joules=10.0), *steps(2, 3, tokens=50, seconds=1.0, joules=30.0)]))
    history = updated(file)
    axes = {x: curve(history.curves(x, 100, None, None, 0.0), "loss").x for x in ("step", "tokens", "time", "energy")}
    assert axes == {
        "step": [1, 2, 3, 4],
        "tokens": [100, 200, 250, 300],
        "time": [0.5, 1.0, 2.0, 3.0],
        "energy": [10, 20, 50, 80],
    }
    assert curve(history.curves("step", 100, None, None, 0.0), "watts").y == [20.0, 20.0, 30.0, 30.0]


@given(cuts=st.lists(st.integers(1, 400), max_size=6), names=st.sampled_from(["accuracy", "loss", "é"]))
def test_a_file_that_grows_in_any_pieces_gives_the_same_curves(tmp_path_factory, cuts, names):
    data = written([*steps(3), *steps(2, 4, metrics={names: 0.5}), ("resume", {"step": 4}), *steps(3, 5)])
    folder = tmp_path_factory.mktemp("grows")
    growing = History(folder / "growing")
    for cut in sorted(cuts):
        (folder / "growing").write_bytes(data[: cut * 4])
        growing.update()
    (folder / "growing").write_bytes(data)
    growing.update()
    (folder / "whole").write_bytes(data)
    whole = History(folder / "whole")
    whole.update()
    assert growing.curves("tokens", 50, None, None, 0.9) == whole.curves("tokens", 50, None, None, 0.9)


def test_a_run_that_was_begun_again_starts_anew(tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_bytes(written(steps(20)))
    histories = Histories()
    with histories.of(file):
        pass
    file.write_bytes(written(steps(2, loss=1.0)))
    with histories.of(file) as history:
        found = curve(history.curves("step", 50, None, None, 0.0), "loss")
    assert (found.x, found.y) == ([1, 2], [1.0, 1.0])
    file.unlink()
    with histories.of(file) as history:
        assert history.curves("step", 50, None, None, 0.0).curves == []


def test_requests_at_the_same_time_read_a_run_once(tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_bytes(written(steps(3000)))
    histories, together = Histories(), Barrier(8)

    def count(_) -> int:
        together.wait()
        with histories.of(file) as history:
            return history.curves("step", 4000, None, None, 0.5).curves[0].count

    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(count, range(8))] == [3000] * 8


def test_smoothing_takes_no_more_memory_than_the_values():
    values = np.array([1.0, 2.0, 3.0])
    assert smoothed(values, np.nextafter(1, 0)) == pytest.approx(smoothed(values, 0.999999), rel=1e-3)
