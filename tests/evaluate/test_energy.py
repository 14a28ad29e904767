"""Energy and price of made-up runs, by arithmetic that is written out here."""

import pytest

from tests.evaluate.test_report import Page, new_run, printed
from tunesmith.cli import runs
from tunesmith.evaluate.summary import summary
from tunesmith.files import write_json
from tunesmith.run import Run
from tunesmith.units import energy


def step(run: Run, number: int, joules: float | None) -> None:
    values = {} if joules is None else {"joules": joules}
    run.log(
        "step",
        step=number,
        loss=1.0,
        learning_rate=1e-4,
        tokens=1000,
        supervised_tokens=500,
        seconds=2.0,
        tokens_per_second=500.0,
        memory_bytes=10**9,
        **values,
    )


@pytest.fixture
def run(tmp_path) -> Run:
    """Two steps at 300 W, planned at 0.9 kWh."""
    made = new_run(tmp_path, power={"host_watts": 50, "price_per_kwh": 0.4})
    made.log("energy", device="cuda", joules=7e4, seconds=100.0)
    for number in (1, 2):
        step(made, number, 600.0)
    made.log("energy", device="cuda", joules=1.26e6, seconds=7200.0)  # 0.35 kWh; the host takes 0.1 kWh
    write_json(made.plan_file, {"predicted": {"kwh": 0.9}})
    return made


def test_the_host_and_the_price_are_added(run):
    found = summary(run)
    assert (found["joules"], found["joules_per_token"]) == (1.26e6, 0.6)
    assert (found["kwh"], found["price"]) == pytest.approx((0.45, 0.18))
    assert (
        "0.35 kWh of the GPUs, 0.60 J a token; 0.45 kWh with 50 W of the host, 0.18 at 0.4 a kWh; "
        "planned at most 0.90 kWh without evaluation"
    ) in printed(runs.show_run(run))


def test_the_report_shows_it_with_the_power_of_each_step(run):
    page = Page(run)
    assert "Energy 0.45 kWh 0.35 kWh of the GPUs, 50 W of the host; planned at most 0.90 kWh" in page.text
    assert "Energy per token 0.60 J" in page.text and "Cost 0.18 at 0.4 a kWh" in page.text
    assert "Watts" in page.text and "Watts: 300" in page.text


def test_a_comparison_shows_it(run, tmp_path):
    other = new_run(tmp_path, "other")
    [row] = [line for line in printed(runs.compare([run, other])).splitlines() if line.startswith("Energy")]
    assert row.split("  ", 1)[1].split() == ["0.45", "kWh", "–"]


def test_the_watts_of_the_host_include_its_cpu(run):
    run.log("energy", device="cpu", joules=1.8e5, seconds=7200.0)
    assert summary(run)["kwh"] == pytest.approx(0.1)
    run.log("energy", device="cpu", joules=1.8e6, seconds=7200.0)
    assert summary(run)["kwh"] == pytest.approx(0.5)
    assert "0.50 kWh of the CPU, " in printed(runs.show_run(run))


def test_steps_without_joules_do_not_count_per_token(run):
    step(run, 3, None)
    step(run, 4, 1800.0)
    assert summary(run)["joules_per_token"] == pytest.approx(1.0)


def test_energy_before_a_resume_is_kept_when_its_steps_are_repeated(run):
    run.log("resume", step=1)
    assert summary(run)["joules"] == 1.26e6 and summary(run)["steps_done"] == 1


def test_unknown_energy_has_its_reason_and_no_price(run):
    run.log("energy", device="cuda", joules=None, seconds=9.0, unknown="a device <stopped>")
    found = summary(run)
    assert found["joules"] is found["kwh"] is found["price"] is None
    assert "unknown: a device <stopped>" in printed(runs.show_run(run))
    assert "Energy unknown a device <stopped>" in Page(run).text


def test_a_run_without_events_of_energy_shows_none(tmp_path):
    run = new_run(tmp_path)
    step(run, 1, None)
    assert summary(run)["kwh"] is None
    assert (
        "Energy" not in printed(runs.show_run(run)) and "Energy" not in Page(run).text and "Watts" not in Page(run).text
    )


@pytest.mark.parametrize(
    ("joules", "text"), [(0, "0.0 J"), (359, "359.0 J"), (360, "0.1 Wh"), (3.6e5, "0.10 kWh"), (3.6e9, "1,000.00 kWh")]
)
def test_units(joules, text):
    assert energy(joules) == text
