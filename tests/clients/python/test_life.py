"""Threads, closing, cancelling, forking: a client's life beside its calls."""

import asyncio
import multiprocessing
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import hotslot_client as hc
from tests.clients.python.scripted_service import Service
from tests.clients.python.test_client import LIMIT_SECONDS, is_right, items


def test_threads_share_a_client() -> None:
    """Calls and streams at once; every stream gets its own outcomes."""
    with Service().serve() as service, hc.Client(service.address) as client, ThreadPoolExecutor(8) as threads:
        streams = [threads.submit(lambda: list(client.predict_many(items(50)))) for _ in range(4)]
        calls = [threads.submit(client.predict, b"picture", ["a"], premise=str(number)) for number in range(100)]

        assert [call.result().served_by.node for call in calls] == [str(number) for number in range(100)]
        for stream in streams:
            assert sum(map(is_right, stream.result())) == 50


def test_closing_ends_calls_of_other_threads() -> None:
    """They raise ClientClosed, as do further calls; closing twice is harmless."""
    with Service(hang=threading.Event()).serve() as service, ThreadPoolExecutor(2) as threads:
        client = hc.Client(service.address)
        call = threads.submit(client.predict, b"picture", ["a"])
        stream = client.predict_many(items(200), window=2)
        next(stream)
        assert service.begun.wait(LIMIT_SECONDS)
        client.close()
        client.close()

        with pytest.raises(hc.ClientClosed):
            call.result(LIMIT_SECONDS)
        with pytest.raises(hc.ClientClosed):
            list(stream)
        with pytest.raises(hc.ClientClosed):
            client.predict(b"picture", ["a"])
        with pytest.raises(hc.ClientClosed):
            list(client.predict_many(items(1)))


async def test_closing_ends_calls_of_other_tasks() -> None:
    """They raise ClientClosed, not CancelledError, which would end their task's callers."""
    with Service(hang=threading.Event()).serve() as service:
        client = hc.AsyncClient(service.address)
        call = asyncio.create_task(client.predict(b"picture", ["a"]))
        stream = client.predict_many(items(200), window=2)
        await anext(stream)
        await asyncio.to_thread(service.begun.wait, LIMIT_SECONDS)
        await client.close()

        with pytest.raises(hc.ClientClosed):
            await call
        with pytest.raises(hc.ClientClosed):
            async for _ in stream:
                pass
        with pytest.raises(hc.ClientClosed):
            await client.predict(b"picture", ["a"])


async def test_a_cancelled_task_ends_its_call() -> None:
    """And is cancelled; no task of the client is left."""
    with Service(hang=threading.Event()).serve() as service:
        async with hc.AsyncClient(service.address) as client:

            async def read() -> None:
                async for _ in client.predict_many(items(10**9)):
                    pass

            tasks = [asyncio.create_task(read()), asyncio.create_task(client.predict(b"picture", ["a"]))]
            await asyncio.to_thread(service.begun.wait, LIMIT_SECONDS)
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)

            assert [type(end) for end in ends] == [asyncio.CancelledError] * 2
            assert [task for task in asyncio.all_tasks() if "hotslot_client" in repr(task)] == []


def test_an_asyncio_client_serves_one_loop_after_the_other() -> None:
    """As `asyncio.run` is called twice."""
    with Service().serve() as service:
        client = hc.AsyncClient(service.address)
        for _ in range(2):
            assert asyncio.run(client.predict(b"picture", ["a"])).labels == ("yes",)
        asyncio.run(client.close())


@pytest.mark.parametrize("kind", [hc.Client, hc.AsyncClient])
def test_a_client_is_not_pickled(kind: type[hc.Client] | type[hc.AsyncClient]) -> None:
    """The error says what to do instead."""
    with pytest.raises(TypeError, match="make one in each process"):
        pickle.dumps(kind())


def test_results_are_sent_to_other_processes() -> None:
    """As Ray and Spark do."""
    with Service().serve() as service, hc.Client(service.address) as client:
        (outcome,) = client.predict_many(items(1))

    assert pickle.loads(pickle.dumps(outcome)) == outcome  # noqa: S301  our own


def _call(address: str) -> tuple[str, ...]:
    with hc.Client(address) as client:
        return client.predict(b"picture", ["a"]).labels


def test_a_spawned_process_has_a_client_of_its_own() -> None:
    """With the server's contracts beside it in this process."""
    with Service().serve() as service, multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_call, (service.address,)) == ("yes",)
