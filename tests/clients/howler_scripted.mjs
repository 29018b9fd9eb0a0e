// The client library against a scripted server, for cases that a test cannot cause in a real one.
//
//   node --test --test-force-exit --test-timeout=55000 howler_scripted.mjs
//
// The exit is forced, because a client whose test failed keeps reconnecting.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import WebSocket, { WebSocketServer } from 'ws'

import Client from '../../src/web/howler.js'

const PASSWORD = 'zq7-user-secret'
// Longest wait for an expected event, in milliseconds.
const SOON = 10_000
// Time after which an event counts as absent, in milliseconds.
const A_MOMENT = 150
// A short backoff for tests.
const quick = { initial: 20, maximum: 100 }

const moment = (milliseconds = A_MOMENT) => new Promise(resolve => setTimeout(resolve, milliseconds))

async function until (condition, what) {
  const deadline = Date.now() + SOON
  while (!condition()) {
    if (Date.now() > deadline) assert.fail(`never: ${what || condition}`)
    await moment(2)
  }
}

// A server with positions according to PROTOCOL.md; `answers` overrides the reply to an operation.
class Server {
  static async start (port = 0) {
    const server = new Server()
    server.sockets = new WebSocketServer({ port, host: '127.0.0.1' })
    server.sockets.on('connection', (socket, request) => server.accept(socket, request))
    await once(server.sockets, 'listening')
    server.url = `http://127.0.0.1:${server.sockets.address().port}`
    return server
  }

  constructor () {
    this.hello = { server: 'scripted', epoch: '1' }
    this.positions = new Map()
    this.answers = {}
    this.asked = []
    this.opened = []
    this.clients = []
    this.cookies = 0
  }

  accept (socket, request) {
    const client = { socket, path: request.url, protocol: socket.protocol, dbs: new Set() }
    client.deliver = message => socket.send(JSON.stringify(message))
    this.clients.push(client)
    this.opened.push(Date.now())
    if (this.hello) client.deliver({ event: 'hello', ...this.hello })
    socket.on('message', data => this.received(client, String(data)))
    socket.on('close', () => { this.clients = this.clients.filter(other => other !== client) })
  }

  received (client, data) {
    const { id, op, ...rest } = JSON.parse(data)
    this.asked.push({ op, ...rest })
    Object.defineProperty(this.asked[this.asked.length - 1], 'bytes', { value: Buffer.byteLength(data) })
    const answer = (this.answers[op] || this[op]).call(this, rest, client, id)
    if (answer) client.deliver({ id, ...answer })
    if (op === 'log-out' && answer) client.socket.close(1000)
    if (op === 'log-in' && answer && answer.error) client.socket.close(4401)
  }

  'log-in' () {
    return { ok: true, username: 'u', cookie: `AuthSession=${++this.cookies}; Path=/; HttpOnly` }
  }

  subscribe ({ dbs, epoch }, client) {
    const answer = Object.create(null)
    const changed = []
    const comparable = epoch === undefined || epoch === (this.epoch || this.hello.epoch)
    for (const [name, given] of Object.entries(dbs)) {
      client.dbs.add(name)
      const position = this.positions.get(name)
      answer[name] = position === undefined ? null : position
      if (given !== null && !(comparable && given === position)) changed.push(name)
    }
    return { ok: true, epoch: this.epoch, dbs: answer, changed }
  }

  unsubscribe ({ dbs }, client) {
    for (const name of dbs) client.dbs.delete(name)
    return { ok: true }
  }

  heartbeat () {
    return { ok: true }
  }

  'log-out' () {
    return { ok: true }
  }

  // Changes a database and notifies its subscribers.
  change (db, position) {
    this.positions.set(db, position)
    for (const client of this.clients) {
      if (client.dbs.has(db)) client.deliver({ event: 'change', db, kind: 'updated', position })
    }
  }

  deliver (message) {
    for (const client of this.clients) client.deliver(message)
  }

  // Breaks every connection without a goodbye.
  cut () {
    for (const { socket } of this.clients) socket.terminate()
  }

  of (op) {
    return this.asked.filter(asked => asked.op === op)
  }

  async stop () {
    this.cut()
    await new Promise(resolve => this.sockets.close(resolve))
  }
}

// Makes a client that records its events.
function connect (server, session, options = {}) {
  const client = new Client(server.url, session, { WebSocket, backoff: quick, ...options })
  client.log = []
  client.changes = []
  for (const event of ['connect', 'ready', 'disconnect', 'resync', 'session']) {
    client.on(event, more => client.log.push(more === undefined ? event : [event, more]))
  }
  client.on('error', error => client.log.push(['error', error.name, error.db]))
  client.on('change', (db, change) => client.changes.push([db, change.kind, change.position]))
  client.count = event => client.log.filter(entry => [].concat(entry)[0] === event).length
  return client
}

// Runs a test with its own server, and stops its clients afterwards.
function scripted (name, body) {
  test(name, { timeout: 30_000 }, async context => {
    const server = await Server.start()
    const clients = []
    context.after(async () => {
      for (const client of clients) client.stop()
      await server.stop()
    })
    await body(server, (...rest) => {
      const client = connect(server, ...rest)
      clients.push(client)
      return client
    }, context)
  })
}

const failure = name => error => {
  assert.ok(error instanceof Error)
  assert.equal(error.name, name)
  assert.ok(!error.message.includes('zq7-') && !error.message.includes('AuthSession'), error.message)
  return true
}

// ---- sessions and logins

scripted('speaks howler.v1 below a path', async (server, start) => {
  const client = start()
  assert.deepEqual(await client.logIn('u', PASSWORD), { cookie: 'AuthSession=1; Path=/; HttpOnly', username: 'u' })
  assert.deepEqual([server.clients[0].path, server.clients[0].protocol], ['/howler', 'howler.v1'])
  for (const [given, path] of [['/', '/howler'], ['/a/b', '/a/b/howler'], ['/a/b/', '/a/b/howler'], ['/a?x=1#y', '/a/howler?x=1']]) {
    for (const scheme of ['http', 'ws']) {
      const other = new Client(server.url.replace('http', scheme) + given, null, { WebSocket })
      await other.logIn('u', PASSWORD)
      assert.equal(server.clients[1].path, path)
      other.stop()
      await until(() => server.clients.length === 1)
    }
  }
  assert.throws(() => new Client('ftp://127.0.0.1', null, { WebSocket }), TypeError)
  assert.throws(() => new Client('no url', null, { WebSocket }), TypeError)
  assert.throws(() => new Client(server.url, null, { WebSocket: 1 }), failure('TypeError'))
})

scripted('the last of two logins wins', async (server, start) => {
  const client = start()
  const first = client.logIn('first', PASSWORD)
  const second = client.logIn('second', PASSWORD)
  await assert.rejects(first, failure('AbortError'))
  await second
  assert.deepEqual(server.of('log-in').map(({ username }) => username), ['second'])
  assert.equal(server.clients.length, 1)
  // Also if the first login has been sent, and if the client is logged in.
  server.answers['log-in'] = ({ username }) => username === 'fourth' && server['log-in']()
  const third = client.logIn('third', PASSWORD)
  await until(() => server.of('log-in').length === 2)
  const fourth = client.logIn('fourth', PASSWORD)
  await assert.rejects(third, failure('AbortError'))
  await fourth
  await until(() => server.clients.length === 1)
  assert.deepEqual(client.log, ['connect', 'ready', 'disconnect', 'connect', 'ready'])
})

scripted('a call in a listener replaces the call that caused the event', async (server, start) => {
  const client = start()
  await client.logIn('u', PASSWORD)
  let nested
  client.once('disconnect', () => { nested = client.logIn('nested', PASSWORD) })
  await assert.rejects(client.logIn('outer', PASSWORD), failure('AbortError'))
  await nested
  assert.deepEqual(server.of('log-in').map(({ username }) => username), ['u', 'nested'])
  client.once('disconnect', () => { nested = client.logIn('again', PASSWORD) })
  client.stop()
  await nested
  assert.ok(client.isConnected())
  for (const event of ['connect', 'ready']) {
    client.once(event, () => client.stop())
    await assert.rejects(client.logIn('u', PASSWORD), failure('AbortError'), event)
    assert.ok(!client.isConnected())
  }
  await moment()
  assert.equal(server.clients.length, 0)
})

scripted('a refused login rejects and is not retried', async (server, start) => {
  const client = start()
  for (const name of ['NotAuthenticatedError', 'AccountLockedError', 'ServiceUnavailableError', 'LimitError']) {
    server.answers['log-in'] = () => ({ error: name, message: 'no' })
    await assert.rejects(client.logIn('u', PASSWORD), failure(name))
  }
  await moment()
  assert.equal(server.of('log-in').length, 4)
  assert.deepEqual(client.log, [])
  delete server.answers['log-in']
  await client.logIn('u', PASSWORD)
})

scripted('a login waits as long as the server requires', async (server, start) => {
  const client = start()
  for (const name of ['LimitError', 'ServiceUnavailableError']) {
    let refused
    server.answers['log-in'] = () => {
      delete server.answers['log-in']
      refused = Date.now()
      return { error: name, message: 'later', retry_after_ms: 400 }
    }
    await client.logIn('u', PASSWORD)
    assert.ok(Date.now() - refused >= 395, `${Date.now() - refused} ms`)
    assert.deepEqual(client.log.find(entry => entry[0] === 'error'), ['error', name, undefined])
    client.log = []
  }
})

scripted('a stored session is used at the start, and retried until CouchDB is available', async (server, start) => {
  let refusals = 3
  server.answers['log-in'] = request => refusals-- > 0 ? { error: 'ServiceUnavailableError', message: 'no' } : server['log-in'](request)
  const session = { get: async () => 'AuthSession=kept', set: cookie => { session.kept = cookie }, clear: () => { session.cleared = true } }
  const client = start(session)
  await until(() => client.count('ready') === 1)
  assert.deepEqual(server.of('log-in'), Array(4).fill({ op: 'log-in', cookie: 'AuthSession=kept' }))
  assert.equal(client.count('error'), 3)
  assert.equal(session.kept, 'AuthSession=1; Path=/; HttpOnly', 'the stored cookie is the new one')
  server.deliver({ event: 'session', cookie: 'AuthSession=renewed' })
  await until(() => client.count('session') === 1)
  assert.deepEqual(client.log[client.log.length - 1], ['session', 'AuthSession=renewed'])
  assert.equal(session.kept, 'AuthSession=renewed')
  server.cut()
  await until(() => client.count('ready') === 2)
  assert.deepEqual(server.of('log-in')[4].cookie, 'AuthSession=renewed')
  assert.equal(session.cleared, undefined)
})

scripted('an expired session ends the retries, and is cleared unless replaced', async (server, start) => {
  const session = { kept: 'AuthSession=old', get: () => session.kept, set: cookie => { session.kept = cookie }, clear: () => { session.kept = null } }
  server.answers['log-in'] = ({ cookie }) =>
    cookie === 'AuthSession=old' ? { error: 'NotAuthenticatedError', message: 'expired' } : server['log-in']()
  const client = start(session)
  await until(() => client.count('error') === 1)
  assert.deepEqual([client.log, session.kept], [[['error', 'NotAuthenticatedError', undefined]], null])
  await moment()
  assert.equal(server.of('log-in').length, 1)
  await client.logIn('u', PASSWORD)
  // Another tab of the app has logged in, and the session of this client has expired.
  server.answers['log-in'] = ({ cookie }) => cookie === 'AuthSession=young' ? server['log-in']() : { error: 'NotAuthenticatedError', message: 'expired' }
  session.kept = 'AuthSession=young'
  server.cut()
  await until(() => client.count('ready') === 2)
  assert.equal(client.count('error'), 1)
  // An invalid cookie from the app does not clear the stored session.
  const { kept } = session
  await assert.rejects(client.logIn(null, null, 'AuthSession=forged'), failure('NotAuthenticatedError'))
  assert.equal(session.kept, kept)
  await client.logIn(null, null, 'AuthSession=young')
  // A locked account does not clear the session.
  server.answers['log-in'] = () => ({ error: 'AccountLockedError', message: 'locked' })
  server.cut()
  await until(() => client.count('error') === 2)
  await moment()
  assert.deepEqual([client.log[client.log.length - 1][1], session.kept], ['AccountLockedError', 'AuthSession=3; Path=/; HttpOnly'])
  assert.equal(client.isConnected(), false)
})

scripted('a log-out clears the session, whatever the server does', async (server, start) => {
  const session = { kept: undefined, get: () => session.kept, set: cookie => { session.kept = cookie }, clear: () => { session.kept = null } }
  const client = start(session, { logOutMilliseconds: 100 })
  await client.logIn('u', PASSWORD)
  await client.subscribe('db')
  // A session renewed during the log-out is not stored.
  server.answers['log-out'] = (_, { deliver }) => { deliver({ event: 'session', cookie: 'AuthSession=late' }) }
  await client.logOut()
  assert.deepEqual([session.kept, client.isConnected(), client.log], [null, false, ['connect', 'ready', 'disconnect']])
  // Without a connection the server receives no request; a login in progress is aborted.
  await client.logOut()
  server.answers['log-in'] = () => {}
  const given = assert.rejects(client.logIn('u', PASSWORD), failure('AbortError'))
  await until(() => server.of('log-in').length === 2)
  await client.logOut()
  await given
  delete server.answers['log-in']
  await client.logIn('u', PASSWORD)
  assert.deepEqual(server.of('subscribe').length, 2, 'subscriptions are kept')
  // The client does not replace a connection that breaks during the log-out.
  server.answers['log-out'] = (_, { socket }) => { socket.terminate() }
  await client.logOut()
  await moment()
  assert.deepEqual([client.isConnected(), server.of('log-in').length], [false, 3])
  await client.logIn('u', PASSWORD)
  // The client reports a session that cannot be cleared, and still logs out.
  session.clear = async () => { throw new Error('disk full') }
  await assert.rejects(client.logOut(), /disk full/)
  assert.equal(client.isConnected(), false)
  await moment()
  assert.equal(server.clients.length, 0)
})

scripted('nothing happens after a stop in any state', async (server, start) => {
  const rejected = []
  // The login is aborted, now or later.
  const logIn = client => { rejected.push(assert.rejects(client.logIn('u', PASSWORD), failure('AbortError'))) }
  const states = {
    'before everything': () => {},
    'reading the session': () => {},
    connecting: client => logIn(client),
    'saying hello': async client => {
      server.hello = null
      server.answers['log-in'] = () => {}
      logIn(client)
      await until(() => server.clients.length === 1)
    },
    'logging in': async client => {
      server.answers['log-in'] = () => {}
      const before = server.of('log-in').length
      logIn(client)
      await until(() => server.of('log-in').length > before)
    },
    subscribing: async client => {
      server.answers.subscribe = () => {}
      const before = server.of('subscribe').length
      client.subscribe('db')
      logIn(client)
      await until(() => server.of('subscribe').length > before)
    },
    connected: client => client.logIn('u', PASSWORD),
    'logging out': async client => {
      await client.logIn('u', PASSWORD)
      server.answers['log-out'] = () => {}
      rejected.push(client.logOut())
      await until(() => server.of('log-out').length === 1)
    },
    'waiting to connect again': async client => {
      await client.logIn('u', PASSWORD)
      server.answers['log-in'] = () => ({ error: 'LimitError', message: 'no', retry_after_ms: 50 })
      server.cut()
      await until(() => client.count('error') === 1)
    },
    stopped: client => client.stop()
  }
  for (const [state, reach] of Object.entries(states)) {
    const session = { get: async () => state === 'reading the session' && 'AuthSession=kept', set () {}, clear () {} }
    const client = start(session)
    await reach(client)
    client.stop()
    assert.equal(client.isConnected(), false, state)
    await Promise.all(rejected)
    await until(() => server.clients.length === 0, `the end of the connection: ${state}`)
    const seen = [client.log.length, server.opened.length]
    await moment()
    assert.deepEqual([client.log.length, server.opened.length], seen, state)
    server.answers = {}
    server.hello = { epoch: '1' }
    client.stop()
    assert.ok(await client.logIn('u', PASSWORD), `the client can be used again: ${state}`)
    assert.ok(client.isConnected(), state)
    client.stop()
    await until(() => server.clients.length === 0)
  }
})

scripted('errors of the session store are reported', async (server, start) => {
  const broken = async () => { throw new Error('disk full') }
  const client = start({ get: broken, set: broken, clear () {} })
  await until(() => client.count('error') === 1)
  await client.logIn('u', PASSWORD)
  assert.deepEqual(client.log, [['error', 'Error', undefined], 'connect', ['error', 'Error', undefined], 'ready'])
})

// ---- connections

scripted('a goodbye sets the time of the next attempt', async (server, start) => {
  const client = start()
  await client.logIn('u', PASSWORD)
  server.deliver({ event: 'goodbye', reason: 'shutting-down', retry_after_ms: 500 })
  const gone = Date.now()
  server.cut()
  await until(() => client.count('ready') === 2)
  assert.ok(Date.now() - gone >= 490, `${Date.now() - gone} ms`)
})

scripted('an online event does not shorten the wait that the server asked for', async (server, start, context) => {
  const page = new EventTarget()
  globalThis.addEventListener = page.addEventListener.bind(page)
  globalThis.removeEventListener = page.removeEventListener.bind(page)
  context.after(() => {
    delete globalThis.addEventListener
    delete globalThis.removeEventListener
  })
  const client = start()
  await client.logIn('u', PASSWORD)
  server.deliver({ event: 'goodbye', reason: 'shutting-down', retry_after_ms: 500 })
  const gone = Date.now()
  server.cut()
  await until(() => client.count('disconnect') === 1)
  page.dispatchEvent(new Event('online'))
  await until(() => client.count('ready') === 2)
  assert.ok(server.opened[1] - gone >= 490, `${server.opened[1] - gone} ms`)
  client.stop()
  // The event does shorten the backoff of the client.
  const patient = start(undefined, { backoff: { initial: 1e9, maximum: 1e9 } })
  await patient.logIn('u', PASSWORD)
  server.cut()
  await until(() => patient.count('disconnect') === 1)
  page.dispatchEvent(new Event('online'))
  await until(() => patient.count('ready') === 2)
})

scripted('a wait beyond the range of timers does not become zero', async (server, start) => {
  for (const [how, options] of [['asked for', {}], ['by itself', { backoff: { initial: 1e12, maximum: 1e12 } }]]) {
    const client = start(undefined, options)
    await client.logIn('u', PASSWORD)
    if (how === 'asked for') server.deliver({ event: 'goodbye', reason: 'shutting-down', retry_after_ms: 1e12 })
    server.cut()
    await until(() => client.count('disconnect') === 1)
    await moment()
    assert.deepEqual([server.clients.length, client.log], [0, ['connect', 'ready', 'disconnect']], how)
  }
})

scripted('the backoff grows and is random', async (server, start) => {
  const client = start(undefined, { backoff: { initial: 100, factor: 2, maximum: 400 } })
  await client.logIn('u', PASSWORD)
  server.hello = null
  server.answers['log-in'] = (_, { socket }) => { socket.terminate() }
  server.opened = []
  server.cut()
  await until(() => server.opened.length === 8)
  const waits = server.opened.slice(1).map((at, number) => at - server.opened[number])
  // Each wait is at least a tenth of its maximum. A slow machine may exceed the maximum.
  waits.forEach((wait, number) => {
    const most = Math.min(400, 100 * Math.pow(2, number + 1))
    assert.ok(wait >= most / 10 - 2 && wait < most + 1000, `wait ${number} of at most ${most}: ${wait} ms`)
  })
  assert.ok(new Set(waits.slice(1)).size > 2, `random waits: ${waits}`)
})

scripted('a dead connection is found within two heartbeats of its last message', async (server, start) => {
  const client = start(undefined, { heartbeatMilliseconds: 800 })
  await client.logIn('u', PASSWORD)
  await client.subscribe('db')
  // Messages from the server replace heartbeats.
  for (let number = 0; number < 10; number++) {
    await moment(100)
    server.change('db', String(number))
  }
  await until(() => client.changes.length === 10)
  assert.equal(server.of('heartbeat').length, 0)
  // The server answers some heartbeats.
  await until(() => server.of('heartbeat').length >= 2)
  assert.equal(client.count('disconnect'), 0)
  await moment(50)
  let last = Date.now()
  server.answers.heartbeat = () => {}
  client.once('disconnect', () => { last = Date.now() - last })
  await until(() => client.count('ready') === 2)
  assert.ok(last < 2 * 800, `${last} ms`)
})

scripted('no heartbeats if they are off', async (server, start) => {
  const client = start(undefined, { heartbeatMilliseconds: 0, connectMilliseconds: 100 })
  await client.logIn('u', PASSWORD)
  await moment(300)
  assert.deepEqual([server.of('heartbeat'), client.log], [[], ['connect', 'ready']])
})

scripted('a login is retried at a server that does not answer', async (server, start) => {
  const client = start(undefined, { connectMilliseconds: 500 })
  server.answers['log-in'] = () => { if (server.of('log-in').length > 2) return server['log-in']() }
  assert.ok(await client.logIn('u', PASSWORD))
  assert.deepEqual(client.log, [
    ['error', 'ServiceUnavailableError', undefined], ['error', 'ServiceUnavailableError', undefined], 'connect', 'ready'
  ])
})

scripted('unknown messages are ignored', async (server, start) => {
  const client = start()
  await client.logIn('u', PASSWORD)
  await client.subscribe('db')
  for (const { socket, deliver } of server.clients) {
    for (const text of ['', 'x', 'null', '[]', '7', '{"event":"__proto__"}', '{"id":99,"ok":true}', '{"id":"toString"}']) socket.send(text)
    for (const db of [undefined, null, 7, 'toString', '__proto__']) deliver({ event: 'change', db })
    deliver({ event: 'session' })
    deliver({ event: 'unsubscribed', db: 'other', error: 'ForbiddenError' })
  }
  server.change('db', '1')
  await until(() => client.changes.length > 0)
  assert.deepEqual([client.changes, client.log], [[['db', 'updated', '1']], ['connect', 'ready']])
})

// ---- subscriptions

scripted('subscriptions from before the login are active at `ready`', async (server, start) => {
  const client = start()
  await client.subscribe('a')
  await client.subscribe(['b', 'c', 'b'])
  await client.unsubscribe('c')
  client.once('connect', () => { client.subscribe('d'); assert.equal(server.of('subscribe').length, 0) })
  await client.logIn('u', PASSWORD)
  assert.deepEqual([...server.clients[0].dbs].sort(), ['a', 'b', 'd'])
  assert.deepEqual(client.changes, [], 'a new subscription does not count as a change')
  await client.subscribe(['a', 'b'])
  assert.equal(server.of('subscribe').length, 2, 'nothing is sent twice')
})

scripted('the last of subscribe and unsubscribe wins', async (server, start) => {
  const client = start()
  await client.logIn('u', PASSWORD)
  client.subscribe('a')
  client.unsubscribe('a')
  await client.subscribe('b')
  server.change('a', '1')
  const sent = client.subscribe('c')
  await Promise.all([client.unsubscribe('c'), client.subscribe('c'), sent])
  server.change('c', '1')
  await until(() => client.changes.length > 0)
  assert.deepEqual(client.changes, [['c', 'updated', '1']])
  assert.deepEqual([...server.clients[0].dbs].sort(), ['b', 'c'])
  // The client ignores changes as soon as unsubscribe is called.
  server.answers.unsubscribe = () => {}
  client.unsubscribe('c')
  server.change('c', '2')
  server.change('b', '1')
  await until(() => client.changes.length > 1)
  assert.deepEqual(client.changes.slice(1), [['b', 'updated', '1']])
})

scripted('a reply about an ended subscription changes nothing', async (server, start) => {
  const client = start()
  await client.logIn('u', PASSWORD)
  for (const answered of [{ ok: true, dbs: { gone: '1' }, changed: ['gone'] }, { error: 'LimitError', message: 'no' }]) {
    let answer
    server.answers.subscribe = (request, { deliver }, id) => { answer = () => deliver({ id, ...answered }) }
    const subscribed = client.subscribe('gone')
    await until(() => answer)
    const unsubscribed = client.unsubscribe('gone')
    server.deliver({ event: 'change', db: 'gone', kind: 'updated', position: '1' })
    answer()
    await Promise.all([subscribed, unsubscribed])
  }
  assert.deepEqual([client.changes, client.log], [[], ['connect', 'ready']])
})

scripted('subscribe settles if the connection breaks', async (server, start) => {
  const client = start()
  await client.logIn('u', PASSWORD)
  let answer = false
  server.answers.subscribe = () => { answer = true }
  const lost = client.subscribe('a')
  await until(() => answer)
  delete server.answers.subscribe
  server.cut()
  await lost
  await until(() => client.count('ready') === 2)
  assert.deepEqual([...server.clients[0].dbs], ['a'], 'the subscription is kept')
})

scripted('names may have any characters', async (server, start) => {
  const client = start()
  const names = ['__proto__', 'constructor', 'toString', 'a/b+$()', 'äöü-€-😀', '"\\']
  await client.logIn('u', PASSWORD)
  await client.subscribe(names)
  for (const name of names) server.change(name, '1')
  await until(() => client.changes.length === names.length)
  assert.deepEqual(client.changes.map(([name]) => name), names)
  for (const event of ['__proto__', 'toString']) {
    assert.equal(client.emit(event), false)
    client.once(event, () => client.changes.push(event))
    assert.equal(client.emit(event), true)
  }
  for (const wrong of ['', null, undefined, 7, ['a', ''], [['a']], {}]) {
    await assert.rejects(client.subscribe(wrong), failure('TypeError'))
    await assert.rejects(client.unsubscribe(wrong), failure('TypeError'))
  }
  await assert.rejects(client.subscribe('ü'.repeat(129)), failure('LimitError'))
  await client.subscribe('ü'.repeat(128))
})

scripted('many subscriptions are split into messages below the limit', async (server, start) => {
  const client = start()
  const names = Array.from({ length: 2000 }, (_, number) => `${number}"\n`.padEnd(100, '€').slice(0, 80))
  await client.subscribe(names)
  await client.logIn('u', PASSWORD)
  await client.unsubscribe(names.slice(1))
  const sizes = server.asked.map(({ bytes }) => bytes)
  assert.ok(Math.max(...sizes) <= 65536 && Math.max(...sizes) > 50000, sizes.join())
  assert.ok(server.of('subscribe').length < 20, 'few messages')
  assert.deepEqual([...server.clients[0].dbs], names.slice(0, 1))
})

scripted('a forbidden database is reported and not retried', async (server, start) => {
  const client = start()
  await client.logIn('u', PASSWORD)
  server.answers.subscribe = (request, from) => {
    const answer = server.subscribe(request, from)
    if (request.dbs.x === undefined) return answer
    return { ...answer, errors: { x: { error: 'ForbiddenError', message: 'not yours' } } }
  }
  await assert.rejects(client.subscribe(['a', 'x']), error => failure('ForbiddenError')(error) && error.db === 'x')
  assert.deepEqual(client.log.filter(entry => entry[0] === 'error'), [['error', 'ForbiddenError', 'x']])
  server.change('x', '1')
  server.change('a', '1')
  await until(() => client.changes.length > 0)
  assert.deepEqual(client.changes, [['a', 'updated', '1']])
  // A database that the client could read before.
  server.deliver({ event: 'unsubscribed', db: 'a', error: 'ForbiddenError', message: 'no more' })
  await until(() => client.count('error') === 2)
  assert.deepEqual(client.log[client.log.length - 1], ['error', 'ForbiddenError', 'a'])
  server.cut()
  await until(() => client.count('ready') === 2)
  assert.equal(server.of('subscribe').length, 1, 'the client subscribes to neither again')
})

scripted('a rejected batch is reported once and not retried', async (server, start) => {
  const client = start()
  await client.subscribe(['a', 'b'])
  server.answers.subscribe = () => ({ error: 'LimitError', message: 'too many' })
  await client.logIn('u', PASSWORD)
  assert.deepEqual(client.log, ['connect', ['error', 'LimitError', undefined], 'ready'])
  await assert.rejects(client.subscribe('c'), failure('LimitError'))
  delete server.answers.subscribe
  await client.subscribe('c')
  assert.deepEqual([...server.clients[0].dbs], ['c'])
})

scripted('subscriptions that cannot be checked now are retried', async (server, start) => {
  const client = start()
  await client.subscribe(['a', 'b'])
  let refusals = 3
  server.answers.subscribe = (request, from) =>
    refusals-- > 0 ? { error: 'ServiceUnavailableError', message: 'no answer' } : server.subscribe(request, from)
  await client.logIn('u', PASSWORD)
  assert.deepEqual([...server.clients[0].dbs], ['a', 'b'])
  assert.deepEqual([client.count('error'), client.count('ready')], [3, 1])
  refusals = 1
  await client.subscribe('c')
  await until(() => client.count('ready') === 2)
  assert.deepEqual([...server.clients[0].dbs], ['a', 'b', 'c'])
})

// ---- listeners

scripted('listeners are added and removed as in Node', async (server, start) => {
  const client = start()
  const calls = []
  const a = (...rest) => calls.push(['a', ...rest])
  const b = () => { calls.push(['b']); client.off('x', b) }
  assert.equal(client.on('x', a).addListener('x', b).once('x', a), client)
  assert.equal(client.listenerCount('x'), 3)
  client.emit('x', 1, 2)
  assert.deepEqual(calls.splice(0), [['a', 1, 2], ['b'], ['a', 1, 2]])
  assert.equal(client.listenerCount('x'), 1)
  client.once('x', a)
  client.removeListener('x', a)
  assert.equal(client.emit('x'), true)
  client.off('x', a).off('x', a).off('y', a)
  assert.equal(client.emit('x'), false)
  client.on('x', a).on('y', a).removeAllListeners('x')
  assert.deepEqual([client.listenerCount('x'), client.listenerCount('y')], [0, 1])
  client.removeAllListeners()
  assert.equal(client.listenerCount('y'), 0)
  for (const wrong of [undefined, null, 'a', {}]) {
    assert.throws(() => client.on('x', wrong), TypeError)
    assert.throws(() => client.once('x', wrong), TypeError)
  }
})

// ---- positions

// Makes a client store position 1 of `a` and `b`.
async function away (server, client) {
  for (const name of ['a', 'b']) server.positions.set(name, '1')
  await client.subscribe(['a', 'b'])
  await client.logIn('u', PASSWORD)
  assert.deepEqual(client.changes, [])
}

async function back (server, client) {
  const before = client.count('ready')
  server.cut()
  await until(() => client.count('ready') > before)
  return client.changes.splice(0)
}

scripted('a returning client reports what changed, and nothing else', async (server, start) => {
  const client = start()
  await away(server, client)
  assert.deepEqual(server.of('subscribe')[0], { op: 'subscribe', dbs: { a: null, b: null } })
  server.positions.set('a', '2')
  assert.deepEqual(await back(server, client), [['a', undefined, '2']])
  assert.deepEqual(server.of('subscribe')[1], { op: 'subscribe', epoch: '1', dbs: { a: '1', b: '1' } })
  assert.deepEqual(await back(server, client), [])
  // A different position counts as a change, even a lower one.
  server.positions.set('b', '0')
  assert.deepEqual(await back(server, client), [['b', undefined, '0']])
})

scripted('a server without positions makes everything count as changed', async (server, start) => {
  const client = start()
  server.hello = { server: 'old' }
  server.answers.subscribe = () => ({ ok: true })
  await client.subscribe(['a', 'b'])
  await client.logIn('u', PASSWORD)
  assert.deepEqual(client.changes, [], 'a new subscription does not count as a change')
  assert.deepEqual(await back(server, client), [['a', undefined, undefined], ['b', undefined, undefined]])
  delete server.answers.subscribe
  server.hello = { epoch: '1' }
  server.positions.set('a', '1')
  assert.deepEqual((await back(server, client)).map(([name]) => name), ['a', 'b'])
  assert.deepEqual((await back(server, client)).map(([name]) => name), ['b'], 'the position of b is still unknown')
})

scripted('another epoch makes everything count as changed, once', async (server, start) => {
  const client = start()
  await away(server, client)
  server.hello.epoch = '2'
  assert.deepEqual(await back(server, client), [['a', undefined, '1'], ['b', undefined, '1']])
  assert.deepEqual(await back(server, client), [])
  // Also if the server does not compare epochs.
  server.hello.epoch = '2a'
  server.answers.subscribe = () => ({ ok: true, dbs: { a: '1', b: '1' }, changed: [] })
  assert.deepEqual(await back(server, client), [['a', undefined, '1'], ['b', undefined, '1']])
  delete server.answers.subscribe
  for (const name of ['a', 'b']) server.clients[0].dbs.add(name)
  // On an open connection with a resync.
  server.hello.epoch = '3'
  server.deliver({ event: 'hello', ...server.hello })
  server.deliver({ event: 'resync', reason: 'another epoch' })
  await until(() => client.changes.length === 2)
  assert.deepEqual(client.changes.splice(0), [['a', undefined, '1'], ['b', undefined, '1']])
  assert.deepEqual(client.log[client.log.length - 1], ['resync', { reason: 'another epoch' }])
  server.change('a', '2')
  await until(() => client.changes.splice(0).length === 1)
  assert.deepEqual(await back(server, client), [])
  const sent = server.of('subscribe').slice(-2)
  assert.deepEqual(sent.map(({ epoch, dbs }) => [epoch, { ...dbs }]), [[undefined, { a: null, b: null }], ['3', { a: '2', b: '1' }]])
})

scripted('the server says which positions are the same', async (server, start) => {
  const client = start()
  await away(server, client)
  server.answers.subscribe = () => ({ ok: true, dbs: { a: '1@101', b: '1@101' }, changed: [] })
  assert.deepEqual(await back(server, client), [])
  delete server.answers.subscribe
  server.positions.set('a', '1@101').set('b', '1@101')
  assert.deepEqual(await back(server, client), [], 'the text of the reply is kept')
})

scripted('after a resync every database counts as changed, once', async (server, start) => {
  const client = start()
  await away(server, client)
  assert.deepEqual(await back(server, client), [])
  // CouchDB restarted: positions from before are others.
  server.positions.set('a', '1@2').set('b', '1@2')
  server.deliver({ event: 'resync', reason: 'CouchDB restarted' })
  await until(() => client.changes.length === 2)
  assert.deepEqual(client.changes.splice(0), [['a', undefined, '1@2'], ['b', undefined, '1@2']])
  assert.deepEqual(await back(server, client), [])
  // The connection breaks before the answer.
  server.positions.set('a', '1@3').set('b', '1@3')
  server.answers.subscribe = () => undefined
  const asked = server.of('subscribe').length
  server.deliver({ event: 'resync', reason: 'CouchDB restarted' })
  await until(() => server.of('subscribe').length > asked)
  delete server.answers.subscribe
  assert.deepEqual(await back(server, client), [['a', undefined, '1@3'], ['b', undefined, '1@3']])
  assert.deepEqual(await back(server, client), [])
  // The positions say nothing of what may be lost.
  server.deliver({ event: 'resync', reason: 'the feed of changes was interrupted' })
  await until(() => client.changes.length === 2)
  assert.deepEqual(client.changes.splice(0), [['a', undefined, '1@3'], ['b', undefined, '1@3']])
  assert.deepEqual(await back(server, client), [])
})

scripted('an epoch that the server did not know at first is read from its reply', async (server, start) => {
  const client = start()
  await away(server, client)
  // The server has just started and reads the epoch later.
  server.hello = {}
  server.epoch = '1'
  server.positions.set('b', '2')
  assert.deepEqual(await back(server, client), [['b', undefined, '2']])
  server.change('a', '2')
  await until(() => client.changes.splice(0).length === 1)
  assert.deepEqual(await back(server, client), [])
  // A position without an epoch is unknown.
  server.epoch = undefined
  assert.deepEqual((await back(server, client)).length, 2)
  server.change('a', '3')
  await until(() => client.changes.splice(0).length === 1)
  server.epoch = '1'
  assert.deepEqual(await back(server, client), [['a', undefined, '3']])
})

scripted('a position is stored when all listeners have finished', async (server, start) => {
  const client = start()
  await away(server, client)
  let finish
  client.on('change', () => new Promise(resolve => { finish = resolve }))
  server.change('a', '2')
  await until(() => finish)
  // The client reports the change again, because the app may not have handled it.
  assert.deepEqual(await back(server, client), [['a', 'updated', '2'], ['a', undefined, '2']])
  finish()
  await moment(20)
  assert.deepEqual(await back(server, client), [])
  assert.deepEqual(server.of('subscribe').slice(-1)[0].dbs, { a: '2', b: '1' })
  // Also if the epoch changes before the listener finishes.
  finish = null
  server.change('a', '3')
  await until(() => finish)
  server.deliver({ event: 'hello', epoch: '2' })
  await moment(20)
  finish()
  await moment(20)
  server.hello.epoch = '2'
  client.changes = []
  assert.deepEqual((await back(server, client)).map(([name]) => name), ['a', 'b'])
})

scripted('a listener that finishes late does not restore an older position', async (server, start) => {
  const stored = new Map()
  const client = start(undefined, { positions: stored })
  await away(server, client)
  const jobs = []
  client.on('change', () => new Promise((resolve, reject) => jobs.push({ resolve, reject })))
  for (const position of ['2', '3']) server.change('a', position)
  await until(() => jobs.length === 2)
  jobs[1].resolve()
  await until(() => stored.get('a') === '1 3')
  jobs[0].resolve()
  await moment()
  assert.equal(stored.get('a'), '1 3')
})

scripted('a change without a position is reported, and again after a reconnect', async (server, start) => {
  const client = start()
  await away(server, client)
  server.positions.set('a', '2-f')
  server.deliver({ event: 'change', db: 'a', kind: 'created' })
  await until(() => client.changes.length === 1)
  assert.deepEqual(client.changes.splice(0), [['a', 'created', undefined]])
  assert.deepEqual(await back(server, client), [['a', undefined, '2-f']])
  assert.deepEqual(await back(server, client), [])
})

scripted('a store keeps positions across a restart of the app', async (server, start) => {
  const stored = new Map()
  const later = (result, ...rest) => new Promise(resolve => setTimeout(() => resolve(result(...rest))))
  const positions = { get: name => later(() => stored.get(name)), set: (name, known) => later(() => stored.set(name, known)) }
  const first = start(undefined, { positions })
  await away(server, first)
  await until(() => stored.size === 2)
  first.stop()
  server.positions.set('b', '2')
  const second = start(undefined, { positions })
  await second.subscribe(['a', 'b'])
  await second.logIn('u', PASSWORD)
  assert.deepEqual(second.changes.splice(0), [['b', undefined, '2']])
  // After unsubscribe and subscribe the client reports the change in between.
  await second.unsubscribe('a')
  server.change('a', '2')
  await moment(20)
  assert.deepEqual(second.changes, [])
  await second.subscribe('a')
  assert.deepEqual(second.changes.splice(0), [['a', undefined, '2']])
  // A store that fails may cause an additional change, never a missing one.
  const broken = async () => { throw new Error('disk full') }
  const third = start(undefined, { positions: { get: broken, set: broken } })
  await third.subscribe('a')
  await third.logIn('u', PASSWORD)
  assert.deepEqual(third.changes, [['a', undefined, '2']])
})

scripted('a listener that throws does not affect other listeners', async (server, start, context) => {
  const client = start()
  const thrown = []
  process.on('uncaughtException', remember)
  function remember (error) { thrown.push(error.message) }
  context.after(() => process.off('uncaughtException', remember))
  const listeners = process.listeners('uncaughtException').filter(listener => listener !== remember)
  for (const listener of listeners) process.off('uncaughtException', listener)
  context.after(() => { for (const listener of listeners) process.on('uncaughtException', listener) })
  await away(server, client)
  let fails = true
  client.on('change', () => { if (fails) throw new Error('of the app') })
  client.on('change', name => client.log.push(['after', name]))
  server.change('a', '2')
  await until(() => client.count('after') === 1 && thrown.length === 1)
  assert.deepEqual(thrown, ['of the app'])
  client.changes = []
  fails = false
  assert.deepEqual(await back(server, client), [['a', undefined, '2']], 'the change is reported again')
})
