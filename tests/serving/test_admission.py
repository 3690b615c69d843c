"""Uploads go on in turns, few in each round of an event loop."""

import asyncio
import threading

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
from serving.admission import _Turns


def test_a_burst_goes_on_in_its_order_a_few_in_each_round() -> None:
    turns, order = _Turns(2), list[int | str]()

    async def ask(number: int) -> None:
        await turns.wait()
        order.append(number)

    async def burst() -> None:
        asked = [asyncio.create_task(ask(number)) for number in range(5)]
        while len(order) < 5 + order.count("round"):
            await asyncio.sleep(0)
            order.append("round")
        await asyncio.gather(*asked)

    asyncio.run(burst())
    assert [each for each in order if each != "round"] == [0, 1, 2, 3, 4]
    between = "".join(str(each)[0] for each in order).split("r")
    assert max(map(len, between)) == 2


def test_an_application_behind_two_servers_has_turns_in_each() -> None:
    """Each has a loop of its own, which another does not wake."""
    turns = _Turns(1)
    ended = threading.Event()

    def serve() -> None:
        asyncio.run(turns.wait())
        ended.set()

    async def first() -> bool:
        waits = asyncio.create_task(turns.wait())
        await asyncio.sleep(0)  # it stands in the queue, and this loop does nothing more
        threading.Thread(target=serve, daemon=True).start()
        found = ended.wait(5)
        await waits
        return found

    assert asyncio.run(first())
