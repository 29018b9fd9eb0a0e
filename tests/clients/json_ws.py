"""Speaks howler.v1 for a test using only `websockets`.

Commands and events are those of socket_io.js, so that one test drives both. The credentials are in `query`,
but this client does not send them in the URL.
"""

import asyncio
import json
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

clients = {}


def emit(of, event, **more):
    print(json.dumps({"of": of, "event": event, **more}), flush=True)


class Client:
    def __init__(self, command):
        self.name = command["as"]
        self.url = command["url"].replace("http", "ws", 1) + "/howler"
        self.credentials = command["query"]
        self.dbs = []
        self.asked = []
        self.over = False
        self.socket = None

    async def run(self):
        # `async for` reconnects with its own backoff until this loop returns.
        async for self.socket in connect(self.url, subprotocols=["howler.v1"]):
            self.asked = []
            emit(self.name, "connect")
            try:
                await self.ask("log-in", **self.credentials)
                async for text in self.socket:
                    await self.handle(json.loads(text))
            except ConnectionClosed:
                pass
            emit(self.name, "disconnect", reason=f"{self.socket.close_code} {self.socket.close_reason}")
            if self.over:
                return

    async def ask(self, op, **more):
        self.asked.append(op)
        await self.socket.send(json.dumps({"id": len(self.asked), "op": op, **more}))

    async def handle(self, message):
        event = message.get("event")
        if event == "change":
            emit(self.name, "change", db=message["db"])
        elif event is None:
            await self.answered(self.asked[message.pop("id") - 1], message)
        elif event not in ("hello", "goodbye"):
            emit(self.name, event, data=message)

    async def answered(self, op, answer):
        if op != "log-in":
            emit(self.name, "ack", to=op, data=answer)
        elif answer.get("ok"):
            emit(self.name, "authenticated", data={"cookie": answer["cookie"]}, transport="websocket")
            if self.dbs:
                await self.ask("subscribe", dbs=self.dbs)
        else:
            self.over = True
            data = {"error": True, "errorName": answer["error"], "errorMessage": answer["message"]}
            emit(self.name, "not-authenticated", data=data)

    async def obey(self, command):
        op, dbs = command["do"], command.get("dbs")
        if op == "subscribe":
            self.dbs += [db for db in dbs if db not in self.dbs]
        elif op == "unsubscribe":
            self.dbs = [db for db in self.dbs if db not in dbs]
        self.over = self.over or op in ("log-out", "disconnect")
        if op == "disconnect":
            await self.socket.close()
        elif dbs is None:
            await self.ask(op)
        else:
            await self.ask(op, dbs=dbs)


async def main():
    loop = asyncio.get_running_loop()
    tasks = set()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        if command["do"] == "connect":
            client = clients[command["as"]] = Client(command)
            # Keep the task, because the event loop holds only a weak reference, and raise its errors.
            task = loop.create_task(client.run())
            tasks.add(task)
            task.add_done_callback(lambda task: task.result())
        else:
            await clients[command["as"]].obey(command)


emit("script", "ready")
asyncio.run(main())
