"""The machines of a Ray cluster: finds them, checks that they see the same files, and gets places for processes.

Ray finds the machines, gives out their GPUs, starts an agent (`ray_agent`) for each training process, and notices when
a machine is gone. `ray_launch` starts the processes.
"""

import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith import machine
from tunesmith.data.files import content_hash
from tunesmith.errors import UserError, first_line
from tunesmith.files import read_json
from tunesmith.finetune.layout import Layout
from tunesmith.finetune.provenance import packages
from tunesmith.machine import Gpu, Machine
from tunesmith.plan import Plan
from tunesmith.planner.decide import check_processes
from tunesmith.recipe import Recipe
from tunesmith.run import Run

START_SECONDS = 60.0  # for a node to start a Python process that imports Tunesmith
CONNECT_SECONDS = 5.0
SECONDS_TO_SEE_A_FILE = 10.0  # that another machine has just written


@dataclass(frozen=True)
class Node:
    """A machine of the cluster. `gpus` and `cpus`: those that Ray gives out there."""

    id: str
    address: str
    gpus: int
    cpus: int
    is_own: bool
    """Whether the command runs there."""


@dataclass(frozen=True)
class Seat:
    """A place for a training process: an agent and its GPU, if it has one."""

    agent: Any
    node: Node
    gpu: Gpu | None = None


@contextmanager
def connected(address: str) -> Iterator["Cluster"]:
    """The Ray cluster with this address, "auto" being the one that this machine is part of. Raises UserError."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch warns of addresses without a name; it reads this once
    try:
        import ray
    except ImportError:
        raise UserError("--cluster needs Ray on every machine: pip install 'tunesmith[ray]'") from None
    is_mine = not ray.is_initialized()
    if is_mine:
        _connect(ray, address)
    try:
        yield Cluster(_nodes(ray))
    finally:
        if is_mine:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    if "://" in address:
        raise UserError(f"--cluster {address}: run the command on a machine of the cluster, with --cluster auto")
    ray._private.worker._worker_logs_enabled = False  # Ray would print what its nodes report to standard output
    try:
        _check_answers(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(
            f"--cluster {address}: no Ray cluster ({first_line(error).partition('. Please')[0]}); start one with "
            "`ray start --head` here and `ray start --address=…` on the other machines"
        ) from None


def _check_answers(address: str) -> None:
    """Raises an OSError if nothing listens at the cluster's address, as Ray would try for minutes."""
    from ray._private.services import canonicalize_bootstrap_address_or_die, extract_ip_port

    host, port = extract_ip_port(canonicalize_bootstrap_address_or_die(address))
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"{host}:{port}: {error}") from None


def _nodes(ray: Any) -> list[Node]:
    """The machines that can train, this one first: where the cluster has GPUs those that have one."""
    own = ray.get_runtime_context().get_node_id()
    found = [
        Node(
            node["NodeID"],
            node["NodeManagerAddress"],
            int(node["Resources"].get("GPU", 0)),
            int(node["Resources"].get("CPU", 0)),
            node["NodeID"] == own,
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    with_gpu = [node for node in found if node.gpus]
    return sorted(with_gpu or [node for node in found if node.cpus], key=lambda n: (not n.is_own, n.address, n.id))


def facts() -> tuple[str, Machine, dict[str, str | None]]:
    """This machine's host name, its hardware, and the versions of the packages that decide about a result."""
    return socket.gethostname(), machine.probe(), packages()


def unseen(files: list[str]) -> list[str]:
    """Returns the files that this machine does not see."""
    until = time.monotonic() + SECONDS_TO_SEE_A_FILE
    while missing := [name for name in files if not Path(name).exists()]:
        if time.monotonic() > until:
            break
        time.sleep(0.2)
    return missing


def changed(hashes: dict[str, str]) -> list[str]:
    """Returns the files whose content is not the same on this machine. `hashes`: SHA-256 of each."""
    return [name for name, expected in hashes.items() if content_hash(Path(name)) != expected]


class Cluster:
    """The machines of a Ray cluster that can train a run."""

    def __init__(self, nodes: Sequence[Node]):
        """Raises UserError unless all have what this one has."""
        self.nodes = nodes
        if not nodes or not nodes[0].is_own:
            what = "a GPU" if any(node.gpus for node in nodes) else "a CPU"
            raise UserError(
                f"--cluster: Ray has not been given {what} of this machine, and the plan of a run is made by measuring "
                f"here; run the command on a machine of the cluster with {what}"
            )
        self._names, self._machines = {}, []
        for node, (name, found, versions) in zip(nodes, self._on_all(facts)):
            self._names[node.id] = name if name == node.address else f"{name} ({node.address})"
            self._machines.append(found)
            for package, version in packages().items():
                if versions[package] != version:
                    raise UserError(
                        f"{self._names[node.id]} has {package} {versions[package]}, this machine has {version}; "
                        "install the same versions on all machines"
                    )

    def machine(self, folder: Path) -> Machine:
        """The cluster as one machine: all GPUs and cores, and the memory of its smallest part."""
        gpus = [gpu for node, found in zip(self.nodes, self._machines) for gpu in found.gpus[: node.gpus]]
        return replace(
            machine.probe(folder),
            cores=sum(min(found.cores, node.cpus or found.cores) for node, found in zip(self.nodes, self._machines)),
            memory_bytes=min(found.memory_bytes for found in self._machines),
            free_memory_bytes=min(found.free_memory_bytes for found in self._machines),
            cpu_fast_bf16=all(found.cpu_fast_bf16 for found in self._machines),
            compiles_cpp=all(found.compiles_cpp for found in self._machines),
            gpus=gpus if any(node.gpus for node in self.nodes) else [],
            nodes=len(self.nodes),
        )

    def check_recipe(self, recipe: Recipe) -> None:
        """Raises UserError for what a cluster cannot do."""
        if re.match(r"[a-z][a-z0-9+.-]+:/", str(recipe.output)):
            raise UserError(
                f"output: {recipe.output} is a URL; give a folder on a network share that all machines see under "
                "the same path"
            )

    def check_plan(self, plan: Plan) -> None:
        """Raises UserError for what a cluster cannot do."""
        if plan.kept_layers is not None:
            raise UserError(
                "train.kept_layers: in a cluster each GPU keeps all layers, and this plan leaves layers in host memory "
                f"({plan.reasons.get('kept_layers', 'train.kept_layers')}); use one machine, or model.quantize: nf4"
            )
        if plan.device == "cuda" and not self.nodes[0].gpus:
            raise UserError("--cluster: this run trains on GPUs, and Ray has none")

    def check_folder(self, run: Run) -> None:
        """Raises UserError unless all machines see the run's folder, and that in which the command was started."""
        mark = run.folder.absolute() / f".seen-{secrets.token_hex(8)}"
        mark.touch()
        try:
            for node, missing in zip(self.nodes, self._on_all(unseen, [str(mark), os.getcwd()])):
                if missing:
                    raise UserError(
                        f"{self._names[node.id]} does not see the folder "
                        f"{mark.parent if str(mark) in missing else missing[0]}; all machines must see the run, the "
                        "data and the base model under the same path"
                    )
        finally:
            mark.unlink()

    def check_files(self, run: Run) -> None:
        """Raises UserError unless all machines have the same data and base model."""
        known = read_json(run.provenance_file)
        base = {str(run.base / name): digest for name, digest in known["base_model"]["files"].items()}
        files = {str(Path(name).absolute()): digest for name, digest in known["data"].items()} | base
        for node, missing in zip(self.nodes, self._on_all(unseen, list(files))):
            if missing:
                raise UserError(f"{self._names[node.id]} does not see {missing[0]}; all machines must, under that path")
        for node, other in zip(self.nodes, self._on_all(changed, files, seconds=None)):
            if other:
                raise UserError(f"{self._names[node.id]} has another file {other[0]} than this machine")

    def layout(self, plan: Plan, asked: int | None = None) -> Layout:
        """Starts the agents of a run: `asked` many, else those of its plan, or fewer if GPUs are gone since."""
        capacities = [node.gpus if plan.device == "cuda" else node.cpus for node in self.nodes]
        if asked is not None:
            gpus = sum(node.gpus for node in self.nodes)
            check_processes("--processes", asked, gpus, sum(capacities), len(self.nodes))
        processes = asked or min(plan.processes, sum(capacities))
        spread = divided(processes, capacities, is_even=plan.device == "cpu")
        seats = _seats([node for node, count in zip(self.nodes, spread) for _ in range(count)], plan.device)
        return Layout(processes, seats=seats)

    def _on_all(self, function: Callable, *arguments: Any, seconds: float | None = START_SECONDS) -> list:
        """Runs a function on each machine. Raises UserError if one does not answer within so many seconds."""
        import ray

        tasks = [
            ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=_on(node)).remote(*arguments)
            for node in self.nodes
        ]
        results = []
        for node, task in zip(self.nodes, tasks):
            try:
                results.append(ray.get(task, timeout=seconds))
            except ray.exceptions.GetTimeoutError:
                raise UserError(
                    f"{node.address}: this machine of the cluster did not answer for {seconds:g} s"
                ) from None
            except ray.exceptions.RayError as error:
                if "No module named 'tunesmith'" in str(error):
                    raise UserError(
                        f"{node.address}: Tunesmith is not installed there, or not in the environment of `ray start`; "
                        "install the same version on all machines"
                    ) from None
                raise UserError(f"{node.address}: this machine of the cluster failed: {last_line(error)}") from None
        return results


def divided(processes: int, capacities: Sequence[int], is_even: bool) -> list[int]:
    """How many processes each machine gets. `is_even`: one after the other to each; else the first ones are filled."""
    counts = [0] * len(capacities)
    for _ in range(min(processes, sum(capacities))):
        free = [place for place, capacity in enumerate(capacities) if counts[place] < capacity]
        counts[min(free, key=lambda place: counts[place]) if is_even else free[0]] += 1
    return counts


def last_line(error: Exception) -> str:
    """The last line of a message: that of an error on another machine begins with its traceback."""
    return [line for line in str(error).splitlines() if line.strip()][-1].strip()


def _on(node: Node) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node.id, soft=False)


def _seats(nodes: Sequence[Node], device: str) -> list[Seat]:
    """An agent for each, on these nodes. Raises UserError if a node has nothing free."""
    import ray

    from tunesmith.finetune.ray_agent import Agent

    what: dict[str, int] = {"num_gpus": 1, "num_cpus": 0} if device == "cuda" else {"num_cpus": 1}
    kind = ray.remote(Agent)
    agents = [kind.options(scheduling_strategy=_on(node), **what).remote(os.getcwd()) for node in nodes]
    seats = []
    for node, agent in zip(nodes, agents):
        try:
            gpu = ray.get(agent.gpu.remote(), timeout=START_SECONDS)
            seats.append(Seat(agent, node, gpu if device == "cuda" else None))
        except ray.exceptions.GetTimeoutError:
            thing = "GPU" if device == "cuda" else "CPU"
            raise UserError(f"{node.address} has no free {thing}: another program uses it through Ray") from None
        except ray.exceptions.RayError as error:
            raise UserError(f"{node.address}: this machine of the cluster failed: {last_line(error)}") from None
    return seats
