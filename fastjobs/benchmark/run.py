"""One measurement from start to end: a place at the store, the scenarios asked for, their results."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator, Sequence
from typing import Final

from fastjobs.benchmark.app import jobs
from fastjobs.benchmark.meters import meter_of
from fastjobs.benchmark.place import place_at
from fastjobs.benchmark.scenarios import LOADS, Drained, Result, Tell, drain, latency, singles
from fastjobs.errors import ConfigError

OTHERS: Final = {
    "single": "single enqueues, 1,000 at a time, and alone",
    "latency": "from enqueue to start at an idle worker",
    "loaded": "the same at half of the drain rate",
}
SCENARIOS: Final = {**{name: load.about for name, load in LOADS.items()}, **OTHERS}
"""Names, and what they measure."""

USUAL: Final = ("noop", "single", "latency")
"""What is measured unless asked otherwise."""

SINGLE_CONCURRENCY: Final = 1000
LATENCIES: Final = 1000


def check(names: Sequence[str]) -> list[str]:
    """*names* in the order of the table, "all" for all. ConfigError for one that there is not."""
    asked = set(SCENARIOS if "all" in names else names or USUAL)
    unknown = sorted(asked - set(SCENARIOS))
    if unknown:
        raise ConfigError(f"scenario: there is no {', '.join(unknown)}; there are: {', '.join(SCENARIOS)}, and all")
    if "loaded" in asked:
        asked.add("noop")  # its rate is needed
    return [name for name in SCENARIOS if name in asked]


async def measure(url: str, names: Sequence[str], count: int, workers: int, tell: Tell) -> list[Result]:
    """Measure the scenarios *names* (see `check`) with *count* jobs and *workers* processes at the store *url*.

    The jobs stand apart from the user's, in a namespace or schema that is emptied before and after. Raises WorkerError if the
    counts disagree, BackendError as the store does. SIGTERM cancels it.
    """
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with place_at(url) as place:
        with jobs.override(place.url):
            meter = meter_of(place.url, place.broker)
            try:
                results: list[Result] = []
                for name in names:
                    if name in LOADS:
                        results.append(await drain(place.url, meter, name, count, workers, tell))
                    elif name == "single":
                        results.append(await singles(name, max(count // 3, 1), SINGLE_CONCURRENCY, tell))
                    else:
                        rate = next(_rates(results), 0.0) / 2 if name == "loaded" else 0.0
                        results.append(await latency(place.url, name, LATENCIES, workers, rate, tell))
                return results
            finally:
                await meter.close()


def _rates(results: Sequence[Result]) -> Iterator[float]:
    return (result.drain_per_s for result in results if isinstance(result, Drained))
