"""Training on the machines of a Ray cluster. Two Ray nodes on this machine stand for two machines."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.finetune.test_recovery import last_step, wait_until
from tunesmith.cli.main import main
from tunesmith.errors import Interrupted, UserError
from tunesmith.finetune import job, launch, ray_cluster, watchdog, worker
from tunesmith.finetune.ray_cluster import Cluster, Node, divided
from tunesmith.machine import Gpu, Machine
from tunesmith.plan import Plan
from tunesmith.run import Run
from tunesmith.training import distributed, loop

ROOT = Path(__file__).parents[2]
MEMORY_BYTES = 80 * 2**20  # of Ray's object store, which nothing here uses
TRAIN = {"max_steps": 12, "eval_every": 4, "save_every": 1, "processes": 2}
work = worker.work


@pytest.fixture
def asked(recipe):
    def build(name: str = "run", **settings):
        return recipe(name=name, data={"eval_share": 0.1}, adapter={"dropout": 0}, train=TRAIN | settings)

    return build


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A Ray cluster of two nodes with a core each."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'tunesmith[ray]'")
    from ray.cluster_utils import Cluster

    settings = {"num_cpus": 1, "object_store_memory": MEMORY_BYTES}
    with pytest.MonkeyPatch.context() as patch:  # Ray's processes inherit it
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("TUNESMITH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        started = Cluster(initialize_head=True, head_node_args=settings | {"include_dashboard": False})
        try:
            started.add_node(**settings)
            yield started
        finally:
            started.shutdown()


def losses(run: Run) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in run.events("step", "eval")]


def near(expected: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Sums over another number of processes are rounded in another order."""
    return [(step, pytest.approx(loss, rel=1e-5)) for step, loss in expected]


def paced(folder: Path) -> None:
    """A training process whose steps take so long that a test can act between them, and which writes its id."""
    (folder / f".process-{os.environ['RANK']}-{os.getpid()}").touch()
    check_step = loop.check_step

    def check_slowly(*arguments) -> None:
        time.sleep(0.3)
        check_step(*arguments)

    loop.check_step = check_slowly
    work(folder)


def when_at_step(run: Run, step: int, act) -> threading.Thread:
    def wait_and_act() -> None:
        wait_until(lambda: run.exists and last_step(run) >= step)
        act()

    thread = threading.Thread(target=wait_and_act, daemon=True)
    thread.start()
    return thread


def pid_of(run: Run, rank: int) -> int:
    [file] = run.folder.glob(f".process-{rank}-*")
    return int(file.name.rpartition("-")[2])


@pytest.mark.slow
def test_two_machines_learn_what_two_processes_of_one_learn_and_one_can_continue(asked, nodes, monkeypatch):
    expected = job.train(asked("alone"))
    assert losses(job.train(asked("together"), cluster=nodes.address)) == losses(expected)

    monkeypatch.setattr(worker, "work", paced)
    wanted = asked()
    run = Run(wanted.output / "run")
    stopper = when_at_step(run, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        job.train(wanted, cluster=nodes.address)
    stopper.join()
    assert 3 <= last_step(run) < TRAIN["max_steps"]
    monkeypatch.setattr(worker, "work", work)
    assert losses(job.resume(run.folder)) == losses(expected)


@pytest.mark.slow
def test_a_run_continues_after_a_process_died_one_hung_and_a_machine_was_lost(asked, nodes, monkeypatch):
    expected = losses(job.train(asked("alone", max_steps=16)))
    monkeypatch.setattr(worker, "work", paced)
    monkeypatch.setattr(watchdog, "HANG_SECONDS", 6.0)
    wanted = asked(max_steps=16)
    run = Run(wanted.output / "run")

    def lose() -> None:
        from ray._private.worker import global_worker

        own = global_worker.node._raylet_socket_name
        [other] = [node for node in nodes.list_all_nodes() if node._raylet_socket_name != own]
        nodes.remove_node(other, allow_graceful=False)

    def send(number: int) -> None:
        pid = pid_of(run, 1)
        for file in run.folder.glob(".process-*"):
            file.unlink()
        os.kill(pid, number)

    actors = [
        when_at_step(run, 3, lambda: send(signal.SIGKILL)),
        when_at_step(run, 7, lambda: send(signal.SIGSTOP)),
        when_at_step(run, 11, lose),
    ]
    job.train(wanted, cluster=nodes.address)
    for actor in actors:
        actor.join()
    nodes.add_node(num_cpus=1, object_store_memory=MEMORY_BYTES)
    assert losses(run) == near(expected)
    killed, hung, lost = run.events("recovered")
    assert [event["processes"] for event in (killed, hung, lost)] == [2, 2, 1]
    assert killed["step"] >= 2 and hung["step"] >= 6 and lost["step"] >= 10
    assert "training process 1 of 2 on " in killed["cause"] and "SIGKILL" in killed["cause"]
    assert "process 1 of 2 on " in hung["cause"] and hung["cause"].endswith("the process is stopped (SIGSTOP)")
    assert "training process 1 of 2 on " in lost["cause"] and "its machine left the cluster" in lost["cause"]
    assert ", last seen at step " in lost["cause"]


def failing(folder: Path) -> None:
    """A training process of which the second fails."""
    device = distributed.join("cpu")
    assert device.type == "cpu" and not distributed.is_one_machine() and distributed.neighbours() == 1
    if distributed.rank() == 1:
        raise KeyError("injected")
    distributed.wait()


@pytest.mark.slow
def test_mistakes_get_one_line_and_leave_nothing(asked, nodes, monkeypatch, capfd, tmp_path):
    recipe_file, output = tmp_path / "recipe.yaml", tmp_path / "runs"
    recipe_file.write_text(asked().dump())
    output.mkdir()
    hidden = f"/proc/self/fd/{os.open(output, os.O_RDONLY)}"
    arguments = ["train", str(recipe_file), "--cluster", nodes.address]
    capfd.readouterr()
    line = refused([*arguments, "--output", hidden], capfd)
    assert line.endswith(
        f" does not see the folder {hidden}/run; all machines must see the run, the data and the base model under the "
        "same path"
    )
    line = refused([*arguments, "--train.processes", "3"], capfd)
    assert line == "tunesmith: train.processes: 3 asked for, but the cluster's 2 machines have 2 cores"
    assert not list(output.iterdir())

    monkeypatch.setattr(worker, "work", failing)
    with pytest.raises(SystemExit, match="1"):
        main(arguments)
    output = capfd.readouterr()
    assert "training process 1 of 2 on " in output.err and "KeyError: 'injected'" in output.err and not output.out


def looking(folder: Path, sees_late: bool) -> None:
    """A training process of which the second sees a new file later than the first, or never."""
    distributed.join("cpu")
    worker.SECONDS_TO_SEE_A_FILE = 90.0 if sees_late else 2.0
    looks = iter(["old", "new"] if sees_late else ["old"] * 100)
    look = (lambda: "new") if distributed.rank() == 0 else (lambda: next(looks))
    (folder / str(distributed.rank())).write_text(worker.agreed(folder, look))


@pytest.mark.slow
def test_all_machines_continue_from_the_same_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "START_METHOD", "forkserver")
    launch.launch(looking, 2, tmp_path, True)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["new", "new"]
    with pytest.raises(launch.Failed, match="the machines do not see the same files there"):
        launch.launch(looking, 2, tmp_path, False)


def plan(**values) -> Plan:
    usual = dict(
        device="cpu",
        processes=2,
        weights="float32",
        compute="float32",
        sequence_length=256,
        micro_batch_tokens=4096,
        gradient_checkpointing="off",
        activation_offload=False,
        tiled_mlp=False,
        compile=False,
        packing=True,
        threads=1,
    )
    return Plan(**usual | values)


def refused(arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_without_ray_a_line_says_what_to_install(asked, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(asked().dump())
    capsys.readouterr()
    line = refused(["train", str(recipe_file), "--cluster", "auto"], capsys)
    assert line == "tunesmith: --cluster needs Ray on every machine: pip install 'tunesmith[ray]'"
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow  # Ray is not installed for `make test`
@pytest.mark.parametrize(
    "address, problem",
    [
        ("127.0.0.1:1025", r"no Ray cluster \(.*:1025: .*refused\); start one with `ray start --head` here"),
        ("nonsense", r"no Ray cluster \(Invalid address format: nonsense\); start one"),
        ("ray://head:10001", r"run the command on a machine of the cluster, with --cluster auto"),
    ],
)
def test_a_cluster_that_is_not_there_is_refused(address, problem):
    pytest.importorskip("ray", reason="needs Ray: pip install 'tunesmith[ray]'")
    with pytest.raises(UserError, match=f"^--cluster {address}: {problem}"), ray_cluster.connected(address):
        pass


def cluster_of(monkeypatch, gpus: list[int], versions: dict | None = None) -> Cluster:
    """A cluster of machines with so many GPUs each, of which Ray gives out all."""
    own = ray_cluster.packages()

    def on_all(self, function, *arguments, **settings):
        assert function is ray_cluster.facts
        found = [[Gpu(n, f"GPU of {node.address}", 24, 20, (8, 6)) for n in range(node.gpus)] for node in self.nodes]
        machines = [Machine("", "", 8 + n, 64 - n, 32 - n, 1, True, gpus=gpus) for n, gpus in enumerate(found)]
        return [(f"host{n}", one, own | (versions or {}) if n else own) for n, one in enumerate(machines)]

    monkeypatch.setattr(Cluster, "_on_all", on_all)
    return Cluster([Node(str(n), f"10.0.0.{n}", count, 8 + n, n == 0) for n, count in enumerate(gpus)])


def test_the_plan_is_made_for_all_gpus_of_the_cluster(monkeypatch, tmp_path):
    whole = cluster_of(monkeypatch, [1, 2]).machine(tmp_path)
    assert [gpu.name[-1] for gpu in whole.gpus] == ["0", "1", "1"]
    assert (whole.nodes, whole.cores, whole.memory_bytes, whole.free_memory_bytes) == (2, 17, 63, 31)
    assert cluster_of(monkeypatch, [0, 0]).machine(tmp_path).gpus == []


def test_machines_that_differ_or_cannot_measure_are_refused(monkeypatch):
    with pytest.raises(UserError, match=r"^host1 \(10.0.0.1\) has torch 1.0, this machine has .*; install the same"):
        cluster_of(monkeypatch, [1, 1], {"torch": "1.0"})
    with pytest.raises(UserError, match="^--cluster: Ray has not been given a GPU of this machine"):
        Cluster([Node("1", "10.0.0.1", 1, 1, is_own=False)])


def test_what_a_cluster_cannot_do_is_refused(monkeypatch, asked):
    cluster = cluster_of(monkeypatch, [0, 0])
    with pytest.raises(UserError, match=r"^output: s3:/bucket/runs is a URL; give a folder on a network share"):
        cluster.check_recipe(asked().model_copy(update={"output": Path("s3://bucket/runs")}))
    with pytest.raises(UserError, match=r"^train.kept_layers: in a cluster each GPU keeps all layers"):
        cluster.check_plan(plan(kept_layers=[2, 2]))
    with pytest.raises(UserError, match=r"^--cluster: this run trains on GPUs, and Ray has none$"):
        cluster.check_plan(plan(device="cuda"))
    cluster.check_recipe(asked())
    cluster.check_plan(plan())


def test_files_that_a_machine_misses_or_has_with_other_content_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_cluster, "SECONDS_TO_SEE_A_FILE", 0.0)
    (tmp_path / "same").write_text("a")
    (tmp_path / "other").write_text("b")
    digest = ray_cluster.content_hash(tmp_path / "same")
    assert ray_cluster.unseen([str(tmp_path / "same"), str(tmp_path / "gone")]) == [str(tmp_path / "gone")]
    assert ray_cluster.changed({str(tmp_path / name): digest for name in ("same", "other")}) == [
        str(tmp_path / "other")
    ]


@pytest.mark.parametrize(
    "processes, capacities, is_even, expected",
    [
        (2, [8, 8], True, [1, 1]),
        (5, [1, 8, 2], True, [1, 2, 2]),
        (3, [2, 2], False, [2, 1]),
        (9, [2, 2], False, [2, 2]),
    ],
)
def test_processes_are_divided_among_machines(processes, capacities, is_even, expected):
    assert divided(processes, capacities, is_even) == expected
