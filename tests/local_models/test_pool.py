"""Which models are loaded: within the bounds, the least recently used one leaves, none while it is in use."""

import asyncio
from pathlib import Path

import pytest

from lcp_gateway.local_models.llama_server import LoadFailed
from lcp_gateway.local_models.options import LocalModel, LocalModelOptions
from lcp_gateway.local_models.pool import ModelPool, Unavailable

MIB = 1024 * 1024


class Process:
    """A ``llama-server`` without a process."""

    log_path = Path("log")

    def __init__(self, model, on_exit, world):
        self.model, self.on_exit, self.world = model, on_exit, world
        self.running = False

    async def start(self):
        self.world.starts.append(self.model.name)
        await self.world.gate.wait()
        if self.world.failing:
            raise LoadFailed(self.world.failing)
        self.running = True

    async def stop(self):
        if self.running:
            self.world.stops.append(self.model.name)
        self.running = False

    def die(self):
        self.running = False
        self.on_exit()

    def resident_bytes(self):
        return self.world.resident

    def bound_log(self):
        self.world.bounded += 1


class World:
    """A pool whose clock and processes are the test's."""

    def __init__(self, names="abc", models=None, **options):
        self.now = 1000.0
        self.starts, self.stops, self.made = [], [], {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.failing = ""
        self.resident = 0
        self.bounded = 0
        models = models or tuple(LocalModel(name, hf_repo="o/r") for name in names)
        self.pool = ModelPool(
            LocalModelOptions(models, "llama-server", "folder", **options),
            session=None,
            server_of=self.process,
            clock=lambda: self.now,
        )

    def process(self, model, on_exit):
        self.made[model.name] = Process(model, on_exit, self)
        return self.made[model.name]

    async def use(self, name):
        async with self.pool.use(name):
            self.now += 1


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_model_is_loaded_when_it_is_asked_for_and_once_for_all_requests_that_wait():
    world = World()
    world.gate.clear()
    asking = [asyncio.create_task(world.use("a")) for _ in range(5)]
    await settle()
    assert world.pool.states() == {"a": "loading", "b": "unloaded", "c": "unloaded"}
    world.gate.set()
    await asyncio.gather(*asking)
    assert world.starts == ["a"]
    assert world.pool.states()["a"] == "loaded"


async def test_the_least_recently_used_leaves_for_another():
    world = World(loaded_max=2)
    for name in ("a", "b", "a", "c"):
        await world.use(name)
    assert world.stops == ["b"]
    assert world.pool.states() == {"a": "loaded", "b": "unloaded", "c": "loaded"}


async def test_a_model_in_use_is_never_unloaded_and_another_waits_for_its_place():
    world = World()
    async with world.pool.use("a"):
        other = asyncio.create_task(world.use("b"))
        await settle()
        assert world.stops == [] and not other.done()
    await other
    assert world.stops == ["a"]


async def test_a_model_that_is_never_idle_gives_way_to_one_that_has_waited_long():
    world = World()
    first = world.pool.use("a")
    await first.__aenter__()
    waits = asyncio.create_task(world.use("b"))
    await settle()
    world.now += 16
    late = asyncio.create_task(world.use("a"))
    await settle()
    assert not late.done(), "it would keep the other waiting"
    await first.__aexit__(None, None, None)
    await asyncio.gather(waits, late)
    assert world.starts == ["a", "b", "a"]


async def test_the_client_that_waits_may_leave_and_the_loading_goes_on():
    world = World()
    world.gate.clear()
    asking = asyncio.create_task(world.use("a"))
    await settle()
    asking.cancel()
    await settle()
    world.gate.set()
    await settle()
    assert world.pool.states()["a"] == "loaded"


async def test_a_model_that_does_not_load_is_tried_again_after_pauses_that_grow():
    world = World()
    world.failing = "out of memory"
    for number, pause_s in enumerate((0, 1, 2, 4, 8, 16, 32, 60, 60), start=1):
        with pytest.raises(Unavailable, match="out of memory"):
            await world.use("a")
        assert len(world.starts) == number
        if pause_s:
            world.now += pause_s - 0.5
            with pytest.raises(Unavailable, match="out of memory"):
                await world.use("a")
            assert len(world.starts) == number, "it was tried before its time"
            world.now += 0.5
    assert world.pool.states()["a"] == "failed"
    world.failing = ""
    world.now += 60
    await world.use("a")
    assert world.pool.states()["a"] == "loaded"


async def test_the_pause_has_its_bound_after_any_number_of_failures():
    world = World()
    world.failing = "out of memory"
    for _ in range(1_100):
        with pytest.raises(Unavailable, match="out of memory"):
            await world.use("a")
        world.now += 60


async def test_one_that_ends_by_itself_after_a_long_run_is_started_again_at_the_next_request():
    world = World()
    await world.use("a")
    world.now += 100
    world.made["a"].die()
    assert world.pool.states()["a"] == "failed"
    await world.use("a")
    assert world.starts == ["a", "a"]


async def test_an_idle_model_is_unloaded_and_one_in_use_is_not():
    world = World(loaded_max=2, idle_s=60)
    await world.use("b")
    async with world.pool.use("a"):
        world.now += 61
        await world.pool.tick()
        assert world.stops == ["b"]
    await world.pool.tick()
    assert world.stops == ["b"]
    world.now += 60
    await world.pool.tick()
    assert world.stops == ["b", "a"]
    assert world.bounded > 0


async def test_models_are_loaded_at_the_start_where_asked_as_many_as_may_be_and_kept():
    world = World(loaded_max=2, preload=True, idle_s=60)
    await world.pool.tick()
    await settle()
    assert sorted(world.starts) == ["a", "b"]
    world.now += 1000
    await world.pool.tick()
    assert world.stops == []
    world.made["a"].die()
    await world.pool.tick()
    await settle()
    assert world.pool.states()["a"] == "loaded"


async def test_together_they_take_no_more_memory_than_allowed(tmp_path):
    small, big = tmp_path / "small", tmp_path / "big"
    small.write_bytes(b"")
    with big.open("wb") as file:
        file.truncate(200 * MIB)
    models = (LocalModel("a", str(small)), LocalModel("b", str(small)), LocalModel("big", str(big)))
    world = World(models=models, loaded_max=3, memory_mib=100)
    world.resident = 60 * MIB
    await world.use("a")
    await world.use("b")
    assert world.stops == []
    await world.use("a")
    world.made["b"].running = False
    with pytest.raises(Unavailable, match="'big' needs 200 MiB, more than the 100 MiB"):
        await world.use("big")


async def test_all_end_with_the_pool_and_a_request_that_waits_is_told():
    world = World(loaded_max=2)
    await world.use("a")
    world.gate.clear()
    waits = asyncio.create_task(world.use("b"))
    await settle()
    await world.pool.close()
    assert world.stops == ["a"]
    with pytest.raises(Unavailable, match="stopping"):
        await waits


async def test_an_unknown_model_is_a_key_error():
    with pytest.raises(KeyError):
        await World().use("x")
