"""Responses that wait for each other."""

import asyncio

from pm.cohorts import Cohorts


def test_a_response_that_is_sent_again_gets_the_time_of_a_new_one(monkeypatch):
    async def judge(prompt: str, responses: list[str]) -> list[str]:
        return [f"{prompt} {response} of {len(responses)}" for response in responses]

    async def main() -> list[str]:
        timers = []
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", lambda *timer: timers.append(timer))
        cohorts = Cohorts(2, 60.0, 10, judge)
        gone = asyncio.create_task(cohorts.reward("p", "x"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        again = asyncio.create_task(cohorts.reward("p", "x"))
        await asyncio.sleep(0)
        (_, close, *arguments), _ = timers
        close(*arguments)  # the time of the first one is over
        return await asyncio.gather(again, cohorts.reward("p", "y"))

    assert asyncio.run(main()) == ["p x of 2", "p y of 2"]
