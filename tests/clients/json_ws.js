'use strict'
// Speaks howler.v1 for a test using only `ws`. Commands and events are those of socket_io.js, so
// that one test drives both. The credentials are in `query`, but this client does not send them in
// the URL.

const readline = require('node:readline')
const WebSocket = require('ws')

// Wait before the next attempt, unless a goodbye gave another one.
const RETRY_MS = 500
const clients = new Map()

function emit (of, event, more) {
  process.stdout.write(JSON.stringify({ of, event, ...more }) + '\n')
}

class Client {
  constructor ({ as, url, query }) {
    this.as = as
    this.url = url.replace(/^http/, 'ws') + '/howler'
    this.credentials = query
    this.dbs = new Set()
    this.over = false
    this.open()
  }

  open () {
    this.asked = new Map()
    this.retryMs = RETRY_MS
    this.socket = new WebSocket(this.url, 'howler.v1')
    this.socket.on('open', () => {
      emit(this.as, 'connect')
      this.ask('log-in', this.credentials)
    })
    this.socket.on('message', (data, binary) => this.handle(JSON.parse(binary ? '' : data)))
    this.socket.on('error', error => emit(this.as, 'connect_error', { message: String(error) }))
    this.socket.on('close', (code, reason) => {
      emit(this.as, 'disconnect', { reason: `${code} ${reason}` })
      if (!this.over) setTimeout(() => this.open(), this.retryMs)
    })
  }

  ask (op, more) {
    const id = this.asked.size + 1
    this.asked.set(id, op)
    this.socket.send(JSON.stringify({ id, op, ...more }))
  }

  handle (message) {
    switch (message.event) {
      case 'hello': return
      case 'change': return emit(this.as, 'change', { db: message.db })
      case 'goodbye': this.retryMs = message.retry_after_ms; return
      case undefined: return this.answered(this.asked.get(message.id), message)
      default: return emit(this.as, message.event, { data: message })
    }
  }

  answered (op, { id, ...answer }) {
    if (op !== 'log-in') return emit(this.as, 'ack', { to: op, data: answer })
    if (!answer.ok) {
      this.over = true
      return emit(this.as, 'not-authenticated', { data: { error: true, errorName: answer.error, errorMessage: answer.message } })
    }
    emit(this.as, 'authenticated', { data: { cookie: answer.cookie }, transport: 'websocket' })
    if (this.dbs.size > 0) this.ask('subscribe', { dbs: [...this.dbs] })
  }
}

const commands = {
  connect: command => clients.set(command.as, new Client(command)),
  subscribe ({ as, dbs }) {
    for (const db of dbs) clients.get(as).dbs.add(db)
    clients.get(as).ask('subscribe', { dbs })
  },
  unsubscribe ({ as, dbs }) {
    for (const db of dbs) clients.get(as).dbs.delete(db)
    clients.get(as).ask('unsubscribe', { dbs })
  },
  heartbeat: ({ as }) => clients.get(as).ask('heartbeat'),
  'log-out' ({ as }) {
    clients.get(as).over = true
    clients.get(as).ask('log-out')
  },
  disconnect ({ as }) {
    clients.get(as).over = true
    clients.get(as).socket.close(1000)
  }
}

readline.createInterface({ input: process.stdin })
  .on('line', line => {
    const command = JSON.parse(line)
    commands[command.do](command)
  })
  .on('close', () => process.exit())
emit('script', 'ready')
