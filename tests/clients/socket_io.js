'use strict'
// Drives one version of socket.io-client for a test, as an app would.
//
//   node socket_io.js MAJOR polling|websocket|default
//
// Reads commands from stdin and writes events to stdout, each a line of JSON. Every command names
// its client in `as`, every event in `of`; `connect` makes a client and has the server's URL:
//
//   {"do":"connect","as":"a","url":"http://…","query":{…},"auth":{…}}
//   {"do":"subscribe"|"unsubscribe","as":"a","dbs":["db"]}     {"do":"heartbeat"|"log-out","as":"a"}
//   {"do":"disconnect","as":"a"}
//   {"do":"logins","as":"all","url":"http://…","query":{…},"count":500,"at_once":10,"timeout_ms":10000,
//    "busy_ms":0}
//
//   {"of":"script","event":"ready"}
//   {"of":"a","event":"connect"}             {"of":"a","event":"upgraded"}       {"of":"a","event":"alive"}
//   {"of":"a","event":"authenticated","data":{…},"transport":"websocket"}
//   {"of":"a","event":"not-authenticated","data":{…}}
//   {"of":"a","event":"ack","to":"subscribe","data":{…}}
//   {"of":"a","event":"change","db":"db"}    {"of":"a","event":"disconnect","reason":"…"}
//   {"of":"all","event":"logins","authenticated":500,"refused":0,"hung":0,"ms":1234}

const readline = require('node:readline')

const [major, mode] = process.argv.slice(2)
const library = require(`sio${major}`)
const io = library.io || library
const clients = new Map()

function emit (of, event, more) {
  process.stdout.write(JSON.stringify({ of, event, ...more }) + '\n')
}

function open (url, query, auth) {
  const options = { forceNew: true, query }
  if (auth) options.auth = auth
  if (mode !== 'default') options.transports = [mode]
  return io(url, options)
}

// As apps do by mistake: they await `connect` through a promise, and only then listen for the
// events of the login.
function connected (socket) {
  return new Promise(resolve => socket.once('connect', resolve))
}

const commands = {
  async connect ({ as, url, query, auth }) {
    const socket = open(url, query, auth)
    const client = { socket, dbs: new Set() }
    clients.set(as, client)
    socket.on('connect', () => {
      emit(as, 'connect')
      const engine = socket.io.engine
      if (Number(major) === 3) engine.on('pong', () => emit(as, 'alive'))
      if (mode !== 'default') return
      if (engine.transport.name === 'websocket') emit(as, 'upgraded')
      else engine.once('upgrade', () => emit(as, 'upgraded'))
    })
    socket.on('connect_error', error => emit(as, 'connect_error', { message: String(error) }))
    socket.on('disconnect', reason => emit(as, 'disconnect', { reason }))
    // The transport's heartbeat: the server answers it in Engine.IO 3, and sends it in Engine.IO 4.
    // Version 3 of the client reports it only through its engine.
    socket.io.on(major < 3 ? 'pong' : 'ping', () => emit(as, 'alive'))
    await connected(socket)
    socket.on('authenticated', data => {
      emit(as, 'authenticated', { data, transport: socket.io.engine.transport.name })
      if (client.dbs.size > 0) ask(as, 'subscribe', [...client.dbs])
    })
    socket.on('not-authenticated', data => emit(as, 'not-authenticated', { data }))
    socket.on('change', (...data) => emit(as, 'change', data.length === 1 ? { db: data[0] } : { data }))
  },
  subscribe ({ as, dbs }) {
    for (const db of dbs) clients.get(as).dbs.add(db)
    ask(as, 'subscribe', dbs)
  },
  unsubscribe ({ as, dbs }) {
    for (const db of dbs) clients.get(as).dbs.delete(db)
    ask(as, 'unsubscribe', dbs)
  },
  heartbeat: ({ as }) => ask(as, 'heartbeat', null),
  'log-out': ({ as }) => ask(as, 'log-out', null),
  disconnect: ({ as }) => clients.get(as).socket.disconnect(),

  async logins ({ as, url, query, auth, count, at_once: atOnce, timeout_ms: timeout, busy_ms: busyMs }) {
    const outcomes = { authenticated: 0, refused: 0, hung: 0 }
    const began = Date.now()
    // An app that computes for `busy_ms` at a time, and then reads all packets of that time at
    // once.
    const busy = busyMs && setInterval(() => {
      for (const until = Date.now() + busyMs; Date.now() < until;);
    }, 1)
    let left = count
    const worker = async () => {
      while (left-- > 0) outcomes[await logIn(url, query, auth, timeout)]++
    }
    await Promise.all(Array.from({ length: atOnce }, worker))
    clearInterval(busy)
    emit(as, 'logins', { ...outcomes, ms: Date.now() - began })
  }
}

function ask (as, event, argument) {
  clients.get(as).socket.emit(event, argument, data => emit(as, 'ack', { to: event, data }))
}

async function logIn (url, query, auth, timeout) {
  const socket = open(url, query, auth)
  let timer
  const hung = new Promise(resolve => { timer = setTimeout(resolve, timeout, 'hung') })
  const answered = connected(socket).then(() => new Promise(resolve => {
    socket.on('authenticated', () => resolve('authenticated'))
    socket.on('not-authenticated', () => resolve('refused'))
  }))
  const outcome = await Promise.race([answered, hung])
  clearTimeout(timer)
  socket.disconnect()
  return outcome
}

readline.createInterface({ input: process.stdin })
  .on('line', line => {
    const command = JSON.parse(line)
    commands[command.do](command)
  })
  .on('close', () => process.exit())
emit('script', 'ready')
