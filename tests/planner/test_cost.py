"""The time of a step, by hand."""

import pytest

from tunesmith.planner.cost import Demand, Work, cost_of, speed_of
from tunesmith.planner.rates import HostRates, Rates

HOST = HostRates(50e9, "measured")
COMPUTES = Work(flops=10**12, moved_bytes=10**9)  # 1,000 tokens: 1 s on the device below, of which memory needs 0.1


def rates(speed: float = 1.0, link: float = 10e9, launch: float = 0.0, watts: float | None = 300.0) -> Rates:
    return Rates(speed * 10**12, speed * 10**10, link, link, launch, watts, "measured")


def demand(**more) -> Demand:
    return Demand(COMPUTES, 1000, 32, **more)


def test_one_device_computes():
    found = speed_of([demand()], [rates()], HOST, 4000)
    assert found.step_seconds == pytest.approx(4.0) and found.bound == "compute"
    assert found.tokens_per_second == pytest.approx(1000) and found.watts == 300
    cost = cost_of(found, {"training": 3000.0, "evaluation": 600.0}, host_watts=100, price_per_kwh=0.5)
    assert (cost.seconds, cost.kwh, cost.price) == pytest.approx((3600, 0.4, 0.2))


def test_memory_bounds_a_pass_of_few_products():
    found = speed_of([Demand(Work(10**11, 10**10), 1000, 32)], [rates()], HOST, 4000)
    assert found.step_seconds == pytest.approx(4.0)


def test_unlike_devices_finish_together():
    found = speed_of([demand(), demand()], [rates(3.0), rates(1.0)], HOST, 4000)
    assert [lane.tokens for lane in found.lanes] == pytest.approx([3000, 1000])
    assert found.step_seconds == pytest.approx(1.0)
    equal = speed_of([demand(), demand()], [rates(3.0), rates(1.0)], HOST, 4000, equal=True)
    assert equal.step_seconds == pytest.approx(2.0)


def test_copies_hide_behind_computing_or_bound_the_step():
    hidden = speed_of([demand(brought_bytes=10 * 10**9)], [rates()], HOST, 4000)
    assert hidden.step_seconds == pytest.approx(4.0) and hidden.bound == "compute"
    bound = speed_of([demand(brought_bytes=80 * 10**9)], [rates()], HOST, 4000)
    assert bound.step_seconds == pytest.approx(8.0) and bound.bound == "link"
    both = speed_of([demand(brought_bytes=200 * 10**9)] * 2, [rates(link=40e9)] * 2, HOST, 4000)
    assert both.step_seconds == pytest.approx(8.0) and both.bound == "host memory"


def test_launches_are_a_floor():
    found = speed_of([demand()], [rates(launch=0.05)], HOST, 4000)
    assert found.step_seconds == pytest.approx(4 * 32 * 0.05) and found.bound == "launches"


def test_updates_and_the_exchange_of_gradients_come_after():
    alone = speed_of([demand(update=Work(0, 5 * 10**9))], [rates()], HOST, 4000, exchanged_bytes=10**9)
    assert alone.step_seconds == pytest.approx(4.5) and alone.exchange_seconds == 0
    two = speed_of([demand()] * 2, [rates()] * 2, HOST, 4000, exchanged_bytes=10**9)
    assert two.exchange_seconds == pytest.approx(0.1 + 3 / 50 + 0.1)
    assert two.step_seconds == pytest.approx(2 + two.exchange_seconds)
    home = speed_of([demand(update_bytes=(20 * 10**9, 10 * 10**9))], [rates()], HOST, 4000)
    assert home.step_seconds == pytest.approx(4 + 2)


def test_a_device_of_unknown_speed_has_no_time():
    unknown = Rates(None, None, 10e9, 10e9, 0.0, None, "unknown")
    assert speed_of([demand()], [unknown], HOST, 4000) is None
    assert speed_of([demand()], [rates(watts=None)], HOST, 4000).watts is None
