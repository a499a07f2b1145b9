"""Responses to one prompt that come one by one, and can only be rewarded together."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from pm.errors import UserError

Judge = Callable[[str, Sequence[str]], Awaitable[Sequence]]


class Cohorts:
    """Gathers the responses to a prompt until `size` of them are there, or `seconds` after the first one; then `judge`
    gives each its reward. `most` responses may wait."""

    def __init__(self, size: int, seconds: float, most: int, judge: Judge):
        self.size, self._seconds, self._most, self._judge = size, seconds, most, judge
        self._open: dict[str, list[tuple[str, asyncio.Future]]] = {}
        self._tasks: set[asyncio.Task] = set()

    async def reward(self, prompt: str, response: str) -> object:
        """Waits for the others. Raises `UserError` where none come, and what `judge` raises."""
        if sum(map(len, self._open.values())) >= self._most:
            raise UserError(f"{self._most:,} responses already wait for others to their prompts (--max_waiting)")
        loop = asyncio.get_running_loop()
        cohort = self._open.setdefault(prompt, [])
        member = response, loop.create_future()
        cohort.append(member)
        if len(cohort) == 1:
            loop.call_later(self._seconds, self._close, prompt, cohort)
        if len(cohort) == self.size:
            self._close(prompt, cohort)
        try:
            return await member[1]
        finally:
            with suppress(ValueError):  # a client who has gone will send its response again
                cohort.remove(member)
            if not cohort and self._open.get(prompt) is cohort:
                del self._open[prompt]  # with it goes the time that the others had

    def _close(self, prompt: str, cohort: list[tuple[str, asyncio.Future]]) -> None:
        if self._open.get(prompt) is cohort:
            del self._open[prompt]
            task = asyncio.create_task(self._settle(prompt, list(cohort)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _settle(self, prompt: str, cohort: list[tuple[str, asyncio.Future]]) -> None:
        try:
            if len(cohort) == 1:
                raise UserError(f"no other response to the prompt came within {self._seconds:g} seconds: there is "
                                "nothing to compare it with")
            rewards = await self._judge(prompt, [response for response, _ in cohort])
        except Exception as error:
            for _, future in cohort:
                if not future.done():
                    future.set_exception(error)
        else:
            for (_, future), reward in zip(cohort, rewards, strict=True):
                if not future.done():
                    future.set_result(reward)
