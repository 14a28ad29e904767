"""Each GPU is checked before a run, and a faulty one is left out by name: faults of links, memory, products, drivers
and processes, on invented GPUs."""

import itertools
import multiprocessing
import os
import re
import threading

import pytest
import torch

from tests import simulated_gpu
from tests.conftest import slow_but
from tests.finetune.conftest import gpu, messages_of
from tunesmith.errors import UserError
from tunesmith.evaluate.summary import summary
from tunesmith.finetune import gpu_check, gpu_measure, job, speed
from tunesmith.finetune.devices import Devices
from tunesmith.finetune.gpu_check import GpuCheck, check_gpus, usable_gpus
from tunesmith.machine import Gpu
from tunesmith.planner.rates import check_rates
from tunesmith.run import Run

CPU = torch.device("cpu")
FIELDS = [name for name in GpuCheck.__dataclass_fields__ if name.endswith("_per_second")]
RATES = [name for name in FIELDS if name not in gpu_check.MORE]  # of every check
TASKS = ("bytes", "products", "link", "together", "together to host")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(gpu_measure, "MOST_NUMBERS", 2**12)
    monkeypatch.setattr(gpu_measure, "FIRST_NUMBERS", 2**12)
    monkeypatch.setattr(gpu_measure, "FIRST_WIDTH", 64)
    monkeypatch.setattr(gpu_measure, "MOST_WIDTH", 64)
    monkeypatch.setattr(speed, "GPU_SHAPE", (128, 128, 8))
    monkeypatch.setattr(speed, "MEMORY_NUMBERS", 2**12)


# Links


class FaultyLink:
    """Copies with a fault in one direction: `change` gets the target after a copy, and its content before."""

    def __init__(self, change, is_to_gpu: bool):
        self.change, self.is_to_gpu, self.host = change, is_to_gpu, None

    def __call__(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self.host = self.host or source.data_ptr()  # the first copy is one to the GPU
        before = target.clone()
        target.copy_(source)
        if (source.data_ptr() == self.host) == self.is_to_gpu:
            self.change(target, before)


def flip_a_bit(target, before):
    target[len(target) // 3] ^= 1 << 17


def flip_two_bits_that_cancel_out(target, before):
    """A plain sum of the numbers stays the same."""
    target[5] += 1
    target[77] -= 1


def swap(target, before):
    target[[3, 4]] = target[[4, 3]]


def lose_the_last_page(target, before):
    target[-512:] = before[-512:]


def lose_everything(target, before):
    target[:] = before


def shift(target, before):
    target[:] = target.roll(1)


def clear(target, before):
    target.zero_()


FAULTS = [flip_a_bit, flip_two_bits_that_cancel_out, swap, lose_the_last_page, lose_everything, shift, clear]


def test_changes_that_undo_each_other_are_found(small):
    """What returns is what was sent."""

    def flip(target, source):
        target.copy_(source)
        flip_a_bit(target, None)

    with pytest.raises(gpu_measure.Faulty, match="a checksum of bytes that it received is wrong"):
        gpu_measure.check_bytes(gpu_measure.Link(CPU, flip), 0)


@pytest.mark.parametrize("is_to_gpu", [True, False], ids=["to", "from"])
@pytest.mark.parametrize("fault", FAULTS)
def test_changed_bytes_are_found(small, fault, is_to_gpu):
    link = gpu_measure.Link(CPU, FaultyLink(fault, is_to_gpu))
    direction = "bytes that are copied to it arrive" if is_to_gpu else r"\d of 32,768 bytes that are copied from it"
    with pytest.raises(gpu_measure.Faulty, match=direction):
        gpu_measure.check_bytes(link, 0)


def test_a_copy_that_stops_working_is_found(small):
    """The first pattern has arrived already, when the number of bytes of one copy was found."""
    copies = itertools.count()

    def copy_at_first(target, source):
        if next(copies) < 2:
            target.copy_(source)

    with pytest.raises(gpu_measure.Faulty, match="changed"):
        gpu_measure.check_bytes(gpu_measure.Link(CPU, copy_at_first), 0)


def test_a_good_link_passes_every_time(small):
    link = gpu_measure.Link(CPU)
    assert [gpu_measure.check_bytes(link, 0.01) for _ in range(3)] == [{}, {}, {}]  # of odd and even numbers of rounds


def wrong_in_one_place(left, right):
    product = left @ right
    product[1, 2] += 1
    return product


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_wrong_product_is_found(dtype):
    gpu_measure.check_product(CPU, dtype, torch.matmul)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(gpu_measure.Faulty, match=f"1 of 65,536 numbers .* in {name} were wrong"):
        gpu_measure.check_product(CPU, dtype, wrong_in_one_place)


def test_a_gpu_that_computes_wrong_after_a_while_is_found(small):
    products = itertools.count()

    def tiring(left, right):
        return (wrong_in_one_place if next(products) > 1 else torch.matmul)(left, right)

    with pytest.raises(gpu_measure.Faulty, match="were wrong"):
        gpu_measure.measure_products(CPU, torch.float32, tiring, 0.01)


# One process


def messages(device: torch.device, *tasks: str, **faults) -> list[tuple]:
    """The answers of a measuring process, which runs in a thread here."""
    here, there = multiprocessing.Pipe()
    thread = threading.Thread(target=gpu_measure.answer, args=(there, device, "float32"), kwargs=faults)
    threads = torch.get_num_threads()
    thread.start()
    answers = [here.recv()]
    for task in tasks:
        here.send((task, 0.01))
        answers.append(here.recv())
    here.close()
    thread.join()
    torch.set_num_threads(threads)
    return answers


def test_every_rate_is_measured(small):
    (ready, *rates) = messages(CPU, *TASKS)
    assert ready == ("ready", {"pinned": False}) and {kind for kind, _ in rates} == {"rates"}
    found = {name: value for _, values in rates for name, value in values.items()}
    assert found.pop("gpu") == {}  # the CPU has no link
    assert sorted(found) == sorted(FIELDS) and all(value > 0 for value in found.values())


def test_on_a_simulated_gpu(small, monkeypatch):
    """Every tensor is where it must be; the same fault in a product is found as on the CPU."""
    with simulated_gpu.played() as device:
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a")
        monkeypatch.setattr(gpu_measure, "state_of", {"GPU-a": {"pcie_lanes": 4}}.get)
        answers = messages(device, *TASKS, "speeds")
        assert [values["gpu"] for _, values in answers if "gpu" in values] == [{"pcie_lanes": 4}]
        assert [kind for kind, _ in answers] == ["ready", *["rates"] * (len(TASKS) + 1)]
        assert set(answers[-1][1]["speeds"]) == {"memory_bytes_per_second", "bfloat16", "float16", "float32"}
        [(kind, problem)] = messages(device, multiply=wrong_in_one_place)
        assert kind == "problem" and "1 of 65,536 numbers" in problem
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_100"])
        [(kind, problem)] = messages(device)
        assert kind == "problem" and problem.startswith("it has compute capability 9.0, which this torch (2.")


@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a torch without CUDA")
def test_a_torch_without_cuda_says_so():
    [(kind, problem)] = messages(torch.device("cuda", 0))
    assert kind == "problem" and "cannot use it: Torch not compiled with CUDA enabled; install" in problem


# What torch supports

WHEELS = {
    "2.13, CUDA 12.6": "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90",
    "2.13, CUDA 13.0": "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120 compute_120",
}


@pytest.mark.parametrize(
    "architectures, capability, expected",
    [
        (WHEELS["2.13, CUDA 12.6"], (6, 1), True),  # GTX 1080, Tesla P40
        (WHEELS["2.13, CUDA 12.6"], (5, 2), True),  # Tesla M40
        (WHEELS["2.13, CUDA 12.6"], (3, 7), False),  # Tesla K80
        (WHEELS["2.13, CUDA 12.6"], (8, 9), True),  # RTX 4090
        (WHEELS["2.13, CUDA 12.6"], (12, 0), False),  # RTX 5090
        (WHEELS["2.13, CUDA 13.0"], (6, 1), False),
        (WHEELS["2.13, CUDA 13.0"], (7, 0), False),  # V100: the minor version is lower
        (WHEELS["2.13, CUDA 13.0"], (7, 5), True),
        (WHEELS["2.13, CUDA 13.0"], (12, 1), True),
        (WHEELS["2.13, CUDA 13.0"], (13, 0), True),  # compiled from PTX
        ("sm_86", (8, 0), False),
        ("sm_86", (9, 0), False),
        ("sm_86", (8, 7), False),  # Jetson Orin
        ("sm_87", (8, 7), True),
        ("sm_87", (8, 9), False),
        ("compute_80", (7, 5), False),
        ("compute_80", (8, 7), True),
        ("compute_80", (12, 0), True),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (9, 1), False),
        ("compute_90a", (10, 0), False),
        ("sm_100f", (10, 3), True),
        ("compute_100f", (10, 3), True),
        ("compute_100f", (12, 0), False),
        ("", (8, 6), False),
        ("gfx90a unknown sm_ compute", (9, 0), False),
    ],
)
def test_what_torch_supports(architectures, capability, expected):
    assert gpu_measure.supports(architectures.split(), capability) is expected


@pytest.mark.skipif(not hasattr(torch.cuda, "DEVICE_REQUIREMENT"), reason="this torch has no table of its own")
def test_binary_code_is_what_torch_says_it_is():
    requirements = torch.cuda.DEVICE_REQUIREMENT
    assert len(requirements) > 15
    for built, device in itertools.product(requirements, requirements):
        assert gpu_measure.supports([f"sm_{built}"], divmod(device, 10)) == (device in requirements[built])


@pytest.mark.parametrize(
    "capability, said",
    [
        ((3, 7), "does not support; hide it with"),
        ((6, 1), "'torch<2.15' --index-url https://download.pytorch.org/whl/cu126)"),
        ((13, 0), "torch --index-url https://download.pytorch.org/whl/cu130)"),
    ],
)
def test_a_gpu_that_torch_does_not_support_comes_with_a_way_out(capability, said):
    problem = gpu_measure.unsupported(["sm_75", "sm_120"], capability, "2.13.0+cu130")
    assert "\n" not in problem and "(2.13.0+cu130)" in problem and said in problem
    assert gpu_measure.unsupported(["sm_75"], (7, 5), "2.13.0+cu130") is None


# Several processes


@pytest.fixture
def invented(monkeypatch):
    monkeypatch.setattr(gpu_check, "MEASURE", "tests.finetune.invented_gpus")
    monkeypatch.setattr(gpu_check, "GRACE_SECONDS", 8.0)
    return monkeypatch


def pids_of(module: str) -> list[str]:
    found = []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                command = file.read()
            with open(f"/proc/{entry}/stat") as file:
                is_there = file.read().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            continue
        if entry.isdigit() and module.encode() in command.split(b"\0") and is_there:
            found.append(entry)
    return found


def test_faulty_gpus_are_named_and_the_others_are_measured(invented):
    faults = [("works", "always"), ("flips", "always"), ("crashes", "link"), ("full", "products")]
    faults += [("raises", "together"), ("errs", "bytes")]
    invented.setattr(gpu_check, "MORE_SECONDS", 0.01)
    doing: list[str] = []
    found = check_gpus([gpu(number, *fault) for number, fault in enumerate(faults)], more=True, show=doing.append)
    assert [one.gpu.index for one in found] == list(range(len(faults)))
    good, flips, crashes, full, raises, errs = found
    assert good.problem is good.note is None and all(getattr(good, name) > 0 for name in RATES)
    assert good.compute == "bfloat16"
    assert flips.problem.startswith("a checksum of bytes that it received is wrong")
    assert crashes.problem == "the process that checked it died: SIGSEGV" and crashes.flops_per_second > 0
    assert full.problem is None and "too little of its memory is free" in full.note
    assert errs.problem is None and errs.note == "it could not be checked: KeyError: 'a bug'"
    assert raises.problem == "CUDA error: unspecified launch failure" and raises.to_gpu_bytes_per_second > 0
    assert not pids_of("tests.finetune.invented_gpus")
    # What the planner needs, too:
    check_rates({"GPU-0": good.rates}, "here")
    assert good.rates["to_device_bytes_per_second"] == good.together_bytes_per_second
    assert good.rates["to_host_bytes_per_second"] == good.together_to_host_bytes_per_second
    assert set(good.rates["flops_per_second"]) == {"bfloat16", "float16", "float32"}
    assert good.rates["memory_bytes_per_second"] > 0 and "flops_per_second" not in crashes.rates
    assert doing[0] == "starting CUDA" and "the link of GPU 1 (RTX 3090)" in doing
    assert not set(gpu_check.MORE) & set(good.as_dict())


@pytest.mark.parametrize("moment", slow_but(["bytes"], ["bytes", "together"]))
def test_a_gpu_that_hangs_ends_with_its_name(invented, moment):
    """The processes ignore SIGTERM or are stopped; a good GPU has all its rates all the same."""
    faults = [("hangs", moment), ("stops", moment), ("works", "always")]
    *bad, good = check_gpus([gpu(number, *fault) for number, fault in enumerate(faults)])
    assert all(re.fullmatch(r"it hangs: no answer within \d+ s of copying", one.problem) for one in bad)
    assert good.problem is None and all(getattr(good, name) > 0 for name in RATES)
    assert good.speeds is None
    assert not pids_of("tests.finetune.invented_gpus")


@pytest.mark.slow
def test_a_gpu_on_which_cuda_does_not_start_hangs(invented):
    invented.setattr(gpu_check, "START_SECONDS", 15.0)
    [found] = check_gpus([gpu(0, "hangs", "start")])
    assert found.problem == "it hangs: no answer within 15 s of starting CUDA"


@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a torch without CUDA")
def test_the_process_that_measures_starts_by_itself():
    [found] = check_gpus([gpu(0, capability=(7, 5))])
    assert "cannot use it: Torch not compiled with CUDA enabled" in found.problem and found.compute == "float16"


@pytest.mark.parametrize(
    ("fault", "said"),
    slow_but(
        [("exits", "failed: exit status 3")],
        [("exits", "failed: exit status 3"), ("hangs", "did not start within 6 s")],
    ),
)
def test_a_process_that_does_not_start_says_nothing_about_the_gpu(invented, fault, said):
    invented.setattr(gpu_check, "START_SECONDS", 6.0 if fault == "hangs" else 60.0)
    [found] = check_gpus([gpu(0, fault, "import")])
    assert found.problem is None and said in found.note and not any(getattr(found, name) for name in RATES)


class Stuck:
    """A process in uninterruptible sleep: it cannot be killed."""

    returncode = None

    def __init__(self, *_, **__):
        pass

    def kill(self) -> None:
        pass

    def wait(self, seconds: float) -> int:
        assert seconds <= gpu_check.KILL_SECONDS
        raise gpu_check.subprocess.TimeoutExpired("python", seconds)


def test_a_process_that_cannot_be_killed_is_left_behind(monkeypatch):
    monkeypatch.setattr(gpu_check.subprocess, "Popen", Stuck)
    monkeypatch.setattr(gpu_check, "START_SECONDS", 0.1)
    [found] = check_gpus([gpu(0)])
    assert found.note


# Runs


@pytest.fixture
def run(recipe) -> Run:
    return Run.create(recipe())


def usable(run: Run, gpus: list[Gpu], processes: int | None = None) -> list[int]:
    with Devices(run) as devices:
        return [one.index for one in usable_gpus(devices, gpus, "bfloat16", processes)]


def test_a_faulty_gpu_is_left_out_with_a_warning(machine, run):
    assert usable(run, machine(None, "it hangs", None)) == [0, 2]
    [checked] = run.events("gpu_check")
    assert [(one["index"], one["uuid"], one["problem"]) for one in checked["gpus"]] == [
        (0, "GPU-0 works always", None),
        (1, "GPU-1 works always", "it hangs"),
        (2, "GPU-2 works always", None),
    ]
    assert checked["gpus"][0]["to_gpu_bytes_per_second"] == 1e9 and checked["gpus"][0]["compute"] == "bfloat16"
    assert messages_of(run) == ["GPU 1 (RTX 3090) is left out: it hangs"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-0 works always,GPU-2 works always"


def test_good_gpus_stay_as_they_are(machine, run):
    assert usable(run, machine(None, None), processes=2) == [0, 1]
    assert not messages_of(run) and os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2"
    assert usable(run, []) == [] and len(run.events("gpu_check")) == 1


def test_a_gpu_that_could_not_be_checked_is_used(machine, run, monkeypatch):
    gpus = machine(None, None)
    found = [GpuCheck(gpus[0], "bfloat16", 1e9), GpuCheck(gpus[1], "bfloat16", note="it was not checked")]
    monkeypatch.setattr(gpu_check, "check_gpus", lambda gpus, compute: found)
    assert usable(run, gpus) == [0, 1] and messages_of(run) == ["GPU 1 (RTX 3090): it was not checked"]


def test_without_a_good_gpu_each_is_named_with_its_problem(machine, run):
    with pytest.raises(UserError) as raised:
        usable(run, machine("it hangs", "it is old", "it hangs"))
    assert str(raised.value) == (
        "no GPU can be used: GPU 0 (RTX 3090), GPU 2 (RTX 3090): it hangs; GPU 1 (RTX 3090): it is old"
    )


def test_cuda_that_has_started_on_a_faulty_gpu(machine, run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert usable(run, machine(None, "it hangs")) == [0]  # it is the GPU that this process computes on
    with pytest.raises(UserError, match="CUDA has already started on it .* CUDA_VISIBLE_DEVICES=GPU-1 works always"):
        usable(run, machine("it hangs", None))


def test_a_run_trains_and_resumes_on_the_gpus_that_are_left(machine, recipe):
    """Planned for those, also resumed on fewer: the numbers of processes and GPUs of each launch."""
    machine(None, "it hangs", None)
    run = job.train(recipe())
    assert run.plan.device == "cuda" and run.plan.processes == 2 and machine.launched == [[0, 2]]
    assert len(run.events("plan")[0]["gpus"]) == 2
    kinds = [event["event"] for event in run.events()]
    assert kinds.index("gpu_check") < kinds.index("warning") < kinds.index("plan")
    machine("it hangs", None, None)
    job.resume(run.folder)
    assert machine.launched[1:] == [[2]] and len(run.events("gpu_check")) == 2
    machine("it hangs", "it is old")
    with pytest.raises(UserError, match="no GPU can be used: GPU 0 .*: it hangs; GPU 1 .*: it is old"):
        job.resume(run.folder)
    assert len(machine.launched) == 2


def test_a_run_needs_the_gpus_that_its_recipe_names(machine, recipe):
    wanted = recipe(train={"processes": 3})
    machine(None, "it hangs", None)
    with pytest.raises(UserError) as raised:
        job.train(wanted)
    reasons = "but 2 of 3 GPUs can be used (GPU 1 (RTX 3090): it hangs)"
    assert str(raised.value) == f"train.processes: 3 asked for, {reasons}; set train.processes to 2"
    assert not Run(wanted.output / "run").folder.exists()

    machine(None, None, None)
    run = job.train(wanted)
    assert machine.launched == [[0, 1, 2]]
    machine(None, "it hangs", None)
    with pytest.raises(
        UserError, match=r"train.processes: 3 asked .*resume \S+ --processes 2` continues with the rest"
    ):
        job.resume(run.folder)
    with pytest.raises(UserError, match="--processes: 3 asked for, but 2 of 3 GPUs .*; set --processes to 2"):
        job.resume(run.folder, processes=3)
    job.resume(run.folder, processes=2)
    assert machine.launched[1:] == [[0, 2]]


@pytest.mark.parametrize("apart", [False, True])
def test_a_single_gpu_has_a_process_of_its_own_if_asked(machine, recipe, monkeypatch, apart):
    """As on the command line, where the launcher ends one that hangs."""
    here = []
    monkeypatch.setattr("tunesmith.finetune.worker.work", here.append)
    machine(None)
    run = job.train(recipe(), apart=apart)
    job.resume(run.folder, apart=apart)
    assert (machine.launched, here) == (([[0], [0]], []) if apart else ([], [run.folder] * 2))


def test_the_time_between_a_stop_and_a_resume_does_not_count(machine, run, monkeypatch):
    machine(None)
    now = 0.0
    monkeypatch.setattr("tunesmith.run.time.time", lambda: now)
    run.log("start", step=0)
    now = 10.0
    run.log("stop", step=1, reason="interrupted")
    now = 5000.0
    usable(run, [gpu(0)])
    now = 5001.0
    run.log("resume", step=1)
    now = 5011.0
    run.log("stop", step=2, reason="done")
    assert summary(run)["seconds"] == 20.0
