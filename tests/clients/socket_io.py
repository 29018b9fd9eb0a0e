"""Drives python-socketio for a test, as an app would use it.

    python socket_io.py sync|asyncio polling|websocket|default

Commands and events are those of socket_io.js.
"""

import asyncio
import inspect
import json
import sys
import threading
import urllib.parse

import socketio

flavour, mode = sys.argv[1:]
clients = {}
printing = threading.Lock()


def emit(of, event, **more):
    with printing:
        print(json.dumps({"of": of, "event": event, **more}), flush=True)


class Client:
    """The arguments and handlers of both flavours. Handlers are plain functions in both."""

    def __init__(self, socket, command):
        self.socket = socket
        self.name = command["as"]
        self.dbs = []
        self.upgraded = False
        query = urllib.parse.urlencode(command.get("query") or {})
        self.url = command["url"] + ("?" + query if query else "")
        self.options = {}
        if mode != "default":
            self.options["transports"] = [mode]
        if command.get("auth"):
            self.options["auth"] = command["auth"]
        socket.on("connect", lambda: emit(self.name, "connect"))
        # Since python-socketio 5.12 a handler with an argument receives the reason.
        socket.on("disconnect", self.disconnected)
        socket.on("not-authenticated", lambda data: emit(self.name, "not-authenticated", data=data))
        socket.on("change", lambda db: emit(self.name, "change", db=db))

    def disconnected(self, *reason):
        self.upgraded = False
        emit(self.name, "disconnect", reason=reason[0] if reason else None)

    def emit_authenticated(self, data):
        emit(self.name, "authenticated", data=data, transport=self.socket.transport())
        self.emit_upgraded()

    def emit_upgraded(self):
        """Reports once per connection: after `connect` has returned, or after the library has reconnected."""
        if mode == "default" and self.socket.transport() == "websocket" and not self.upgraded:
            self.upgraded = True
            emit(self.name, "upgraded")

    def request(self, command):
        """Returns the event that a command sends, and its argument."""
        event, dbs = command["do"], command.get("dbs")
        if event == "subscribe":
            self.dbs += [db for db in dbs if db not in self.dbs]
        elif event == "unsubscribe":
            self.dbs = [db for db in self.dbs if db not in dbs]
        return event, dbs

    def acknowledged(self, event):
        return lambda *data: emit(self.name, "ack", to=event, data=data[0] if len(data) == 1 else list(data))


class SyncClient(Client):
    def __init__(self, command):
        super().__init__(socketio.Client(), command)
        self.socket.on("authenticated", self.authenticated)

    def authenticated(self, data):
        dbs = list(self.dbs)  # before the test is notified and subscribes to more
        self.emit_authenticated(data)
        if dbs:
            self.socket.emit("subscribe", dbs, callback=self.acknowledged("subscribe"))

    def connect(self):
        self.socket.connect(self.url, **self.options)
        self.emit_upgraded()

    def handle(self, command):
        if command["do"] == "disconnect":
            self.socket.disconnect()
        else:
            event, argument = self.request(command)
            self.socket.emit(event, argument, callback=self.acknowledged(event))


class AsyncClient(Client):
    def __init__(self, command):
        super().__init__(socketio.AsyncClient(), command)
        self.socket.on("authenticated", self.authenticated)

    async def authenticated(self, data):
        self.emit_authenticated(data)
        if self.dbs:
            await self.socket.emit("subscribe", self.dbs, callback=self.acknowledged("subscribe"))

    async def connect(self):
        await self.socket.connect(self.url, **self.options)
        self.emit_upgraded()

    async def handle(self, command):
        if command["do"] == "disconnect":
            await self.socket.disconnect()
        else:
            event, argument = self.request(command)
            await self.socket.emit(event, argument, callback=self.acknowledged(event))


def start(command):
    """Runs a command. Returns a coroutine for it if the flavour is `asyncio`."""
    if command["do"] == "connect":
        client = clients[command["as"]] = {"sync": SyncClient, "asyncio": AsyncClient}[flavour](command)
        return client.connect()
    return clients[command["as"]].handle(command)


async def run():
    loop = asyncio.get_running_loop()
    tasks = set()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        doing = start(json.loads(line))
        if inspect.isawaitable(doing):
            # Keep the task, because the event loop holds only a weak reference, and raise its errors.
            task = loop.create_task(doing)
            tasks.add(task)
            task.add_done_callback(lambda task: task.result())


emit("script", "ready")
if flavour == "asyncio":
    asyncio.run(run())
else:
    for line in sys.stdin:
        start(json.loads(line))
