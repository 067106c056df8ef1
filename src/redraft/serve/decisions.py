"""Decisions over HTTP: the labels of the slots of texts."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from fastapi import Response

from redraft.errors import UserError
from redraft.generation.decide import Decision, decide
from redraft.options import echo
from redraft.serve import decide_schema
from redraft.serve.exchange import Exchange
from redraft.serve.responses import to_json


@dataclass
class DecisionHandler(Exchange[decide_schema.DecideRequest]):
    """Handles one request. Its forward passes run outside of the engine, as those that measure holes do."""

    found: list[Decision] = field(default_factory=list)

    async def respond(self) -> Response:
        """Decide what the request asks for.

        Raises:
            ApiError: the response is an error.
        """
        return await self.recorded(self._respond())

    async def _respond(self) -> Response:
        disconnected = asyncio.create_task(self.disconnected())
        try:
            await self.while_wanted(self._decide(), disconnected)
        finally:
            disconnected.cancel()
        body = {
            "id": self.id,
            "object": "decision",
            "created": int(time.time()),
            "model": self.request.model,
            "decisions": [
                {"index": index, **{name: vars(one)[name] for name in ("text", "labels", "probabilities", "nfe")}}
                for index, one in enumerate(self.found)
            ],
            "redraft": echo(self.request.settings(), "http"),
        }
        return Response(to_json(body), media_type="application/json", headers={"X-Request-Id": self.id})

    async def _decide(self) -> None:
        service, request = self.service, self.request
        most = service.config.max_answers
        if len(request.rows) > most:
            raise UserError(f"The request has {len(request.rows)} rows; at most {most} are allowed.", "Send several.")
        entry = service.find(request.model)
        await service.pool.open(entry)

        def run() -> list[Decision]:
            settings = request.settings()
            labels, rows, prompt = request.labels, request.rows, request.prompt
            return decide(entry.model, request.text, labels, rows, prompt, settings, self.checkpoint)

        async with service.planning.of(self.client()):
            self.found = await asyncio.get_running_loop().run_in_executor(service.planners, run)

    def measured(self) -> dict[str, Any]:
        """Numbers of the log line."""
        return {"sequences": len(self.found), "nfe": sum(one.nfe for one in self.found)}

    def answers(self) -> list[Any]:
        """The labels."""
        return [dict(one.labels) for one in self.found]
